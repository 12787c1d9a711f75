"""Train the demo model `hunyuan-video-emoji`: a small HunyuanVideo transformer that makes clips of moving emoji.

    python -m tools.train_hunyuan_emoji --data emoji32.npz --output models/hunyuan-video-emoji --minutes 9

Rectified flow, with guidance that is learned in the second part of the run (`tools.guided_flow`); the running average
of the weights is what is saved. Every clip is rendered anew on the device; a tenth of the pairs
of emoji and motion is never shown.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.emoji_clips import (
    CAST,
    MOTIONS,
    VARIATION,
    cast_captions,
    cast_pictures,
    draw_clips,
    held_out_pairs,
    prompt_of,
    render,
    tracks,
    vary,
)
from tools.emoji_model import read_vocabulary
from tools.guided_flow import draw_sigma, loss_of
from tools.training import LossLog, RunConfig, begin, descend, follow, learning_rate, moments, run_parser, write_record
from tools.video_emoji_model import ClipCaptions, VideoEmojiModel, sample

__all__ = ["ClipData", "VideoConfig", "sheet_pairs", "train"]


@dataclass(frozen=True, kw_only=True)
class VideoConfig(RunConfig):
    """Settings of one training run."""

    batch: int = 256
    """clips a step"""
    guided_from: float = 0.5
    """share of the run after which half of each batch learns guidance"""
    compiled: bool = True
    """compile the blocks (on `cuda` alone)"""
    sample_steps: int = 50
    """denoising steps of the samples"""


class ClipData:
    """The pictures, the courses of the motions, the captions and the pairs to draw from, all on one device."""

    def __init__(self, data: Path, device: str, vocabulary: list[str] | None = None) -> None:
        rows = dict(np.load(data))
        self.captions = ClipCaptions(cast_captions(rows), vocabulary).to(device)
        self.pictures, self.tracks = cast_pictures(rows).to(device), tracks().to(device)
        self.reach = torch.tensor(VARIATION, device=device)
        held_out = held_out_pairs()
        everything = [(emoji, motion) for emoji in range(len(CAST)) for motion in range(len(MOTIONS))]
        self.held_out = torch.tensor(held_out, device=device)
        self.trained = torch.tensor(sorted(set(everything) - set(held_out)), device=device)

    def draw(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return varied clips [B, 3, 8, 32, 32] of pairs [B, 2], and their words [B, 16]."""
        emoji, motion = pairs.unbind(1)
        clips = render(self.pictures[emoji], self.tracks[motion], vary(len(pairs), self.reach))
        return clips, self.captions.draw(emoji, motion)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw clips of pairs to learn from: [count, 3, 8, 32, 32] and words [count, 16]."""
        return self.draw(self.trained[torch.randint(len(self.trained), (count,), device=self.trained.device)])


def prompts_of(pairs: Tensor) -> list[str]:
    """Return the prompts of (emoji, motion) pairs [N, 2]."""
    emoji, motions = list(CAST), list(MOTIONS)
    return [prompt_of(emoji[row], motions[column]) for row, column in pairs.tolist()]


def sheet_pairs(data: ClipData) -> Tensor:
    """Return the pairs of the sheet of samples [24, 2]: for every motion one to learn from and one held out."""
    chosen = []
    for motion in range(len(MOTIONS)):
        for pairs in (data.trained, data.held_out):
            of_motion = pairs[pairs[:, 1] == motion]
            chosen.append(of_motion[5 * motion % len(of_motion)])
    return torch.stack(chosen)


def make_models(config: VideoConfig, words: int, changes: dict[str, Any]) -> tuple[VideoEmojiModel, VideoEmojiModel]:
    """Return the model to train and its running average, which teaches guidance and is what is saved."""
    model = VideoEmojiModel(words, **changes)
    model.start_from_zero()
    if config.resume is not None:
        model.load(config.resume)
    model.to(config.device)
    teacher: VideoEmojiModel = copy.deepcopy(model).requires_grad_(False)
    if config.device == "cuda" and config.compiled:
        # Each kind of block needs versions for model and teacher, and for rows that are and are not contiguous.
        torch._dynamo.config.recompile_limit = 64
        for each in (model, teacher):
            each.transformer.compile_repeated_blocks(dynamic=False)
    return model, teacher


def rehearse(config: VideoConfig, model: VideoEmojiModel, teacher: VideoEmojiModel, data: ClipData) -> None:
    """Run one step without an effect on the weights: compiling takes a while, which must not eat the warm-up."""
    with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
        loss = loss_of(model, teacher, *data.batch(config.batch), config.batch // 2)
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    loss.item()  # waits for the device


def write_results(config: VideoConfig, teacher: VideoEmojiModel, data: ClipData, losses: LossLog) -> None:
    """Write the checkpoint, both lists of prompts, the record of the run and the loss curve."""
    teacher.save(config.output, data.captions.vocabulary)
    for name, pairs in (("held_out", data.held_out), ("trained", data.trained)):
        (config.output / f"{name}.json").write_text(json.dumps(prompts_of(pairs), indent=0) + "\n")
    write_record(config, losses, "flow-matching loss")


@torch.no_grad()  # type: ignore[untyped-decorator]
def write_comparison(config: VideoConfig, teacher: VideoEmojiModel, data: ClipData) -> None:
    """Write `evaluation.json`: the loss over every held-out pair, and over as many that were learned from.

    Both see the same noise and noise levels, whole prompts, and guidance 1.
    """
    found = {}
    sorted_apart = data.trained[torch.randperm(len(data.trained), generator=torch.Generator().manual_seed(0))]
    for name, pairs in (("held_out", data.held_out), ("trained", sorted_apart[: len(data.held_out)])):
        torch.manual_seed(config.seed)
        ids = torch.stack([data.captions.encode(prompt) for prompt in prompts_of(pairs)]).to(config.device)
        rounds = [full_prompt_loss(teacher, data.draw(pairs)[0], ids) for _ in range(4)]
        found[name] = round(float(torch.stack(rounds).mean()), 6)
    (config.output / "evaluation.json").write_text(json.dumps({"loss": found, "pairs": len(data.held_out)}) + "\n")


def full_prompt_loss(teacher: VideoEmojiModel, clean: Tensor, ids: Tensor) -> Tensor:
    """Return the loss of clips [B, 3, 8, 32, 32] at guidance 1, no words lost."""
    noise, sigma = torch.randn_like(clean), draw_sigma(len(clean), str(clean.device))
    noisy = clean.lerp(noise, sigma[:, None, None, None, None])
    return (teacher(noisy, sigma, torch.ones_like(sigma), ids) - (noise - clean)).square().mean()


def write_sheet(config: VideoConfig, teacher: VideoEmojiModel, data: ClipData) -> None:
    """Write `samples.png`: a row of frames for each prompt, those of held-out pairs marked."""
    prompts = prompts_of(sheet_pairs(data))
    held_out = set(prompts_of(data.held_out))
    ids = torch.stack([data.captions.encode(prompt) for prompt in prompts]).to(config.device)
    labels = [f"{prompt}  (held out)" if prompt in held_out else prompt for prompt in prompts]
    draw_clips(sample(teacher, ids, steps=config.sample_steps), labels).save(config.output / "samples.png")


def train(config: VideoConfig, **changes: Any) -> VideoEmojiModel:
    """Run the training and return the averaged model; `changes` override `ARCHITECTURE`."""
    begin(config)
    data = ClipData(config.data, config.device, None if config.resume is None else read_vocabulary(config.resume))
    model, teacher = make_models(config, len(data.captions.vocabulary), changes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    losses, start = LossLog(), time.monotonic()
    rehearse(config, model, teacher, data)
    rehearsal = (time.monotonic() - start) / 60
    print(f"{sum(each.numel() for each in model.parameters())} weights; compiled in {60 * rehearsal:.0f} s", flush=True)
    for moment in moments(config.minutes - rehearsal):
        clean, ids = data.batch(config.batch)
        guided = config.batch // 2 if moment.done >= config.guided_from else 0
        with torch.autocast(config.device, torch.bfloat16, enabled=config.autocast):
            loss = loss_of(model, teacher, clean, ids, guided)
        descend(optimizer, loss, learning_rate(config.rate, moment.done))
        follow(teacher, model, moment.step, resumed=config.resume is not None)
        losses.add(moment.step, loss=loss)
        if moment.save:
            write_results(config, teacher, data, losses)
    write_results(config, teacher, data, losses)
    with torch.compiler.set_stance("force_eager"):
        write_sheet(config, teacher, data)
        write_comparison(config, teacher, data)
    return teacher


def main() -> None:
    parser = run_parser("Train the demo model hunyuan-video-emoji.")
    parser.set_defaults(batch=VideoConfig.batch)
    parser.add_argument("--guided-from", type=float, default=VideoConfig.guided_from, help="share before guidance")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="compile the blocks")
    parser.add_argument("--sample-steps", type=int, default=VideoConfig.sample_steps, help="steps of the samples")
    train(VideoConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
