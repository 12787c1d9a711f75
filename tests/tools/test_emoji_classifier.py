"""The shipped classifier of emoji, and what becomes of a damaged one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from taylorseer.errors import CheckpointError, PromptError, ShapeError
from tools.emoji_classifier import FOLDER, EmojiClassifier
from tools.quality_metrics import FeatureStatistics, frechet_distance
from tools.train_emoji import SHEET

CLASSES = FOLDER.parent / "dit-emoji" / "classes.json"


@pytest.fixture(scope="module")
def classifier() -> EmojiClassifier:
    return EmojiClassifier.load()


def noise(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def samples(model: str) -> NDArray[np.uint8]:
    """Return the pictures of a model's sheet of samples, which `draw_sheet` enlarged by 4 over lines of 14 pixels."""
    with Image.open(FOLDER.parent / model / "samples.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows = pixels.reshape(-1, 128 + 14, *pixels.shape[1:])[:, :128:4, ::4]
    return rows.reshape(len(rows), 32, -1, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def test_features_are_64_finite_numbers_a_picture_and_repeat(classifier: EmojiClassifier) -> None:
    images = noise(3)
    features = classifier.features(images)
    assert features.shape == (3, 64)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()
    np.testing.assert_array_equal(classifier.features(images), features)
    np.testing.assert_array_equal(EmojiClassifier.load().features(images), features)


def test_a_picture_s_features_do_not_depend_on_its_company(classifier: EmojiClassifier) -> None:
    images = noise(300)  # more than one pass
    alone = np.concatenate([classifier.features(images[:1]), classifier.features(images[-1:])])
    np.testing.assert_allclose(classifier.features(images)[[0, -1]], alone, atol=1e-4)  # sums in another order


def test_most_pictures_of_flux_emoji_are_taken_for_what_their_prompts_say(classifier: EmojiClassifier) -> None:
    images, wanted = samples("flux-emoji"), [classifier.class_of(prompt) for prompt in SHEET]
    assert len(images) == len(wanted) == 24
    categories = classifier.categories(images) == [label.category for label in wanted]
    subcategories = classifier.subcategories(images) == [label.subcategory for label in wanted]
    assert categories.mean() > 0.6  # of held-out real emoji it gets 0.68
    assert subcategories.mean() > 0.4  # 0.42


def test_noise_is_farther_from_the_real_emoji_than_they_are_from_each_other(classifier: EmojiClassifier) -> None:
    real = classifier.real_features
    halves = frechet_distance(real[::2], real[1::2])
    assert frechet_distance(classifier.features(noise(200)), classifier.real_statistics) > 20 * halves


def test_the_classes_are_those_of_the_class_conditional_model(classifier: EmojiClassifier) -> None:
    assert [*classifier.category_names, *classifier.subcategory_names] == json.loads(CLASSES.read_text())


def test_every_real_emoji_has_a_class(classifier: EmojiClassifier) -> None:
    for name in classifier.real_names:
        label = classifier.class_of(name)
        assert classifier.taxonomy.category_of(label.subcategory) == label.category
    pizza = classifier.class_of("pizza")
    assert classifier.category_names[pizza.category] == "Food & Drink"
    assert classifier.subcategory_names[pizza.subcategory] == "food-prepared"
    with pytest.raises(PromptError, match="names no emoji"):
        classifier.class_of("xylophone")


def test_the_statistics_are_those_of_the_real_features(classifier: EmojiClassifier) -> None:
    real = FeatureStatistics.of(classifier.real_features)
    assert classifier.real_statistics.count == real.count == len(classifier.real_names) == 3781
    # The features are rounded to float16, 1 part in 2,000, and the statistics are not.
    spread = np.sqrt(np.diag(real.covariance))
    np.testing.assert_allclose(classifier.real_statistics.mean, real.mean, atol=1e-3 * spread.max())
    np.testing.assert_allclose(classifier.real_statistics.covariance, real.covariance, atol=1e-3 * spread.max() ** 2)
    assert frechet_distance(real, classifier.real_statistics) < 1e-4 * np.trace(real.covariance)


def test_the_weights_are_small_and_the_record_is_of_them() -> None:
    weights = load_file(FOLDER / "model.safetensors")
    config = json.loads((FOLDER / "config.json").read_text())
    assert weights["category.weight"].shape == (config["categories"], config["features"])
    assert weights["subcategory.weight"].shape == (config["subcategories"], config["features"])
    assert sum(weight.size for weight in weights.values()) < 1_000_000
    assert {weight.dtype.name for weight in weights.values()} == {"float16", "int64"}
    assert (FOLDER / "model.safetensors").stat().st_size <= 2_000_000


def test_the_accuracies_of_the_card_are_those_of_the_record() -> None:
    card, record = (FOLDER / "README.md").read_text(), json.loads((FOLDER / "training.json").read_text())
    for rates in record["accuracy"].values():
        for head in ("category", "subcategory"):
            found = rates[head]
            assert f"{100 * found['value']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f})" in card


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 3, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ],
    ids=["one picture", "float", "channels first", "none"],
)
def test_other_pictures_are_refused(classifier: EmojiClassifier, images: NDArray[np.uint8]) -> None:
    for ask in (classifier.features, classifier.categories, classifier.subcategories):
        with pytest.raises(ShapeError, match=r"uint8 \[N, 32, 32, 3\]"):
            ask(images)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train it again: python -m tools\.train_emoji_classifier"):
        EmojiClassifier.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["config.json", "labels.json", "model.safetensors", "real_statistics.npz"])
def test_a_damaged_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(FOLDER, folder)
    content = (folder / name).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"[1, 2]"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            EmojiClassifier.load(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        EmojiClassifier.load(folder)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(FOLDER, folder)
    labels = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps({name: labels[name] for name in list(labels)[1:]}))
    with pytest.raises(CheckpointError, match="disagree"):
        EmojiClassifier.load(folder)
    shutil.copy(FOLDER / "labels.json", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"category.weight": weights["category.weight"][1:]}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"category\.weight"):
        EmojiClassifier.load(folder)
