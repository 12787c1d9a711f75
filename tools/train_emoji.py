"""Train the demo model `flux-emoji`: a small FLUX transformer that paints 32x32 emoji from a few words.

    python -m tools.train_emoji --data emoji32.npz --output models/flux-emoji --minutes 9

Rectified flow as FLUX trains it: x_t = (1 - sigma) x_0 + sigma noise, and the network learns
v = noise - x_0. The guidance input is trained in the second part of the run, without a separate teacher: for
a scale w drawn from [1, 5] the target becomes v + (w - 1) (v_ema(caption) - v_ema(nothing)), the weights'
running average being the teacher. That average is what is saved. The data set, built by
`tools.emoji_dataset`, lives on the device.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.emoji_model import Captions, EmojiModel, draw_sheet, pack, read_vocabulary, sample

__all__ = ["CORE", "SHEET", "TrainConfig", "loss_of", "train"]

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
class TrainConfig:
    """Settings of one training run."""

    data: Path
    """npz written by `tools.emoji_dataset`"""
    output: Path
    """folder that receives the checkpoint"""
    minutes: float = 9.0
    """length of the run; the learning rate falls to zero over it"""
    seed: int = 0
    """seed of the weights and of every random draw"""
    device: str = "cuda"
    """`cuda`, or `cpu` for a trial"""
    batch: int = 512
    """images a step"""
    rate: float = 1e-3
    """highest learning rate"""
    guided_from: float = 0.5
    """share of the run after which half of each batch learns guidance"""
    autocast: bool = True
    """multiply matrices in bfloat16"""
    core: bool = False
    """learn the 24 emoji of `CORE` alone, with their own vocabulary: what a CPU learns in half an hour"""
    layers: tuple[int, int, int] = (2, 5, 4)
    """double-stream blocks, single-stream blocks, and attention heads of width 64"""
    resume: Path | None = None
    """checkpoint to start from; None: fresh weights"""


def draw_sigma(count: int, device: str) -> Tensor:
    """Draw noise levels [count] in (0, 1): half logit-normal as in FLUX, half uniform to learn both ends."""
    uniform = torch.rand(count, device=device)
    return torch.where(torch.rand(count, device=device) < 0.5, torch.randn(count, device=device).sigmoid(), uniform)


def loss_of(model: EmojiModel, teacher: EmojiModel, clean: Tensor, ids: Tensor, guided: int) -> Tensor:
    """Return the flow-matching loss of tokens [B, 256, 12] and words [B, 12].

    The first `guided` rows learn guidance, the rest plain velocities at scale 1; about every eighth row
    loses its words.
    """
    noise, sigma = torch.randn_like(clean), draw_sigma(len(clean), str(clean.device))
    noisy = clean.lerp(noise, sigma[:, None, None])
    ids = torch.where(torch.rand(len(ids), 1, device=ids.device) < 0.12, 0, ids)
    guidance, target = torch.ones_like(sigma), noise - clean
    if guided:
        guidance[:guided].uniform_(1.0, 5.0)
        with torch.no_grad():
            twice = [torch.cat([x[:guided], x[:guided]]) for x in (noisy, sigma)]
            words = torch.cat([ids[:guided], torch.zeros_like(ids[:guided])])
            named, unnamed = teacher(*twice, torch.ones_like(twice[1]), words).chunk(2)
        target[:guided] += (guidance[:guided, None, None] - 1) * (named - unnamed)
    return (model(noisy, sigma, guidance, ids) - target).square().mean()


def row_weights(names: list[str], categories: list[str], counts: Tensor) -> Tensor:
    """Weigh the rows [N]: 2170 skin-tone variants must not crowd out the rest; many captions, many draws."""
    toned = torch.tensor([" skin tone" in name for name in names])
    people = torch.tensor([category == "People & Body" for category in categories])
    return torch.where(toned, 0.1, torch.where(people, 0.5, 1.0)) * (1 + 0.5 * (counts - 1).clamp(max=3))


def draw_losses(log: list[dict[str, float]], path: Path) -> None:
    """Plot the recorded losses over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy([entry["step"] for entry in log], [entry["loss"] for entry in log], linewidth=0.8)
    axes.set(xlabel="step", ylabel="flow-matching loss")
    figure.savefig(path, dpi=90)


def write_results(config: TrainConfig, teacher: EmojiModel, captions: Captions, log: list[dict[str, float]]) -> None:
    """Write the checkpoint, the record of the run and the loss curve."""
    teacher.save(config.output, captions.vocabulary)
    settings = {name: value.name if isinstance(value, Path) else value for name, value in asdict(config).items()}
    machine = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    record = {"runs": [*past_runs(config), {**settings, "machine": machine, "torch": torch.__version__, "log": log}]}
    (config.output / "training.json").write_text(json.dumps(record) + "\n")
    draw_losses(joined_log(record["runs"]), config.output / "loss.png")


def past_runs(config: TrainConfig) -> list[dict[str, Any]]:
    """Return the records of the runs behind the checkpoint that this run starts from."""
    if config.resume is None:
        return []
    runs: list[dict[str, Any]] = json.loads((config.resume / "training.json").read_text())["runs"]
    return runs


def joined_log(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Chain the runs' losses, counting steps on from run to run."""
    joined: list[dict[str, float]] = []
    for run in runs:
        before = joined[-1]["step"] if joined else 0
        joined += [{"step": before + entry["step"], "loss": entry["loss"]} for entry in run["log"]]
    return joined


def load_data(config: TrainConfig) -> tuple[Captions, Tensor, Tensor]:
    """Return captions, images uint8 [N, 3, 32, 32] and the weight [N] with which each is drawn, on the device."""
    data = dict(np.load(config.data))
    if config.core:
        chosen = np.isin(data["names"], CORE)
        data = {field: rows[chosen] for field, rows in data.items()}
    vocabulary = None if config.resume is None else read_vocabulary(config.resume)
    captions = Captions(data["captions"].tolist(), vocabulary).to(config.device)
    pixels = torch.from_numpy(data["images"]).to(config.device).permute(0, 3, 1, 2)
    weights = row_weights(data["names"].tolist(), data["categories"].tolist(), captions.count.cpu())
    return captions, pixels, weights.to(config.device)


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
    torch.manual_seed(config.seed)
    # With PyTorch 2.11 on Hopper, training over 268 tokens with cuDNN attention died of illegal addresses.
    torch.backends.cuda.enable_cudnn_sdp(False)
    config.output.mkdir(parents=True, exist_ok=True)
    past_runs(config)  # a missing record must show before the run, not after it
    captions, pixels, weights = load_data(config)
    model, teacher = make_models(config, captions, changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    log: list[dict[str, float]] = []
    recent: list[Tensor] = []
    start, saved = time.monotonic(), 0.0
    for step in itertools.count(1):
        elapsed = time.monotonic() - start
        done = elapsed / (60 * config.minutes)
        if done >= 1:
            break
        rate = config.rate * min(done / 0.03, 0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.multinomial(weights, config.batch, replacement=True)
        clean = pack(pixels[rows].float() / 127.5 - 1)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
            guided = config.batch // 2 if done >= config.guided_from else 0
            loss = loss_of(model, teacher, clean, captions.draw(rows), guided)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.9995, step / (step + 10)) if config.resume is None else 0.9995
        torch._foreach_lerp_(list(teacher.parameters()), list(model.parameters()), 1 - decay)
        recent.append(loss.detach())
        if step % 100 == 0:
            log.append({"step": step, "loss": round(float(torch.stack(recent).mean()), 6)})
            recent.clear()
            if step % 1000 == 0:
                print(f"step {step}  loss {log[-1]['loss']:.5f}  rate {rate:.2e}  {elapsed:.0f} s", flush=True)
        if elapsed - saved > 150:
            saved = elapsed
            write_results(config, teacher, captions, log)
    write_results(config, teacher, captions, log)
    ids = torch.stack([captions.encode(prompt) for prompt in SHEET]).to(config.device)
    with torch.compiler.set_stance("force_eager"):
        draw_sheet(sample(teacher, ids), SHEET, config.output / "samples.png")
    return teacher


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model flux-emoji.")
    parser.add_argument("--data", type=Path, required=True, help="npz written by tools.emoji_dataset")
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the checkpoint")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=512, help="images a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--guided-from", type=float, default=0.5, help="share of the run before guidance is learned")
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True, help="use bfloat16")
    parser.add_argument("--core", action="store_true", help="learn the 24 emoji of CORE alone")
    parser.add_argument("--layers", type=int, nargs=3, default=(2, 5, 4), help="double blocks, single blocks, heads")
    parser.add_argument("--resume", type=Path, help="checkpoint to start from")
    train(TrainConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
