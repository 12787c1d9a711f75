"""``taylorseer compare``: what forecasting saves and what it costs, in times, PSNR, SSIM and pictures."""

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
from taylorseer.manifest import Manifest

if TYPE_CHECKING:
    from PIL import Image

    from taylorseer.runtime.comparison import Comparison

__all__ = ["CLASSES", "CLIPS", "PROMPTS", "add_options", "default_prompts", "run"]

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
"""What is compared of flux-emoji when no prompt is given."""

CLASSES = (
    "heart",
    "face-smiling",
    "time",
    "country-flag",
    "food-fruit",
    "cat-face",
    "plant-other",
    "person-role",
)
"""The same of dit-emoji."""

CLIPS = (
    "red heart moving left",
    "pizza growing",
    "star fading in",
    "light bulb bouncing",
    "penguin moving down",
    "christmas tree shrinking",
    "fire standing still",
    "blue heart turning right",
)
"""The same of hunyuan-video-emoji: motions that it learned well, and one that it did not."""

_SHOWN_IMAGES, _SHOWN_CLIPS, _SHOWN_FRAMES = 8, 4, 8
"""What fits a contact sheet."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="may be repeated (default: eight of the model)"
    )
    parser.add_argument("--prompts", metavar="FILE", help="a text file with one prompt a line")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0..N-1 for each prompt")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument(
        "--output", metavar="FILE.png", help="write a contact sheet of the first eight pairs, or four clips"
    )
    add_cache_options(parser, schedule_file=True)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Compare, print the table and write the sheet."""
    prompts = _prompts(options)
    if options.output and pathlib.Path(options.output).suffix.lower() != ".png":
        raise OutputError(f"{options.output!r} is no picture: give --output FILE.png.")
    bundle = open_bundle(options.bundle)
    config = cache_config(options, CacheConfig.from_json(bundle.manifest.cache), model=bundle.manifest.model)
    config.schedule()
    prompts = default_prompts(bundle.manifest) if prompts is None else prompts
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


def _prompts(options: argparse.Namespace) -> list[str] | None:
    """Return the prompts that were asked for; None: nothing was said of them."""
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds} compares nothing: give 1 or more.")
    if options.prompts is None:
        asked: list[str] | None = options.prompt
        return asked
    try:
        lines = pathlib.Path(options.prompts).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{options.prompts} cannot be read: {error}.") from error
    return [*(options.prompt or []), *(line.strip() for line in lines if line.strip())]


def default_prompts(manifest: Manifest) -> list[str]:
    """Return eight prompts that the model knows: by name where we know its words, otherwise classes far apart."""
    if set(manifest.conditions) != {"class_labels"}:
        return list(CLIPS if manifest.model == "hunyuan-video-emoji" else PROMPTS)
    if manifest.model == "dit-emoji" and "classes.json" in manifest.files:
        return list(CLASSES)
    return [str(label) for label in _spread(int(manifest.config["num_embeds_ada_norm"]), len(CLASSES))]


def _write_sheet(result: "Comparison", prompts: list[str], options: argparse.Namespace) -> None:
    from taylorseer.runtime.pictures import save_png

    pairs = [prompt for prompt in prompts for _ in range(options.seeds)]
    draw = _clip_sheet if result.images[0][0].ndim == 4 else _image_sheet
    save_png(draw(result, pairs), pathlib.Path(options.output))


def _image_sheet(result: "Comparison", pairs: list[str]) -> "Image.Image":
    """Return a column for each pair: every step full, the schedule, reuse."""
    from taylorseer.runtime.pictures import contact_sheet

    share = f"{len(result.full_steps)} of {result.steps} steps full"
    return contact_sheet(
        [list(row[:_SHOWN_IMAGES]) for row in result.images],
        row_titles=["every step full", f"{result.predictor}, {share}", f"reuse, {share}"],
        column_titles=pairs[:_SHOWN_IMAGES],
        scale=3,
    )


def _clip_sheet(result: "Comparison", pairs: list[str]) -> "Image.Image":
    """Return three rows of frames for each pair: every step full, the schedule, reuse."""
    from taylorseer.runtime.pictures import contact_sheet

    shown = _spread(len(result.images[0][0]), _SHOWN_FRAMES)
    full = len(result.full_steps)
    titles: list[str] = []
    for prompt in pairs[:_SHOWN_CLIPS]:
        titles += [f"{prompt}\n{result.steps} steps full", f"{result.predictor}, {full} full", f"reuse, {full} full"]
    return contact_sheet(
        [[made[pair][frame] for frame in shown] for pair in range(len(titles) // 3) for made in result.images],
        row_titles=titles,
        column_titles=[f"frame {frame}" for frame in shown],
        scale=3,
    )


def _spread(count: int, most: int) -> list[int]:
    """Return up to ``most`` of the numbers below ``count``, evenly apart, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _print(result: "Comparison") -> None:
    print(f"{result.pairs} pairs, {result.steps} steps, {len(result.full_steps)} full, state {result.state}; medians")
    clips = result.temporal_difference is not None
    print(
        f"{'':22}{'loop ms':>10}{'full step':>11}{'forecast':>10}{'PSNR dB':>10}{'SSIM':>8}"
        + (f"{'changes':>10}" if clips else "")
    )
    print(f"{'every step full':22}{result.full_loop_ms:10.1f}{result.baseline_full_ms:11.2f}")
    print(
        f"{result.predictor:22}{result.loop_ms:10.1f}{result.full_ms:11.2f}{result.forecast_ms:10.2f}"
        f"{result.psnr_db:10.2f}{result.ssim:8.3f}" + _changes(result.temporal_difference)
    )
    print(
        f"{'reuse, same schedule':22}{'':31}{result.reuse_psnr_db:10.2f}{result.reuse_ssim:8.3f}"
        + _changes(result.reuse_temporal_difference)
    )
    print(
        f"speed-up {result.speedup:.2f}x, eta {result.eta:.3f} (1 is perfect); a forecast step takes "
        f"{result.forecast_ms / result.full_ms:.1%} of a full one"
    )
    print(
        f"whole requests, prepare included: {result.full_request_ms:.1f} ms, {result.request_ms:.1f} ms, "
        f"{result.request_speedup:.2f}x, eta {result.request_eta:.3f}"
    )
    print(f"closer to every step full than reuse on {result.better_than_reuse:.0%} of the pairs")
    if clips:
        print("changes: relative error of what changes from frame to frame; 0 is perfect")


def _changes(difference: float | None) -> str:
    return "" if difference is None else f"{difference:10.1%}"
