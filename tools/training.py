"""What the training runs of the demo models share: their clock, descent, running average, losses and record.

config = RunConfig(**vars(run_parser("Train ...").parse_args()))
begin(config)
losses = LossLog()
for moment in moments(config.minutes):
    ...
    descend(optimizer, loss, learning_rate(config.rate, moment.done))
    follow(average, model, moment.step, resumed=config.resume is not None)
    losses.add(moment.step, loss=loss)
    if moment.save:
        write_record(config, losses, "flow-matching loss")
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

__all__ = [
    "LossLog", "Moment", "RunConfig", "begin", "descend", "draw_losses", "follow", "joined_log", "learning_rate",
    "moments", "past_runs", "row_weights", "run_parser", "save_half", "write_record",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings that every training run has."""

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
    autocast: bool = True
    """multiply matrices in bfloat16"""
    resume: Path | None = None
    """checkpoint to start from; None: fresh weights"""


def run_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the settings of `RunConfig`, to which a run adds its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="npz written by tools.emoji_dataset")
    parser.add_argument("--output", type=Path, required=True, help="folder that receives the checkpoint")
    parser.add_argument("--minutes", type=float, default=RunConfig.minutes, help="length of the run")
    parser.add_argument("--seed", type=int, default=RunConfig.seed)
    parser.add_argument("--device", choices=("cuda", "cpu"), default=RunConfig.device)
    parser.add_argument("--batch", type=int, default=RunConfig.batch, help="images a step")
    parser.add_argument("--rate", type=float, default=RunConfig.rate, help="highest learning rate")
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True, help="use bfloat16")
    parser.add_argument("--resume", type=Path, help="checkpoint to start from")
    return parser


def begin(config: RunConfig) -> None:
    """Seed the random draws and make the output folder.

    Raises FileNotFoundError when the record of a run to go on from is missing, and ValueError when this run would
    overwrite it.
    """
    torch.manual_seed(config.seed)
    # With PyTorch 2.11 on Hopper, training over 268 tokens with cuDNN attention died of illegal addresses.
    torch.backends.cuda.enable_cudnn_sdp(False)
    past_runs(config)  # a missing record must show before the run, not after it
    if config.resume is not None and config.resume.resolve() == config.output.resolve():
        raise ValueError(f"the run starts from {config.resume} and would overwrite it. Give another output folder.")
    config.output.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Moment:
    """One step of a run, and where in the run it lies."""

    step: int
    """counts from 1"""
    done: float
    """share of the run's time that has passed, in [0, 1)"""
    save: bool
    """the last save was long ago: write the checkpoint after this step"""


def moments(minutes: float, *, save_every: float = 150.0) -> Iterator[Moment]:
    """Yield the steps of a run until its time is over or it is told to stop, by SIGTERM or Ctrl-C.

    A second signal ends the process at once. `save_every` is in seconds.
    """
    stopped: list[int] = []
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        restore()

    for each in before:
        signal.signal(each, stop)
    try:
        start, saved = time.monotonic(), 0.0
        for step in itertools.count(1):
            elapsed = time.monotonic() - start
            if stopped or elapsed >= 60 * minutes:
                return
            save = elapsed - saved > save_every
            saved = elapsed if save else saved
            yield Moment(step, elapsed / (60 * minutes), save)
    finally:
        restore()


def learning_rate(highest: float, done: float) -> float:
    """Return the rate after the share `done` of the run: a linear warm-up of 3 %, then a cosine down to zero."""
    return highest * min(done / 0.03, 0.5 + 0.5 * math.cos(math.pi * done))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """Take one step down the loss at a learning rate, with gradients clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def follow(average: nn.Module, model: nn.Module, step: int, *, resumed: bool = False, decay: float = 0.9995) -> None:
    """Move the running average of the weights towards the model; without `resumed` it begins by following closely."""
    decay = decay if resumed else min(decay, step / (step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


class LossLog:
    """The mean losses of every `every` steps."""

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self.entries: list[dict[str, float]] = []
        self.steps = 0
        self._recent: dict[str, list[Tensor]] = {}

    def add(self, step: int, **losses: Tensor) -> None:
        """Note the losses of a step; `loss` is the one that is plotted, others may stand beside it.

        Raises FloatingPointError when a mean is not finite: the checkpoint last saved is the better one.
        """
        self.steps = step
        for name, loss in losses.items():
            self._recent.setdefault(name, []).append(loss.detach())
        if step % self.every == 0:
            means = {name: float(torch.stack(recent).mean()) for name, recent in self._recent.items()}
            self._recent.clear()
            if not all(map(math.isfinite, means.values())):
                raise FloatingPointError(f"the losses of the steps before {step} are {means}.")
            self.entries.append({"step": step, **{name: round(mean, 6) for name, mean in means.items()}})
            if step % (10 * self.every) == 0:
                print(f"step {step}  " + "  ".join(f"{name} {mean:.5f}" for name, mean in means.items()), flush=True)


def write_record(config: RunConfig, losses: LossLog, label: str) -> None:
    """Write `training.json` and `loss.png`: the settings and losses of this run and of those that it goes on from."""
    settings = {name: value.name if isinstance(value, Path) else value for name, value in asdict(config).items()}
    machine = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    run = {**settings, "machine": machine, "torch": torch.__version__, "steps": losses.steps, "log": losses.entries}
    record = {"runs": [*past_runs(config), run]}
    (config.output / "training.json").write_text(json.dumps(record) + "\n")
    draw_losses(joined_log(record["runs"]), config.output / "loss.png", label)


def past_runs(config: RunConfig) -> list[dict[str, Any]]:
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


def draw_losses(log: list[dict[str, float]], path: Path, label: str) -> None:
    """Plot the recorded losses over the steps."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy([entry["step"] for entry in log], [entry["loss"] for entry in log], linewidth=0.8)
    axes.set(xlabel="step", ylabel=label)
    figure.savefig(path, dpi=90)


def row_weights(names: list[str], categories: list[str]) -> Tensor:
    """Weigh the images [N] of the emoji data set: 1875 skin-tone variants must not crowd out the rest."""
    toned = torch.tensor([" skin tone" in name for name in names])
    people = torch.tensor([category == "People & Body" for category in categories])
    return torch.where(toned, 0.1, torch.where(people, 0.5, 1.0))


def save_half(model: Any, folder: Path) -> None:
    """Write a model of diffusers in float16."""
    copy.deepcopy(model).half().save_pretrained(folder)
