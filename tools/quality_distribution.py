"""Whether samples made with forecasts are still of the same kind: Frechet distances and class accuracy.

Distances are between features of the emoji classifier, to all real emoji and to the samples with every step full, which
have the same prompts and seeds.  The frames of a clip are features one by one, and are drawn again together.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tools.emoji_classifier import FOLDER, EmojiClassifier
from tools.emoji_clips import CAST, MOTIONS
from tools.quality_cells import SampleCell, load_pictures
from tools.quality_metrics import accuracy, frechet_distance, frechet_interval
from tools.quality_results import Record, Results, key_of
from tools.quality_systems import System
from tools.quality_workers import Progress

__all__ = ["category_of", "check_classifier", "measure_distribution"]

FULL = "every step full"
"""The samples that the others are compared with, as :func:`quality_grid.sample_forecasts` names them."""

_ROUNDS = 200
"""Of the distances' bootstrap: a few milliseconds each."""


def measure_distribution(system: System, cells: Sequence[SampleCell], results: Results, progress: Progress) -> None:
    """Record the distances and the accuracy of every way to forecast, unless they are there.

    Args:
        system: whose samples they are.
        cells: all of them, made.
        results: where they are recorded.
        progress: is told.
    """
    progress.show(f"{system.model}, distances", always=True)
    key = key_of(distribution=2, samples=[cell.key for cell in cells], classifier=_digest())
    if key in results:
        return
    classifier = EmojiClassifier.load()
    names = list(dict.fromkeys(cell.name for cell in cells))
    made = {name: np.concatenate([load_pictures(c.path) for c in cells if c.name == name]) for name in names}
    requests = [request for cell in cells if cell.name == FULL for request in cell.requests]
    features = {name: classifier.features(_frames(pictures)) for name, pictures in made.items()}
    groups = _groups(system, len(requests))
    wanted = [category_of(classifier, system, prompt) for prompt, _ in requests]
    rows = []
    for name, pictures in made.items():
        real = classifier.real_statistics
        right = classifier.categories(_frames(pictures)) == np.repeat(wanted, system.frames)
        share = accuracy(right, groups=groups)
        rows.append(
            {
                "name": name,
                "full_steps": next(cell.full_steps // len(cell.requests) for cell in cells if cell.name == name),
                "to_real": frechet_distance(features[name], real),
                "to_real_interval": frechet_interval(features[name], real, first_groups=groups, rounds=_ROUNDS),
                **_to_full(name, features, groups),
                "accuracy": share.value,
                "accuracy_interval": (share.low, share.high),
            }
        )
    results.add(_record(key, system, cells, len(requests), rows))


def check_classifier(system: System) -> None:
    """Refuse, before the long work, what could not be measured after it.

    Raises CheckpointError for a classifier that cannot be read, PromptError for a prompt without a category.
    """
    classifier = EmojiClassifier.load()
    for prompt in system.sampled:
        category_of(classifier, system, prompt)


def category_of(classifier: EmojiClassifier, system: System, prompt: str) -> int:
    """Return the label of the category that a prompt asks for: a class's own, or that of the emoji it names.

    Raises PromptError for a prompt that names neither.
    """
    if system.is_video:
        emoji = next((prompt.removesuffix(f" {motion}") for motion in MOTIONS if prompt.endswith(f" {motion}")), prompt)
        prompt = CAST.get(emoji, emoji)
    if prompt in classifier.category_names:
        return classifier.category_names.index(prompt)
    if prompt in classifier.subcategory_names:
        return classifier.taxonomy.category_of(classifier.subcategory_names.index(prompt))
    return classifier.class_of(prompt).category


def _to_full(name: str, features: dict[str, NDArray[np.float64]], groups: list[int] | None) -> Record:
    """Return the distance to the samples with every step full, and its interval over pairs; none of those to itself."""
    if name == FULL:
        return {"to_full": None, "to_full_interval": None}
    mine, full = features[name], features[FULL]
    return {
        "to_full": frechet_distance(mine, full),
        "to_full_interval": frechet_interval(mine, full, first_groups=groups, rounds=_ROUNDS, paired=True),
    }


def _record(key: str, system: System, cells: Sequence[SampleCell], count: int, rows: list[Record]) -> Record:
    return {
        "kind": "distribution",
        "key": key,
        "model": system.model,
        "samples": count,
        "frames": system.frames,
        "steps": cells[0].cache.steps,
        "rows": rows,
    }


def _frames(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 [N, H, W, 3], the frames of clips one after another."""
    return pictures.reshape(-1, *pictures.shape[-3:])


def _groups(system: System, count: int) -> list[int] | None:
    """Return the number of each frame's clip; None for images."""
    return [clip for clip in range(count) for _ in range(system.frames)] if system.is_video else None


def _digest() -> str:
    names = ("model.safetensors", "labels.json", "real_statistics.npz")
    return hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in names)).hexdigest()[:16]
