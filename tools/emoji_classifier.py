"""The classifier of 32x32 emoji that measures generated pictures: 64 features, a category and a subcategory.

    classifier = EmojiClassifier.load()
    classifier.features(images)  # float64 [N, 64], for a Frechet distance
    classifier.subcategories(images) == classifier.class_of("slice of pizza").subcategory

`models/emoji-classifier` holds the weights and its card; `tools.train_emoji_classifier` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from taylorseer.errors import CheckpointError, ShapeError
from tools.emoji_taxonomy import EmojiClass, Taxonomy
from tools.quality_metrics import FeatureStatistics

__all__ = ["FOLDER", "SIZE", "EmojiClassifier", "EmojiNetwork", "features_of"]

FOLDER = Path(__file__).parents[1] / "models" / "emoji-classifier"
"""The shipped classifier."""

SIZE = 32
"""Height and width of its pictures."""

_BATCH = 256
"""Pictures in one pass; fixed, because sums of another batch may round differently."""

_DAMAGE = (
    OSError, EOFError, AttributeError, KeyError, RuntimeError, TypeError, ValueError, SafetensorError, BadZipFile,
)  # fmt: skip
"""What the readers of the files raise at damaged ones."""

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Pictures = NDArray[np.uint8]


class EmojiNetwork(nn.Module):  # type: ignore[misc]  # torch is untyped under the project's settings
    """A residual network: for each width a convolution that halves the picture and a block of two more.

    Its features are a linear map of the last stage's mean over the picture, and two linear heads read them.
    """

    def __init__(self, widths: Sequence[int], features: int, categories: int, subcategories: int) -> None:
        super().__init__()
        stages = [(_Convolution(before, width, stride=2), _Block(width)) for before, width in pairwise((3, *widths))]
        self.trunk = nn.Sequential(*chain.from_iterable(stages))
        self.features = nn.Linear(widths[-1], features)
        self.category = nn.Linear(features, categories)
        self.subcategory = nn.Linear(features, subcategories)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features [B, F] of images [B, 3, S, S] in [-1, 1]."""
        features: Tensor = self.features(self.trunk(images).mean((2, 3)))
        return features


class _Convolution(nn.Sequential):  # type: ignore[misc]
    """3x3 convolution, batch normalization, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Block(nn.Module):  # type: ignore[misc]
    """Two convolutions beside the identity (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _Convolution(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.relu(hidden + self.norm(self.second(self.first(hidden))))


class EmojiClassifier:
    """A trained network with its classes and what it makes of the real emoji."""

    def __init__(self, network: EmojiNetwork, taxonomy: Taxonomy, real: dict[str, NDArray[Any]]) -> None:
        self.taxonomy = taxonomy
        self.real_statistics = FeatureStatistics(
            mean=real["mean"].astype(np.float64),
            covariance=real["covariance"].astype(np.float64),
            count=int(real["count"]),
        )
        """Of the features of all real emoji."""
        self.real_features: Floats = real["features"].astype(np.float64)
        """[M, 64], of the real emoji one by one, rounded to float16: to choose some, or to draw them again."""
        self.real_names: tuple[str, ...] = tuple(real["names"].tolist())
        """M names."""
        self._network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path = FOLDER) -> EmojiClassifier:
        """Read a folder that `tools.train_emoji_classifier` wrote.

        Raises CheckpointError when a file is missing, damaged, or does not fit the others.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            taxonomy = Taxonomy(json.loads((folder / "labels.json").read_text()))
            network = EmojiNetwork(**config)
            network.load_state_dict({name: w.float() for name, w in load_file(folder / "model.safetensors").items()})
            with np.load(folder / "real_statistics.npz") as real:
                classifier = cls(network, taxonomy, dict(real))
        except _DAMAGE as error:
            raise CheckpointError(_unreadable(folder, error)) from error
        found = len(taxonomy.categories), len(taxonomy.subcategories), classifier.real_statistics.mean.shape
        if found != (config["categories"], config["subcategories"], (config["features"],)):
            raise CheckpointError(_unreadable(folder, ValueError("labels, statistics and config.json disagree")))
        return classifier

    @property
    def category_names(self) -> tuple[str, ...]:
        """Names of the categories; the index is the label."""
        return self.taxonomy.categories

    @property
    def subcategory_names(self) -> tuple[str, ...]:
        """Names of the subcategories; the index is the label."""
        return self.taxonomy.subcategories

    def class_of(self, prompt: str) -> EmojiClass:
        """Return the class of a prompt; raises PromptError for words that name no emoji."""
        return self.taxonomy.class_of(prompt)

    def features(self, images: Pictures) -> Floats:
        """Return the features, float64 [N, 64], of pictures uint8 [N, 32, 32, 3].

        Raises ShapeError for another shape or dtype.
        """
        return features_of(self._network, images).double().numpy()  # type: ignore[no-any-return]

    def categories(self, images: Pictures) -> Labels:
        """Return the label of the likeliest category, int64 [N], of pictures uint8 [N, 32, 32, 3].

        Raises ShapeError for another shape or dtype.
        """
        return self._network.category(features_of(self._network, images)).argmax(1).numpy()  # type: ignore[no-any-return]

    def subcategories(self, images: Pictures) -> Labels:
        """Return the label of the likeliest subcategory, int64 [N], of pictures uint8 [N, 32, 32, 3].

        Raises ShapeError for another shape or dtype.
        """
        return self._network.subcategory(features_of(self._network, images)).argmax(1).numpy()  # type: ignore[no-any-return]


def features_of(network: EmojiNetwork, images: Pictures) -> Tensor:
    """Return the features [N, F] of pictures uint8 [N, 32, 32, 3] by a network in evaluation mode.

    Raises ShapeError for another shape or dtype.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3) or not len(images):
        raise ShapeError(
            f"the classifier reads pictures of uint8 [N, {SIZE}, {SIZE}, 3]; got {images.dtype} {list(images.shape)}. "
            "Put the frames of clips one after another."
        )
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return torch.cat([network(part.float() / 127.5 - 1) for part in pixels.split(_BATCH)])


def _unreadable(folder: Path, error: Exception) -> str:
    return (
        f"The emoji classifier in {folder} cannot be read ({error}). Restore the folder, or train it again: "
        f"python -m tools.train_emoji_classifier --data emoji32.npz --output {folder}"
    )
