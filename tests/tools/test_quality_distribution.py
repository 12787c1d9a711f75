"""Distances and accuracy of samples: taken of every frame, recorded once."""

import pathlib

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from tools import quality_distribution
from tools.emoji_taxonomy import Taxonomy
from tools.quality_cells import Bench, SampleCell
from tools.quality_distribution import category_of, measure_distribution
from tools.quality_metrics import FeatureStatistics
from tools.quality_results import Results
from tools.quality_systems import SYSTEMS, System
from tools.quality_workers import Progress

VIDEO, DIT, FLUX = SYSTEMS["hunyuan-video-emoji"], SYSTEMS["dit-emoji"], SYSTEMS["flux-emoji"]
NAMES = {"Smileys & Emotion": {"heart": ["heavy black heart", "red heart"]}, "Travel & Places": {"sky": ["rocket"]}}


class Classifier:
    """Sees two features, and the category Smileys & Emotion in whatever is dark."""

    taxonomy = Taxonomy(NAMES)
    category_names, subcategory_names, class_of = taxonomy.categories, taxonomy.subcategories, taxonomy.class_of
    real_statistics = FeatureStatistics(mean=np.zeros(2), covariance=np.eye(2), count=100)

    @classmethod
    def load(cls) -> "Classifier":
        return cls()

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        features: NDArray[np.float64] = images[:, 0, :2, 0] / 255.0
        return features

    def categories(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        bright: NDArray[np.int64] = (images.mean((1, 2, 3)) > 128).astype(np.int64)
        return bright


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch) -> Classifier:
    monkeypatch.setattr(quality_distribution, "EmojiClassifier", Classifier)
    monkeypatch.setattr(quality_distribution, "_digest", lambda: "abc")
    return Classifier()


def cells(tmp_path: pathlib.Path) -> list[SampleCell]:
    """Clips of hearts: dark ones with every step full and by taylor, bright ones by reuse."""
    bench = Bench(model=VIDEO.model, bundle=tmp_path, identity="abc", pictures=tmp_path)
    (tmp_path / "samples").mkdir()
    made = []
    for name, dark in (("every step full", True), ("taylor", True), ("reuse", False)):
        reuse = {"predictor": "reuse"} if name == "reuse" else {}
        cell = SampleCell(
            bench=bench,
            name=name,
            requests=tuple(("red heart growing", seed) for seed in range(6)),
            cache=CacheConfig(steps=20, interval=4, **reuse),  # type: ignore[arg-type]
            every_step_full=name == "every step full",
        )
        low, high = (0, 100) if dark else (150, 255)
        clips = np.random.default_rng(0).integers(low, high, (6, VIDEO.frames, 4, 4, 3), np.uint8)
        np.save(cell.path, clips)
        made.append(cell)
    return made


def test_distances_and_accuracy_are_recorded_once(tmp_path: pathlib.Path, classifier: Classifier) -> None:
    made = cells(tmp_path)
    with Results(tmp_path / "results.jsonl") as results:
        for _ in range(2):
            measure_distribution(VIDEO, made, results, Progress())
        (record,) = results.of_kind("distribution")
    full, taylor, reuse = record["rows"]
    assert record["samples"] == 6 and record["frames"] == VIDEO.frames
    assert full["to_full"] is None and taylor["to_full"] == pytest.approx(0, abs=1e-9) and reuse["to_full"] > 0.1
    assert (full["accuracy"], taylor["accuracy"], reuse["accuracy"]) == (1.0, 1.0, 0.0)
    assert (full["full_steps"], taylor["full_steps"]) == (20, 7)
    assert reuse["to_full_interval"][0] <= reuse["to_full"] <= reuse["to_full_interval"][1]


def test_a_prompt_asks_for_the_category_of_its_emoji_or_its_class(classifier: Classifier) -> None:
    def find(system: System, prompt: str) -> int:
        return category_of(classifier, system, prompt)  # type: ignore[arg-type]

    assert find(FLUX, "red heart") == 0 and find(VIDEO, "rocket moving left") == 1
    assert find(DIT, "heart") == 0 and find(DIT, "Travel & Places") == 1
