"""``taylorseer compare``: what forecasting saves and what it costs, in times, PSNR and pictures."""

import argparse
import json
import pathlib
import sys
from typing import TYPE_CHECKING

from taylorseer.bundle import open_bundle
from taylorseer.commands.options import add_cache_options, add_json_option, cache_config
from taylorseer.commands.progress import progress_bar
from taylorseer.config import CacheConfig
from taylorseer.errors import DependencyError, InputError, OutputError

if TYPE_CHECKING:
    from taylorseer.runtime.comparison import Comparison

__all__ = ["PROMPTS", "add_options", "run"]

SUMMARY = "every step full, against a schedule, against reuse on it: times, PSNR, contact sheet"

PROMPTS = (
    "red heart",
    "pizza",
    "flag japan",
    "grinning face",
    "rocket",
    "penguin",
    "rainbow",
    "soccer ball",
)
"""What is compared when no prompt is given to a model of words."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated (default: eight emoji)")
    parser.add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0..N-1 for each prompt")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--output", metavar="FILE.png", help="write a contact sheet of the first eight pairs")
    add_cache_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Compare, print the table and write the sheet."""
    prompts = _prompts(options)
    if options.output and pathlib.Path(options.output).suffix.lower() != ".png":
        raise OutputError(f"{options.output!r} is no picture: give --output FILE.png.")
    bundle = open_bundle(options.bundle)
    config = cache_config(options, CacheConfig.from_json(bundle.manifest.cache))
    config.schedule()
    try:
        from taylorseer.runtime.comparison import compare
        from taylorseer.runtime.generation import Generator
    except ImportError as error:
        raise DependencyError(f"This needs {error.name}: `pip install 'taylorseer-trt[onnxruntime]'`.") from error
    loops = 3 * len(prompts) * options.seeds
    done = 0
    with progress_bar("comparing", quiet=options.json) as bar:

        def count() -> None:
            nonlocal done
            done += 1
            bar.update(f"loop {done} of {loops}", done / loops)

        result = compare(
            Generator(bundle), prompts, range(options.seeds), config, guidance=options.guidance, on_loop=count
        )
    if options.output:
        _write_sheet(result, prompts, options)
    if options.json:
        json.dump(result.to_json(), sys.stdout, indent=1)
        print()
    else:
        _print(result)
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds} compares nothing: give 1 or more.")
    if options.prompts is None:
        return list(options.prompt or PROMPTS)
    try:
        lines = pathlib.Path(options.prompts).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{options.prompts} cannot be read: {error}.") from error
    return [*(options.prompt or []), *(line.strip() for line in lines if line.strip())]


def _write_sheet(result: "Comparison", prompts: list[str], options: argparse.Namespace) -> None:
    from taylorseer.runtime.pictures import contact_sheet, save_png

    columns = [prompt for prompt in prompts for _ in range(options.seeds)][:8]
    share = f"{len(result.full_steps)} of {result.steps} steps full"
    sheet = contact_sheet(
        [list(row[:8]) for row in result.images],
        row_titles=["every step full", f"{result.predictor}, {share}", f"reuse, {share}"],
        column_titles=columns,
        scale=3,
    )
    save_png(sheet, pathlib.Path(options.output))


def _print(result: "Comparison") -> None:
    print(f"{result.pairs} pairs, {result.steps} steps, {len(result.full_steps)} full, state {result.state}; medians")
    print(f"{'':22}{'loop ms':>10}{'full step':>11}{'forecast':>10}{'PSNR dB':>10}{'SSIM':>8}")
    print(f"{'every step full':22}{result.full_loop_ms:10.1f}{result.baseline_full_ms:11.2f}")
    print(
        f"{result.predictor:22}{result.loop_ms:10.1f}{result.full_ms:11.2f}{result.forecast_ms:10.2f}"
        f"{result.psnr_db:10.2f}{result.ssim:8.3f}"
    )
    print(f"{'reuse, same schedule':22}{'':31}{result.reuse_psnr_db:10.2f}{result.reuse_ssim:8.3f}")
    print(
        f"speed-up {result.speedup:.2f}x, eta {result.eta:.3f} (1 is perfect); a forecast step takes "
        f"{result.forecast_ms / result.full_ms:.1%} of a full one"
    )
    print(
        f"whole requests, prepare included: {result.full_request_ms:.1f} ms, {result.request_ms:.1f} ms, "
        f"{result.request_speedup:.2f}x, eta {result.request_eta:.3f}"
    )
    print(f"closer to every step full than reuse on {result.better_than_reuse:.0%} of the pairs")
