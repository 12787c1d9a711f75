"""The data set of the demo model: words, captions, rows, and a package built on the spot."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.emoji_dataset import build, captions_of, read_rows, split_words


def entry(name: str, image: str, *short_names: str, **changes: Any) -> dict[str, Any]:
    plain = {"category": "Objects", "subcategory": "thing", "has_img_google": True}
    return {"name": name, "image": image, "short_names": list(short_names), **plain, **changes}


def test_words_keep_inner_hyphens_alone() -> None:
    assert split_words("Keycap: *, the MEDIUM-light tone - (x2)") == [
        "keycap",
        "the",
        "medium-light",
        "tone",
        "x2",
    ]


def test_a_name_brings_its_aliases_and_its_own_short_names() -> None:
    captions = captions_of("slice of pizza", ["pizza", "yummy_slice", "u5272"], {frozenset(["slice", "of", "pizza"])})
    assert captions[0] == "slice of pizza"
    assert {"pizza", "yummy slice"} < set(captions)
    assert not any("u5272" in caption for caption in captions)
    assert len(captions) == len(set(captions))


def test_a_short_name_that_names_another_emoji_is_left_to_it() -> None:
    rows = {row["name"]: row["captions"] for row in read_rows([entry("CAT FACE", "1", "cat"), entry("CAT", "2")])}
    assert rows == {"cat face": ["cat face"], "cat": ["cat"]}


def test_accents_and_asterisks_become_words() -> None:
    assert captions_of("curaçao flag", [], set()) == ["curacao flag"]
    assert captions_of("keycap: *", [], set()) == ["keycap asterisk"]


def test_skin_variations_are_rows_and_components_are_not() -> None:
    variation = {"image": "dark.png", "has_img_google": True}
    wave = entry("WAVE", "wave.png", skin_variations={"1F3FB-1F3FF": variation})
    rows = list(read_rows([wave, entry("SWATCH", "s.png", category="Component")]))
    assert [row["name"] for row in rows] == ["wave", "wave light skin tone and dark skin tone"]
    assert rows[1]["image"] == "dark.png"


def test_a_package_becomes_an_npz_with_alpha_laid_over_white(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(picture, "png")
    files = {
        "emoji.json": json.dumps([entry("GHOST", "g.png")]).encode(),
        "img/google/64/g.png": picture.getvalue(),
    }
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as package:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    assert build(tmp_path / "package.tgz", tmp_path / "out.npz") == 1
    data = np.load(tmp_path / "out.npz")
    assert data["images"].shape == (1, 32, 32, 3)
    assert data["images"].dtype == np.uint8
    assert (data["images"] == 255).all()
    assert data["captions"].tolist() == ["ghost"]
