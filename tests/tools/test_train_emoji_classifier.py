"""The training of the classifier of emoji, on a network of a few hundred weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tools.emoji_classifier import EmojiClassifier, EmojiNetwork
from tools.emoji_split import EmojiData
from tools.train_emoji_classifier import ARCHITECTURE, ClassifierConfig, loss_of, train, vary

TINY: dict[str, Any] = {"widths": (4, 8), "features": 4}


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Return twelve emoji, of which four have three variants, in two categories and four subcategories."""
    emoji = [(f"thing {number}", f"C{number % 2}", f"s{number % 4}") for number in range(12)]
    rows = [row for row in emoji if int(row[0].split()[1]) >= 4]
    rows += [
        (f"{who}{name}{tone}", category, subcategory)
        for name, category, subcategory in emoji[:4]
        for who, tone in (("", ""), ("woman ", ""), ("man ", " dark skin tone"))
    ]
    names, categories, subcategories = (np.array(column) for column in zip(*rows, strict=True))
    images = np.random.default_rng(0).integers(0, 256, (len(rows), 32, 32, 3), np.uint8)
    path = tmp_path / "data.npz"
    np.savez(path, images=images, names=names, categories=categories, subcategories=subcategories)
    return path


def settings(data: Path, output: Path, **changes: Any) -> ClassifierConfig:
    return ClassifierConfig(data=data, output=output, minutes=0.003, batch=4, autocast=False, **changes)


def test_a_run_writes_all_files_of_a_classifier_that_loads(data_file: Path, tmp_path: Path) -> None:
    trained = train(settings(data_file, tmp_path / "one"), **TINY)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "model.safetensors", "config.json", "labels.json", "held_out.json", "real_statistics.npz", "training.json",
        "loss.png", "confusion.png",
    }  # fmt: skip
    data = EmojiData(data_file, 0)
    loaded = EmojiClassifier.load(tmp_path / "one")
    np.testing.assert_array_equal(loaded.features(data.images), trained.features(data.images))
    assert loaded.category_names == ("C0", "C1")
    assert loaded.subcategory_names == ("s0", "s1", "s2", "s3")
    np.testing.assert_allclose(loaded.real_statistics.mean, trained.features(data.images).mean(0), atol=1e-6)
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert record["runs"][0]["steps"] >= 1
    held = record["accuracy"]["held_out_emoji"]
    right = loaded.categories(data.images) == data.labels[:, 0]
    assert held["pictures"] == held["category"]["witnesses"] == 4
    assert held["category"]["value"] == pytest.approx(right[data.emoji(test=True)].mean())


def test_variants_of_one_emoji_are_never_on_both_sides(data_file: Path) -> None:
    for seed in range(5):
        data = EmojiData(data_file, seed)
        sides = {
            test: {name.split()[-1 if "tone" not in name else -4] for name in _names(data, test)} for test in (0, 1)
        }
        assert sides[0].isdisjoint(sides[1])
        assert len(sides[0]) + len(sides[1]) == 12
        assert set(data.labels[~data.test, 1].tolist()) == {0, 1, 2, 3}


def _names(data: EmojiData, test: int) -> list[str]:
    return [name for name, held in zip(data.names, data.test, strict=True) if held == test]


def test_held_out_pictures_are_never_drawn(data_file: Path) -> None:
    data = EmojiData(data_file, 0)
    assert (data.weights[torch.from_numpy(data.test)] == 0).all()
    assert (data.weights[torch.from_numpy(~data.test)] > 0).all()


def test_a_run_goes_on_but_not_over_what_it_was_tested_on(data_file: Path, tmp_path: Path) -> None:
    first = settings(data_file, tmp_path / "one")
    train(first, **TINY)
    train(settings(data_file, tmp_path / "two", resume=first.output), **TINY)
    assert len(json.loads((tmp_path / "two" / "training.json").read_text())["runs"]) == 2
    with pytest.raises(ValueError, match="was trained on emoji that this run would test on"):
        train(settings(data_file, tmp_path / "three", resume=first.output, seed=1), **TINY)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    network = EmojiNetwork(**TINY, categories=2, subcategories=4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    labels = torch.arange(4).repeat(4)
    images = (labels.float() / 2 - 0.75)[:, None, None, None] * torch.ones(16, 3, 32, 32)
    losses = []
    for _ in range(60):
        loss = sum(loss_of(network, images, torch.stack([labels % 2, labels], dim=1)), torch.zeros(()))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_variation_keeps_the_range_and_the_white_page() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 3, 32, 32) * 2 - 1
    varied = vary(images)
    assert varied.shape == images.shape
    assert varied.abs().max() <= 1
    white = vary(torch.ones(64, 3, 32, 32))
    assert white.mean() > 0.85  # tint takes up to 0.1 of each channel, noise is cut at white
    assert not torch.allclose(varied[0], vary(images)[0])


def test_the_published_network_is_small() -> None:
    network = EmojiNetwork(**ARCHITECTURE, categories=9, subcategories=98)
    assert sum(weight.numel() for weight in network.parameters()) < 1_000_000
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
