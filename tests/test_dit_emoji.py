"""The small class-conditional model, as shipped: it knows its classes by name and paints them on white."""

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import PromptError
from taylorseer.exporter.checkpoints import demo_checkpoint
from taylorseer.runtime.generation import Generator

SHORT = CacheConfig.from_preset("dit", steps=20, order=2)
"""Forecasts as in the default of 50 steps, and enough steps for a picture to look like one."""
CHECKPOINT = demo_checkpoint("dit-emoji")


@pytest.fixture(scope="module")
def generator(bundles: Callable[..., Bundle]) -> Generator:
    return Generator(bundles("dit-emoji", "folded"))


@pytest.fixture(scope="module")
def painted(generator: Generator) -> Mapping[str, NDArray[np.uint8]]:
    """Pictures of classes with known colors."""
    made = {}
    for name in ("heart", "face-smiling", "plant-other"):
        image = generator.generate(name, seed=0, cache=SHORT).image
        assert image is not None and image.shape == (32, 32, 3)
        made[name] = image
    return made


def test_the_folded_state_is_proven(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("dit-emoji", "folded").manifest
    assert manifest.layout == "folded" and manifest.folding is not None
    assert manifest.layout_reason == "the forecast is proven to be linear in its 16 features"
    assert {term.feature for term in manifest.folding.terms} == {feature.name for feature in manifest.features}


def test_the_bundle_names_its_classes(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-emoji", "folded")
    assert bundle.path("classes.json").read_bytes() == (CHECKPOINT / "classes.json").read_bytes()
    assert "classes.json" in bundle.manifest.files


def test_every_class_is_a_prompt(generator: Generator) -> None:
    for label, name in enumerate(json.loads((CHECKPOINT / "classes.json").read_text())):
        expected = [label, 107]
        for prompt in (name, name.upper(), f" {name} ", str(label)):
            assert generator.conditions(prompt)["class_labels"].tolist() == expected


def test_an_unknown_class_is_refused_with_close_names(generator: Generator) -> None:
    message = r"by name or by number from 0 to 106, not 'animal-mamal' \(close: 'animal-mammal', "
    with pytest.raises(PromptError, match=message):
        generator.generate("animal-mamal", seed=0)


def test_what_is_painted_lies_on_white_paper(painted: Mapping[str, NDArray[np.uint8]]) -> None:
    for image in painted.values():
        edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edges >= 235).all(axis=-1).mean() > 0.7  # of uniform noise, 0.1 % would be
        assert image[12:20, 12:20].min(axis=-1).mean() < 180


def test_classes_have_their_colors(painted: Mapping[str, NDArray[np.uint8]]) -> None:
    heart, smile, plant = (painted[name][10:18, 10:22].mean(axis=(0, 1)) for name in painted)
    assert heart[0] > heart[1] + 60
    assert min(smile[0], smile[1]) > smile[2] + 60
    assert plant[1] > max(plant[0], plant[2]) + 60


def test_the_checkpoint_is_small() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24_000_000
