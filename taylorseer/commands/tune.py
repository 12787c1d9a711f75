"""``taylorseer tune``: the best full steps and weights for a number of full steps, as a schedule file."""

import argparse
import json
import math
import pathlib
import sys
from typing import TYPE_CHECKING

from taylorseer.bundle import open_bundle
from taylorseer.commands.options import add_json_option
from taylorseer.commands.progress import progress_bar
from taylorseer.config import CacheConfig
from taylorseer.errors import DependencyError, InputError, OutputError
from taylorseer.schedule_file import ScheduleFile

if TYPE_CHECKING:
    from taylorseer.runtime.held_out import Gain
    from taylorseer.runtime.tuning import Tuning

__all__ = ["add_options", "run"]

SUMMARY = "calibrate on a few prompts: the best full steps and weights for a number of full steps"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="number of full steps")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="a text file with one prompt a line")
    parser.add_argument(
        "--held-out", metavar="FILE", help="prompts that the gain is measured on (default: half of --prompts)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds for each prompt")
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="which half of --prompts is held out")
    parser.add_argument("--steps", type=int, metavar="N", help="number of denoising steps (default: the bundle's)")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument(
        "--minutes", type=float, default=2.0, metavar="M", help="how long full steps are moved by trial (default 2)"
    )
    parser.add_argument("--output", default="out/schedule.json", metavar="FILE.json", help="the schedule file")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Tune, measure on what was held out, write the schedule file and print what it gains."""
    _check(options)
    bundle = open_bundle(options.bundle)
    try:
        from taylorseer.runtime.generation import Generator
        from taylorseer.runtime.held_out import measure_gain
        from taylorseer.runtime.tuning import tune
        from taylorseer.runtime.whole_file import write_whole
    except ImportError as error:
        raise DependencyError(f"This needs {error.name}: `pip install 'taylorseer-trt[onnxruntime]'`.") from error
    calibrated, held_out = _prompts(options)
    # Other noise as well as other prompts.
    requests = [(prompt, seed) for prompt in calibrated for seed in range(options.seeds)]
    others = [(prompt, options.seeds + seed) for prompt in held_out for seed in range(options.seeds)]
    with Generator(bundle) as generator, progress_bar("tuning", quiet=options.json) as bar:
        for prompt in (*calibrated, *held_out):
            generator.conditions(prompt)  # refuses a wrong prompt while nothing is lost
        found = tune(
            generator,
            requests,
            options.budget,
            steps=options.steps,
            guidance=options.guidance,
            search_seconds=60 * options.minutes,
            on_progress=bar.update,
        )
        gain = measure_gain(
            generator,
            others,
            preset=found.preset.cache,
            tuned=found.best.cache,
            guidance=options.guidance,
            on_request=lambda done: bar.update("measuring on held-out prompts", done / len(others)),
        )
    file = _schedule_file(bundle.manifest.model, found, gain, requests, others, options)
    write_whole(pathlib.Path(options.output), (json.dumps(file.to_json(), indent=1) + "\n").encode())
    if options.json:
        json.dump(file.to_json(), sys.stdout, indent=1)
        print()
    else:
        _print(found, gain, options)
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds} calibrates on nothing: give 1 or more.")
    if options.split_seed < 0:
        raise InputError(f"--split-seed {options.split_seed} is negative: give 0 or more.")
    if not 0 <= options.minutes < math.inf:  # NaN too
        raise InputError(f"--minutes {options.minutes} is no time: give 0 or more.")
    if pathlib.Path(options.output).suffix.lower() != ".json":
        raise OutputError(f"{options.output!r} is no schedule file: give --output FILE.json.")


def _prompts(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the prompts to calibrate on and those to hold out; no prompt is in both."""
    from taylorseer.runtime.held_out import check_held_out, split_prompts

    prompts = _lines(options.prompts)
    if options.held_out is None:
        return split_prompts(prompts, options.split_seed)
    held_out = _lines(options.held_out)
    check_held_out(held_out)
    if both := sorted(set(prompts) & set(held_out)):
        raise InputError(
            f"{both[0]!r} is in {options.prompts} and in {options.held_out}, and a prompt that was calibrated on says "
            "nothing about others: leave it out of one."
        )
    return prompts, held_out


def _lines(path: str) -> list[str]:
    try:
        lines = pathlib.Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _schedule_file(
    model: str,
    found: "Tuning",
    gain: "Gain",
    requests: list[tuple[str, int]],
    others: list[tuple[str, int]],
    options: argparse.Namespace,
) -> ScheduleFile:
    return ScheduleFile(
        model=model,
        cache=found.best.cache,
        calibration={
            "requests": [list(request) for request in requests],
            "guidance": options.guidance,
            "chosen": found.best.name,
            "median_psnr_db": {candidate.name: candidate.median for candidate in (*found.tried, found.best)},
            "placements_tried": found.moves,
        },
        measured={
            "requests": [list(request) for request in others],
            "preset": found.preset.cache.to_json(),
            **gain.to_json(),
        },
    )


def _print(found: "Tuning", gain: "Gain", options: argparse.Namespace) -> None:
    preset, best = found.preset.cache, found.best.cache
    print(f"{options.budget} of {best.steps} steps full; median PSNR in dB against every step full")
    print(f"{'':8}{'calibration':>12}{'held out':>10}  full steps")
    print(f"{'preset':8}{found.preset.median:12.2f}{gain.preset_db:10.2f}  {_listed(preset)}")
    print(f"{'tuned':8}{found.best.median:12.2f}{gain.tuned_db:10.2f}  {_listed(best)}")
    print(f"preset: {_described(preset)}")
    print(f"tuned: {found.best.name}")
    low, high = gain.interval_db
    print(
        f"gain on {gain.pairs} held-out pairs {gain.gain_db:+.2f} dB (95 % interval {low:+.2f} to {high:+.2f}); "
        f"{gain.improved:.0%} of them closer"
    )
    if found.best is found.preset:
        print("nothing was better than the preset on the calibration prompts, so this is the preset")
    if found.is_cramped:
        print(
            f"this bundle serves {found.longest_run} forecasts in a row at the most, which leaves full steps little "
            "room: a build with a larger --interval may gain more"
        )
    print(f"{options.output}: for `taylorseer generate {options.bundle} --schedule {options.output}`")


def _described(cache: CacheConfig) -> str:
    rule = "its own full steps" if cache.full_steps else f"interval {cache.interval}, warm-up {cache.warmup_steps}"
    return f"{rule}, {cache.predictor}, order {cache.order}"


def _listed(cache: CacheConfig) -> str:
    return ", ".join(str(step) for step in cache.schedule().full_steps)
