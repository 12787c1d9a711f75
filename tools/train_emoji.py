"""Train the demo model `flux-emoji`: a small FLUX transformer that paints 32x32 emoji from a few words.

    python -m tools.train_emoji --data emoji32.npz --output models/flux-emoji --minutes 9

Rectified flow, with guidance that is learned in the second part of the run (`tools.guided_flow`); the running average
of the weights is what is saved. The data set, built by `tools.emoji_dataset`, lives on the device.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.emoji_model import Captions, EmojiModel, draw_sheet, pack, read_vocabulary, sample
from tools.guided_flow import loss_of
from tools.training import (
    LossLog,
    RunConfig,
    begin,
    descend,
    follow,
    learning_rate,
    moments,
    row_weights,
    run_parser,
    write_record,
)

__all__ = ["CORE", "SHEET", "TrainConfig", "train"]

SHEET = (
    "red heart", "pizza", "flag japan", "grinning face", "rocket", "cat face",
    "sun", "rainbow", "soccer ball", "red apple", "penguin", "christmas tree",
    "hot beverage", "birthday cake", "airplane", "octopus", "thumbs up", "smiley",
    "french flag", "a house", "unicorn", "green heart", "banana", "fire",
)  # fmt: skip
"""Prompts of the sheet of samples."""

CORE = (
    "heavy black heart", "slice of pizza", "japan flag", "grinning face", "rocket", "cat face",
    "black sun with rays", "rainbow", "soccer ball", "red apple", "penguin", "christmas tree",
    "hot beverage", "birthday cake", "airplane", "octopus", "thumbs up sign", "smiling face with open mouth",
    "france flag", "house building", "unicorn face", "green heart", "banana", "fire",
)  # fmt: skip
"""Names of the emoji behind `SHEET`, in its order."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of one training run."""

    guided_from: float = 0.5
    """share of the run after which half of each batch learns guidance"""
    core: bool = False
    """learn the 24 emoji of `CORE` alone, with their own vocabulary: what a CPU learns in half an hour"""
    layers: tuple[int, int, int] = (2, 5, 4)
    """double-stream blocks, single-stream blocks, and attention heads of width 64"""


def write_results(config: TrainConfig, teacher: EmojiModel, captions: Captions, losses: LossLog) -> None:
    """Write the checkpoint, the record of the run and the loss curve."""
    teacher.save(config.output, captions.vocabulary)
    write_record(config, losses, "flow-matching loss")


def load_data(config: TrainConfig) -> tuple[Captions, Tensor, Tensor]:
    """Return captions, images uint8 [N, 3, 32, 32] and the weight [N] with which each is drawn, on the device."""
    data = dict(np.load(config.data))
    if config.core:
        chosen = np.isin(data["names"], CORE)
        data = {field: rows[chosen] for field, rows in data.items()}
    vocabulary = None if config.resume is None else read_vocabulary(config.resume)
    captions = Captions(data["captions"].tolist(), vocabulary).to(config.device)
    pixels = torch.from_numpy(data["images"]).to(config.device).permute(0, 3, 1, 2)
    weights = row_weights(data["names"].tolist(), data["categories"].tolist()).to(config.device)
    # Many captions, many draws.
    return captions, pixels, weights * (1 + 0.5 * (captions.count - 1).clamp(max=3))


def make_models(config: TrainConfig, captions: Captions, changes: dict[str, Any]) -> tuple[EmojiModel, EmojiModel]:
    """Return the model to train and its running average, which teaches guidance and is what is saved."""
    model = EmojiModel(len(captions.vocabulary), **changes)
    model.start_from_zero()
    if config.resume is not None:
        model.load(config.resume)
    model.to(config.device)
    teacher: EmojiModel = copy.deepcopy(model).requires_grad_(False)
    if config.device == "cuda":
        for each in (model, teacher):
            each.transformer.compile_repeated_blocks(dynamic=False)
    return model, teacher


def train(config: TrainConfig, **changes: Any) -> EmojiModel:
    """Run the training and return the averaged model; `changes` override `ARCHITECTURE`."""
    sizes = ("num_layers", "num_single_layers", "num_attention_heads")
    changes = dict(zip(sizes, config.layers, strict=True)) | changes
    begin(config)
    captions, pixels, weights = load_data(config)
    model, teacher = make_models(config, captions, changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    losses = LossLog()
    for moment in moments(config.minutes):
        rows = torch.multinomial(weights, config.batch, replacement=True)
        clean = pack(pixels[rows].float() / 127.5 - 1)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
            guided = config.batch // 2 if moment.done >= config.guided_from else 0
            loss = loss_of(model, teacher, clean, captions.draw(rows), guided)
        descend(optimizer, loss, learning_rate(config.rate, moment.done))
        follow(teacher, model, moment.step, resumed=config.resume is not None)
        losses.add(moment.step, loss=loss)
        if moment.save:
            write_results(config, teacher, captions, losses)
    write_results(config, teacher, captions, losses)
    ids = torch.stack([captions.encode(prompt) for prompt in SHEET]).to(config.device)
    with torch.compiler.set_stance("force_eager"):
        draw_sheet(sample(teacher, ids), SHEET, config.output / "samples.png")
    return teacher


def main() -> None:
    parser = run_parser("Train the demo model flux-emoji.")
    parser.add_argument("--guided-from", type=float, default=0.5, help="share of the run before guidance is learned")
    parser.add_argument("--core", action="store_true", help="learn the 24 emoji of CORE alone")
    parser.add_argument("--layers", type=int, nargs=3, default=(2, 5, 4), help="double blocks, single blocks, heads")
    train(TrainConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
