"""Build the data set of the demo model: Noto emoji at 32x32 with captions, in one npz file.

    python -m tools.emoji_dataset --output emoji32.npz

The images are `img/google/64` of the npm package `emoji-datasource-google` 16.0.0, fetched with `npm pack`
(or read from a tarball given with `--archive`). Each is laid over white with its alpha and shrunk with a
Lanczos filter. Every skin variation is a row of its own whose name spells its tones out. The bare skin-tone
swatches (`Component`) are left out. The file holds, for N = 3781 rows:

    images         uint8 [N, 32, 32, 3]   RGB
    names          str [N]                lower case, as in emoji.json
    categories     str [N]                emoji.json
    subcategories  str [N]                emoji.json
    captions       str [N]                alternative captions, one a line; the first is the name's own words

Images: Noto Emoji, Apache License 2.0. The package's data (emoji.json): MIT.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["FILLERS", "MAX_WORDS", "PACKAGE", "build", "captions_of", "read_rows", "split_words"]

PACKAGE = "emoji-datasource-google@16.0.0"
SIZE = 32
MAX_WORDS = 12
"""Words a caption may hold: the model's fixed text length."""

FILLERS = ("a", "an", "and", "emoji", "for", "in", "of", "on", "sign", "symbol", "the", "to", "with")
"""Words that training drops from, and adds to, captions: a prompt may have them or not."""

SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}

REJECTED_WORDS = {"shit", "hankey", "flipper", "facepunch", "bangbang"}

ALIASES: dict[str, tuple[str, ...]] = {
    "aubergine": ("eggplant",),
    "automobile": ("car", "red car"),
    "bear face": ("bear",),
    "beer mug": ("beer", "glass of beer"),
    "bicycle": ("bike",),
    "birthday cake": ("cake", "cake with candles"),
    "black question mark ornament": ("question mark", "red question mark"),
    "black sun with rays": ("sun", "yellow sun", "sunshine", "sun with rays"),
    "black telephone": ("telephone", "red telephone"),
    "chart with upwards trend": ("chart", "line chart"),
    "christmas tree": ("xmas tree", "decorated tree"),
    "cooking": ("fried egg", "frying pan"),
    "crescent moon": ("moon", "yellow moon"),
    "crying face": ("sad face",),
    "deciduous tree": ("tree", "green tree"),
    "delivery truck": ("truck",),
    "electric light bulb": ("light bulb", "bulb"),
    "extraterrestrial alien": ("alien", "alien face"),
    "father christmas": ("santa", "santa claus"),
    "fire": ("flame", "flames"),
    "fox face": ("fox",),
    "frog face": ("frog",),
    "gem stone": ("diamond", "gem", "jewel"),
    "grinning face": ("grinning smiley", "smiley grinning"),
    "hamburger": ("burger",),
    "heavy black heart": ("red heart", "heart", "love heart", "big red heart"),
    "high voltage sign": ("lightning", "lightning bolt"),
    "honeybee": ("bee", "honey bee"),
    "hot beverage": ("coffee", "hot coffee", "cup of coffee", "tea"),
    "house building": ("house",),
    "hundred points symbol": ("hundred", "hundred points"),
    "jack-o-lantern": ("pumpkin", "halloween pumpkin"),
    "lion face": ("lion",),
    "mobile phone": ("phone", "smartphone"),
    "panda face": ("panda",),
    "party popper": ("confetti", "party"),
    "personal computer": ("computer", "laptop"),
    "pile of poo": ("poop", "poo"),
    "rainbow": ("colorful rainbow",),
    "red apple": ("apple",),
    "robot face": ("robot",),
    "rocket": ("space rocket", "rocket ship"),
    "slice of pizza": ("pizza", "pizza slice", "piece of pizza"),
    "smiling face with heart-shaped eyes": ("heart eyes", "love face"),
    "smiling face with open mouth": ("smiley", "smiley face", "happy face"),
    "smiling face with sunglasses": ("cool face", "face with sunglasses"),
    "slightly smiling face": ("smile", "smiling face"),
    "soccer ball": ("soccer", "football ball"),
    "soft ice cream": ("ice cream cone",),
    "sun with face": ("sun face", "smiling sun"),
    "tangerine": ("orange fruit",),
    "thumbs down sign": ("thumbs down", "thumb down", "dislike"),
    "thumbs up sign": ("thumbs up", "thumb up", "like"),
    "umbrella with rain drops": ("rain umbrella",),
    "unicorn face": ("unicorn",),
    "white medium star": ("star", "yellow star"),
    "wine glass": ("wine", "glass of wine"),
    "wrapped present": ("gift", "present", "gift box"),
    "brazil flag": ("brazilian flag",),
    "canada flag": ("canadian flag",),
    "china flag": ("chinese flag",),
    "france flag": ("french flag",),
    "germany flag": ("german flag",),
    "italy flag": ("italian flag",),
    "japan flag": ("japanese flag",),
    "spain flag": ("spanish flag",),
    "switzerland flag": ("swiss flag",),
    "united kingdom flag": ("uk flag", "british flag"),
    "united states flag": ("usa flag", "american flag"),
}
"""Captions by name that people type but Unicode does not use."""


def split_words(text: str) -> list[str]:
    """Split a caption into words: lower case, cut at everything but letters, digits and inner hyphens."""
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower())


def captions_of(name: str, short_names: list[str], taken: set[frozenset[str]]) -> list[str]:
    """List the captions of one emoji: its name, its aliases, and the short names that belong to it alone.

    `taken` holds the word sets of all names and aliases; a short name equal to one of them is left to its
    owner (`cat` is a short name of "cat face", yet "cat" is another emoji).
    """
    plain = unicodedata.normalize("NFKD", name.replace("*", " asterisk ").replace("\u2019", ""))
    captions = [" ".join(split_words(plain.encode("ascii", "ignore").decode())[:MAX_WORDS])]
    captions += ALIASES.get(name, ())
    for short_name in short_names:
        words = re.split("[_-]", short_name.lower())
        natural = all(word.isalpha() and len(word) > 1 and word not in REJECTED_WORDS for word in words)
        if natural and len(words) <= MAX_WORDS and frozenset(words) not in taken:
            captions.append(" ".join(words))
    return list(dict.fromkeys(captions))


def read_rows(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row for each emoji and each of its skin variations: name, image, categories and captions."""
    entries = [entry for entry in entries if entry["has_img_google"] and entry["category"] != "Component"]
    taken = {frozenset(split_words(entry["name"])) for entry in entries}
    taken |= {frozenset(split_words(alias)) for aliases in ALIASES.values() for alias in aliases}
    for entry in entries:
        name = entry["name"].lower()
        shared = {"category": entry["category"], "subcategory": entry["subcategory"]}
        short_names = [] if entry["category"] == "Flags" else entry["short_names"]
        yield {
            "name": name,
            "image": entry["image"],
            "captions": captions_of(name, short_names, taken),
            **shared,
        }
        for tones, variation in entry.get("skin_variations", {}).items():
            if variation["has_img_google"]:
                toned = name + " " + " and ".join(SKIN_TONES[tone] for tone in tones.split("-"))
                yield {
                    "name": toned,
                    "image": variation["image"],
                    "captions": captions_of(toned, [], taken),
                    **shared,
                }


def shrink(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Lay a PNG with alpha over white and shrink it to uint8 [32, 32, 3]."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return np.asarray(page.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def build(archive: Path, output: Path) -> int:
    """Read the package's tarball, write the npz, and return the number of rows."""
    with tarfile.open(archive) as package:
        files = {member.name: member for member in package.getmembers()}

        def read(name: str) -> bytes:
            stream = package.extractfile(files[f"package/{name}"])
            assert stream is not None, f"{name} is not a plain file of the package"
            return stream.read()

        rows = list(read_rows(json.loads(read("emoji.json"))))
        wanted = sorted({row["image"] for row in rows}, key=lambda name: files[f"package/img/google/64/{name}"].offset)
        # A gzipped tarball is read front to back once; random access would unpack it again for each image.
        pictures = {name: shrink(read(f"img/google/64/{name}")) for name in wanted}
    np.savez_compressed(
        output,
        images=np.stack([pictures[row["image"]] for row in rows]),
        names=np.array([row["name"] for row in rows]),
        categories=np.array([row["category"] for row in rows]),
        subcategories=np.array([row["subcategory"] for row in rows]),
        captions=np.array(["\n".join(row["captions"]) for row in rows]),
    )
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the emoji data set of the demo model.")
    parser.add_argument("--output", type=Path, default=Path("emoji32.npz"), help="the npz to write")
    parser.add_argument("--archive", type=Path, help=f"a downloaded tarball of {PACKAGE}; default: `npm pack`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = options.archive
        if archive is None:
            subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True)
            archive = next(Path(folder).glob("*.tgz"))
        print(f"{options.output}: {build(archive, options.output)} images")


if __name__ == "__main__":
    main()
