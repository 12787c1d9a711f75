"""Train `emoji-classifier`: a small network that tells the category and the subcategory of a 32x32 emoji.

    python -m tools.train_emoji_classifier --data emoji32.npz --output models/emoji-classifier --minutes 12

Its 64 features are for the Frechet distance, and its answers for the accuracy, of generated pictures and of frames of
clips. So training varies the pictures as those differ from emoji: in place, size, turn, blur, noise and paleness.
The loss is the sum of two cross-entropies, with labels smoothed by 0.1. A fifth of the emoji are held out, each with
all of its variants, as `tools.emoji_split` says; what is saved has never seen them, and its accuracy is measured on
them, with the weights as they are saved. One thread of a CPU suffices.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tools.emoji_classifier import EmojiClassifier, EmojiNetwork, features_of
from tools.emoji_split import EmojiData
from tools.quality_metrics import FeatureStatistics, accuracy
from tools.training import (
    LossLog,
    RunConfig,
    begin,
    descend,
    learning_rate,
    moments,
    run_parser,
    write_record,
)

__all__ = ["ARCHITECTURE", "ClassifierConfig", "evaluate", "loss_of", "save", "train", "vary"]

ARCHITECTURE: dict[str, Any] = {"widths": (40, 80, 160), "features": 64}


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(RunConfig):
    """Settings of one training run."""

    minutes: float = 12.0
    """length of the run; the learning rate falls to zero over it"""
    device: str = "cpu"
    """`cpu`, or `cuda`"""
    batch: int = 64
    """images a step"""
    rate: float = 2e-3
    """highest learning rate"""


def vary(images: Tensor) -> Tensor:
    """Vary images [B, 3, S, S] in [-1, 1] over white, each in its own way, as generated pictures and clips vary."""
    moved = _move(images)
    blurred = functional.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    moved = torch.lerp(moved, blurred, _uniform(moved, -0.3, 1.0))
    paler = 1 + _uniform(moved, 0.6, 1.1) * (moved - 1)
    tinted = paler + _uniform(moved, -0.1, 0.1, channels=3)
    noisy = tinted + 0.15 * _uniform(moved, 0, 1) ** 2 * torch.randn_like(moved)
    return noisy.clamp(-1, 1)


def _move(images: Tensor) -> Tensor:
    """Turn, scale, mirror and shift; one in five turns up to a quarter, and half of them are as small as in clips."""
    some = _uniform(images, 0, 1) < 0.2
    angle = torch.where(some, _uniform(images, -90, 90), _uniform(images, -15, 15)).flatten() * math.pi / 180
    small = _uniform(images, 0, 1) < 0.5
    size = torch.where(small, _uniform(images, 0.5, 0.9), _uniform(images, 0.9, 1.15)).flatten()
    mirror = torch.where(_uniform(images, 0, 1) < 0.5, -1.0, 1.0).flatten()
    cosine, sine = angle.cos() / size, angle.sin() / size
    shift = _uniform(images, -0.2, 0.2, channels=2).view(-1, 2)
    rows = torch.stack([mirror * cosine, -mirror * sine, shift[:, 0], sine, cosine, shift[:, 1]], dim=1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    moved: Tensor = functional.grid_sample(images - 1, grid, align_corners=False) + 1  # outside is white
    return moved


def _uniform(images: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
    """Draw numbers [B, channels, 1, 1] for images [B, ...]."""
    return torch.empty(len(images), channels, 1, 1, device=images.device).uniform_(low, high)


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies of the category and of the subcategory of images [B, 3, S, S] with labels [B, 2]."""
    features = network(images)
    category = functional.cross_entropy(network.category(features), labels[:, 0], label_smoothing=0.1)
    subcategory = functional.cross_entropy(network.subcategory(features), labels[:, 1], label_smoothing=0.1)
    return category, subcategory


def save(network: EmojiNetwork, architecture: dict[str, Any], data: EmojiData, folder: Path) -> None:
    """Write what `EmojiClassifier.load` reads, and the names of the held-out emoji.

    The weights are rounded to float16, and the statistics are those of the rounded weights.
    """
    rounded = copy.deepcopy(network).half()
    weights = {name: weight.cpu().contiguous() for name, weight in rounded.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(architecture) + "\n")
    write_json(folder / "labels.json", data.taxonomy.names)
    write_json(folder / "held_out.json", sorted(set(np.array(data.names)[data.test].tolist())))
    features = features_of(rounded.float().cpu().eval(), data.images).double().numpy()
    real = FeatureStatistics.of(features)
    np.savez_compressed(
        folder / "real_statistics.npz",
        mean=real.mean,
        covariance=real.covariance,
        count=real.count,
        features=features.astype(np.float16),
        names=np.array(data.names),
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON that is read line by line in a diff."""
    path.write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def evaluate(classifier: EmojiClassifier, data: EmojiData) -> dict[str, Any]:
    """Return the accuracy of both heads, with 95 % intervals, on both sides of the split.

    `emoji` has the first variant of each emoji, `pictures` all variants, and `varied` those of `emoji` as training
    varies them.
    """
    held, trained, pictures = data.emoji(test=True), data.emoji(test=False), np.flatnonzero(data.test)
    torch.manual_seed(0)
    varied = to_pictures(vary(to_tensor(data.images[held])))
    sets = {
        "held_out_emoji": (held, data.images[held]),
        "held_out_emoji_varied": (held, varied),
        "held_out_pictures": (pictures, data.images[pictures]),
        "trained_emoji": (trained, data.images[trained]),
    }
    return {name: _accuracies(classifier, images, data, rows) for name, (rows, images) in sets.items() if len(rows) > 1}


def _accuracies(
    classifier: EmojiClassifier, images: NDArray[np.uint8], data: EmojiData, rows: NDArray[np.int64]
) -> dict[str, Any]:
    groups = data.groups[rows].tolist()
    answers = {"category": classifier.categories(images), "subcategory": classifier.subcategories(images)}
    rates = {
        head: asdict(accuracy(answer == data.labels[rows, column], groups=groups))
        for column, (head, answer) in enumerate(answers.items())
    }
    return {"pictures": len(rows), **rates}


def draw_confusion(classifier: EmojiClassifier, data: EmojiData, path: Path) -> None:
    """Draw which category the held-out emoji of each category are taken for, in percent of the row."""
    rows, names = data.emoji(test=True), classifier.category_names
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (data.labels[rows, 0], classifier.categories(data.images[rows])), 1)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(shares >= 0.5):
        color = "white" if shares[row, column] > 60 else "black"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(
        range(len(names)), [f"{name} ({total:.0f})" for name, total in zip(names, counts.sum(1), strict=True)]
    )
    axes.set(xlabel="taken for (%)", ylabel="held-out emoji (number)")
    figure.savefig(path, dpi=90)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Return pictures uint8 [N, S, S, 3] as float [N, 3, S, S] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(images: Tensor) -> NDArray[np.uint8]:
    """Return float [N, 3, S, S] in [-1, 1] as pictures uint8 [N, S, S, 3]."""
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # type: ignore[no-any-return]


def write_results(
    config: ClassifierConfig, network: EmojiNetwork, architecture: dict[str, Any], data: EmojiData, losses: LossLog
) -> EmojiClassifier:
    """Write the checkpoint, the record of the run with its accuracies, the loss curve and the confusions."""
    save(network, architecture, data, config.output)
    write_record(config, losses, "cross-entropy (both heads)")
    classifier = EmojiClassifier.load(config.output)
    record = json.loads((config.output / "training.json").read_text())
    record["accuracy"] = evaluate(classifier, data)
    (config.output / "training.json").write_text(json.dumps(record) + "\n")
    draw_confusion(classifier, data, config.output / "confusion.png")
    return classifier


def start_from(network: EmojiNetwork, folder: Path, data: EmojiData) -> None:
    """Load the weights of a checkpoint, which must not have seen what is held out now."""
    names = set(np.array(data.names)[data.test].tolist())
    if not names <= set(json.loads((folder / "held_out.json").read_text())):
        raise ValueError(f"{folder} was trained on emoji that this run would test on. Give the seed of that run.")
    weights = load_file(folder / "model.safetensors")
    network.load_state_dict({name: weight.to(network.state_dict()[name].dtype) for name, weight in weights.items()})


def train(config: ClassifierConfig, **changes: Any) -> EmojiClassifier:
    """Run the training and return the classifier as it is saved; `changes` override the published architecture."""
    begin(config)
    data = EmojiData(config.data, config.seed)
    counts = {"categories": len(data.taxonomy.categories), "subcategories": len(data.taxonomy.subcategories)}
    architecture = {**ARCHITECTURE, **counts, **changes}
    network = EmojiNetwork(**architecture)
    if config.resume is not None:
        start_from(network, config.resume, data)
    network.to(config.device, memory_format=torch.channels_last).train()
    pixels, labels = to_tensor(data.images).to(config.device), torch.from_numpy(data.labels).to(config.device)
    weights = data.weights.to(config.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=0.05)
    losses = LossLog()
    for moment in moments(config.minutes):
        rows = torch.multinomial(weights, config.batch, replacement=True)
        images = vary(pixels[rows]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
            category, subcategory = loss_of(network, images, labels[rows])
        descend(optimizer, category + subcategory, learning_rate(config.rate, moment.done))
        losses.add(moment.step, loss=category + subcategory, category=category, subcategory=subcategory)
        if moment.save:
            write_results(config, network, architecture, data, losses)
    return write_results(config, network, architecture, data, losses)


def main() -> None:
    parser = run_parser("Train the classifier of emoji.")
    defaults = {name: getattr(ClassifierConfig, name) for name in ("minutes", "device", "batch", "rate")}
    parser.set_defaults(**defaults)
    torch.set_num_threads(1)  # a second thread gains little, and loses where the machine is shared
    train(ClassifierConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
