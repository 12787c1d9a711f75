"""Train the demo model `dit-emoji`: a small DiT that paints 32x32 emoji of a category or subcategory.

    python -m tools.train_dit_emoji --data emoji32.npz --output models/dit-emoji --minutes 9

DiT's recipe (arXiv:2212.09748, `train.py` and `models.py` of facebookresearch/DiT) without a VAE, with two losses:
the squared error of the velocity signal * noise - spread * image (arXiv:2202.00512, appendix D; the noise scheduler's
`prediction_type` may say noise instead), and, for three further channels that say where the variance of a denoising
step lies between its two bounds, the variational bound (Improved DDPM, arXiv:2102.09672, equations 15 and 16:
L_simple + 0.001 L_vlb with 1000 noise levels). The velocity is what makes a short run obey its labels: the noise of
a nearly pure noise image hardly depends on the image, so that its error teaches little about color and outline.
One image in ten loses its label, for classifier-free guidance. The labels are the categories, then the
subcategories; each image is shown under both, half of the time each. What is saved is the running average of the
weights. The data set, built by `tools.emoji_dataset`, lives on the device.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from tools.emoji_model import draw_sheet
from tools.noise_levels import NoiseLevels
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
    save_half,
    write_record,
)

__all__ = ["SHEET", "DitConfig", "Labels", "class_names", "loss_of", "make_model", "sample", "train"]

MODEL: dict[str, Any] = json.loads((Path(__file__).parents[1] / "exporter" / "models" / "dit-emoji.json").read_text())
"""The published size: architecture, noise scheduler and default guidance."""

SHEET = (
    "face-smiling", "face-affection", "face-glasses", "cat-face", "monkey-face", "heart", "animal-mammal",
    "animal-bird", "animal-bug", "animal-marine", "plant-flower", "plant-other", "food-fruit", "food-vegetable",
    "food-sweet", "drink", "country-flag", "clothing", "sport", "transport-ground", "transport-air", "sky & weather",
    "time", "zodiac", "geometric", "arrow", "person-role", "hand-fingers-open", "place-building", "music",
    "Animals & Nature", "Food & Drink",
)  # fmt: skip
"""Classes of the sheet of samples."""


@dataclass(frozen=True, kw_only=True)
class DitConfig(RunConfig):
    """Settings of one training run."""

    rate: float = 6e-4
    """highest learning rate"""
    compiled: bool = False
    """train through `torch.compile`: a minute of compilation, then faster steps"""


def class_names(categories: list[str], subcategories: list[str]) -> list[str]:
    """Return the names of the labels in their order: the categories, then the subcategories, each alphabetical."""
    names = sorted(set(categories)) + sorted(set(subcategories))
    if len(set(names)) < len(names):
        twice = sorted(set(categories) & set(subcategories))
        raise ValueError(f"{', '.join(twice)}: both a category and a subcategory, so that the name says not which.")
    return names


class Labels:
    """The labels of every image, int64 [N, 2]: its category and its subcategory."""

    def __init__(self, categories: list[str], subcategories: list[str], device: str) -> None:
        self.names = class_names(categories, subcategories)
        index = {name: label for label, name in enumerate(self.names)}
        pairs = [[index[names[0]], index[names[1]]] for names in zip(categories, subcategories, strict=True)]
        self.pairs = torch.tensor(pairs, device=device)

    @property
    def null(self) -> int:
        """The label of no class, as diffusers' `LabelEmbedding` has it: the one after the last."""
        return len(self.names)

    def draw(self, rows: Tensor) -> Tensor:
        """Pick category or subcategory for each image row [B], and for one in ten neither: int64 [B]."""
        chosen = self.pairs[rows, torch.randint(2, rows.shape, device=rows.device)]
        return torch.where(torch.rand(rows.shape, device=rows.device) < 0.1, self.null, chosen)


def make_model(classes: int, **changes: Any) -> DiTTransformer2DModel:
    """Return the network with DiT's initial weights: blocks are the identity, and the output is zero.

    It is in evaluation mode for good: in training mode each block of diffusers would drop labels by itself, so
    that most images kept their label in some blocks and lost it in others.
    """
    model = DiTTransformer2DModel(**(MODEL["config"] | {"num_embeds_ada_norm": classes} | changes)).eval()
    for name, module in model.named_modules():
        if name.endswith(("norm1.linear", "proj_out_1", "proj_out_2")):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding) or "timestep_embedder.linear" in name:
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.zeros_(module.bias)
    # Under autocast the residual stream stays fp32.
    model.pos_embed.register_forward_hook(lambda module, inputs, output: output.float())
    return model


def loss_of(model: Any, levels: NoiseLevels, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared error of the prediction, and the bound, of images [B, 3, S, S] with labels [B]."""
    timesteps = torch.randint(levels.count, (len(clean),), device=clean.device)
    noise = torch.randn_like(clean)
    signal, spread = levels.at("signal", timesteps), levels.at("noise", timesteps)
    output = model(signal * clean + spread * noise, timestep=timesteps, class_labels=labels, return_dict=False)[0]
    predicted, between = output.float().chunk(2, dim=1)
    if levels.velocity:
        off = signal * noise - spread * clean - predicted
        error = signal * off.detach()  # of the noise, which is signal * velocity + spread * noisy image
    else:
        off = noise - predicted
        error = off.detach()
    return off.square().mean(), levels.bound(timesteps, clean, error, between)


@torch.no_grad()  # type: ignore[untyped-decorator]
def sample(
    model: DiTTransformer2DModel, labels: Tensor, *, steps: int = 50, guidance: float | None = None, seed: int = 0
) -> Tensor:
    """Paint labels [B] by DDIM with classifier-free guidance: images [B, 3, S, S] in [-1, 1]."""
    guidance = MODEL["pipeline"]["guidance"] if guidance is None else guidance
    scheduler, config = make_scheduler(), model.config
    scheduler.set_timesteps(steps)
    shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(labels.device)
    both = torch.cat([labels, torch.full_like(labels, config.num_embeds_ada_norm)])
    for timestep in scheduler.timesteps.tolist():
        arguments = {"timestep": torch.full_like(both, timestep), "class_labels": both, "return_dict": False}
        output = model(torch.cat([latent, latent]), **arguments)[0][:, : config.in_channels]
        named, unnamed = output.chunk(2)
        latent = scheduler.step(unnamed + guidance * (named - unnamed), timestep, latent).prev_sample
    return latent.clamp(-1, 1)


def make_scheduler() -> DDIMScheduler:
    """Return the model's noise scheduler."""
    return DDIMScheduler(**{name: value for name, value in MODEL["pipeline"]["scheduler"].items() if name[0] != "_"})


def write_results(config: DitConfig, average: DiTTransformer2DModel, names: list[str], losses: LossLog) -> None:
    """Write the checkpoint, the class names, the record of the run, the loss curve and the sheet of samples."""
    save_half(average, config.output / "transformer")
    make_scheduler().save_pretrained(config.output / "scheduler")
    (config.output / "classes.json").write_text(json.dumps(names, indent=0) + "\n")
    write_record(config, losses, "loss (velocity + variance)")
    shown = [name for name in SHEET if name in names] or names
    labels = torch.tensor([names.index(name) for name in shown], device=config.device)
    draw_sheet(sample(average, labels), tuple(shown), config.output / "samples.png")


def start_from(model: DiTTransformer2DModel, folder: Path, names: list[str]) -> None:
    """Load the weights of a checkpoint, whose classes must be those of the data."""
    found = json.loads((folder / "classes.json").read_text())
    if found != names:
        raise ValueError(f"{folder} has {len(found)} classes, which are not the {len(names)} of the data in order.")
    loaded = DiTTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())


def train(config: DitConfig, **changes: Any) -> DiTTransformer2DModel:
    """Run the training and return the averaged model; `changes` override the published architecture."""
    begin(config)
    data = dict(np.load(config.data))
    categories = data["categories"].tolist()
    labels = Labels(categories, data["subcategories"].tolist(), config.device)
    weights = row_weights(data["names"].tolist(), categories).to(config.device)
    pixels = torch.from_numpy(data["images"]).to(config.device).permute(0, 3, 1, 2)
    model = make_model(len(labels.names), **changes)
    if config.resume is not None:
        start_from(model, config.resume, labels.names)
    average = copy.deepcopy(model.to(config.device)).requires_grad_(False)
    forward = torch.compile(model, dynamic=False) if config.compiled else model
    levels = NoiseLevels(make_scheduler(), config.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    losses = LossLog()
    for moment in moments(config.minutes):
        rows = torch.multinomial(weights, config.batch, replacement=True)
        clean = pixels[rows].float() / 127.5 - 1
        with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
            error, bound = loss_of(forward, levels, clean, labels.draw(rows))
        descend(optimizer, error + bound, learning_rate(config.rate, moment.done))
        follow(average, model, moment.step, resumed=config.resume is not None)
        losses.add(moment.step, loss=error + bound, error=error, bound=bound)
        if moment.save:
            write_results(config, average, labels.names, losses)
    write_results(config, average, labels.names, losses)
    return average


def main() -> None:
    parser = run_parser("Train the demo model dit-emoji.")
    parser.set_defaults(rate=DitConfig.rate)
    parser.add_argument("--compiled", action="store_true", help="train through torch.compile")
    train(DitConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
