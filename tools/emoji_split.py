"""The data set of emoji with labels, and which of them a training leaves out to test on.

A random split of the data set would test memory: five skin tones, and a man, a woman and a person, of one emoji look
nearly alike. So the variants of an emoji make one group, and a group is held out as a whole.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tools.emoji_dataset import FILLERS, split_words
from tools.emoji_taxonomy import Taxonomy
from tools.training import row_weights

__all__ = ["ALIKE", "EmojiData", "emoji_of", "held_out", "variant_groups"]

ALIKE = 12.0
"""Greatest root mean square difference, in levels of 0 to 255, of pictures that count as one, as they are or with one
mirrored: equal flags of two lands, a snowman with and without snow, clocks and arrows that point the other way."""

_TONES = re.compile(r"( and)? (light|medium-light|medium|medium-dark|dark) skin tone")

_WHO = {
    "man", "men", "woman", "women", "person", "people", "boy", "girl", "child", "adult", "bride", "mother", "father",
    "mx", "two",
}  # fmt: skip
"""Words for who it is."""

_HOW = {"facing", "right", "getting", "playing", "doing", "wearing", "leftwards", "rightwards"}
"""Words that only one of several variants has."""

_IRREGULAR = {
    "bearded person": "beard",
    "bicyclist": "biking",
    "dancer": "dancing",
    "face massage": "massage",
    "face palm": "facepalming",
    "face with no good gesture": "gesturing no",
    "face with ok gesture": "gesturing ok",
    "guardsman": "guard",
    "happy person raising one hand": "raising hand",
    "information desk person": "tipping hand",
    "merman": "mermaid",
    "merperson": "mermaid",
    "mountain bicyclist": "mountain biking",
    "pedestrian": "walking",
    "person bowing deeply": "bowing",
    "person doing cartwheel": "cartwheeling",
    "person with crown": "prince",
    "person with pouting face": "pouting",
    "princess": "prince",
    "rowboat": "rowing boat",
    "runner": "running",
    "shrug": "shrugging",
    "standing person": "standing",
    "surfer": "surfing",
    "swimmer": "swimming",
    "wrestlers": "wrestling",
}
"""Names that share no word with those of their variants."""


class EmojiData:
    """The data set with its labels, and which rows are held out."""

    def __init__(self, file: Path, seed: int) -> None:
        with np.load(file) as data:
            self.images: NDArray[np.uint8] = data["images"]
            lists = [data[key].tolist() for key in ("names", "categories", "subcategories")]
        self.names, categories, subcategories = lists
        self.taxonomy = Taxonomy.of(self.names, categories, subcategories)
        classes = self.taxonomy.categories, self.taxonomy.subcategories
        columns = [
            [list(names).index(each) for each in column] for names, column in zip(classes, lists[1:], strict=True)
        ]
        self.labels: NDArray[np.int64] = np.array(columns).T
        """[N, 2]: category and subcategory"""
        self.groups = variant_groups(self.names, self.images)
        self.test = held_out(self.groups, subcategories, seed=seed)
        self.weights = row_weights(self.names, categories) * torch.from_numpy(~self.test)
        """float32 [N]: how often a row is drawn to train on; held-out rows never"""

    def emoji(self, *, test: bool) -> NDArray[np.int64]:
        """Return one row of each emoji on one side of the split: the first of its variants."""
        rows = np.sort(np.unique(self.groups, return_index=True)[1])
        chosen: NDArray[np.int64] = rows[self.test[rows] == test]
        return chosen


def emoji_of(name: str) -> frozenset[str]:
    """Return what the variants of an emoji share: the words of its name that say neither skin tone nor gender."""
    plain = _TONES.sub("", name)
    words = set(split_words(_IRREGULAR.get(plain, plain))) - set(FILLERS)
    return frozenset(words - _WHO - _HOW)


def variant_groups(names: list[str], images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the groups of pictures [N, H, W, 3] that are variants of one emoji or that look alike: int64 [N]."""
    first: dict[frozenset[str], int] = {}
    parents = [first.setdefault(emoji_of(name), row) for row, name in enumerate(names)]

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for one, other in _alike(images):
        parents[max(root(one), root(other))] = min(root(one), root(other))
    return np.unique([root(row) for row in range(len(names))], return_inverse=True)[1]


def _alike(images: NDArray[np.uint8]) -> list[list[int]]:
    """List the pairs of rows whose pictures look alike, as they are or with one of them mirrored."""
    found: list[list[int]] = []
    for others in (images, images[:, :, ::-1]):
        left, right = (each.reshape(len(each), -1).astype(np.float32) / 255 for each in (images, others))
        squares = (left**2).sum(1)  # a mirrored picture has the same
        mean_square = (squares[:, None] + squares - 2 * left @ right.T) / left.shape[1]
        found += np.argwhere(np.triu(mean_square < (ALIKE / 255) ** 2, 1)).tolist()
    return found


def held_out(
    groups: NDArray[np.int64], subcategories: list[str], *, share: float = 0.2, seed: int = 0
) -> NDArray[np.bool_]:
    """Mark the rows to test on, bool [N]: of every subcategory about `share` of its groups, whole.

    A subcategory of two groups or more gives at least one and keeps at least one; one of a single group gives none. A
    group belongs to the subcategory of its first row.
    """
    random = np.random.default_rng(seed)
    firsts = np.unique(groups, return_index=True)[1]
    owners = np.array(subcategories)[firsts]
    chosen: list[int] = []
    for owner in sorted(set(owners.tolist())):
        mine = np.flatnonzero(owners == owner)
        wanted = min(max(1, round(share * len(mine))), len(mine) - 1)
        chosen += random.permutation(mine)[:wanted].tolist()
    return np.isin(groups, chosen)
