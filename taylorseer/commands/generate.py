"""``taylorseer generate``: prompts to a picture or a clip."""

import argparse
import io
import pathlib
import statistics
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from taylorseer.bundle import open_bundle
from taylorseer.commands.options import add_cache_options, cache_config
from taylorseer.commands.progress import progress_bar
from taylorseer.config import CacheConfig
from taylorseer.errors import DependencyError, InputError, OutputError
from taylorseer.manifest import Manifest

if TYPE_CHECKING:
    from taylorseer.runtime.generation import Generated

__all__ = ["add_options", "run"]

SUMMARY = "make images or clips from prompts"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="words, or a class by name or number; may be repeated"
    )
    parser.add_argument("--conditions", metavar="FILE.npz", help="the model's condition inputs, instead of a prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the next ones count up")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--every-step-full", action="store_true", help="without forecasts, for comparison")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="images: a .png (default: out/image.png); clips: an animated .png (default: out/clip.png), a .gif or an "
        ".mp4; a .npy for latents",
    )
    parser.add_argument("--scale", type=int, default=8, help="enlarge small images this many times")
    parser.add_argument("--frame-rate", type=float, metavar="FPS", help="clips: frames per second (default: 8)")
    parser.add_argument("--sheet", action="store_true", help="clips: a .png picture with a row of frames for each")
    add_cache_options(parser, schedule_file=True)


def run(options: argparse.Namespace) -> int:
    """Generate one image or clip per prompt into one file."""
    if (options.prompt is None) == (options.conditions is None):
        raise InputError("Give either --prompt (once or more) or --conditions.")
    if options.scale < 1:
        raise InputError(f"--scale {options.scale} is no enlargement: give 1 or more.")
    bundle = open_bundle(options.bundle)
    output = _output(options, bundle.manifest)
    config = cache_config(options, CacheConfig.from_json(bundle.manifest.cache), model=bundle.manifest.model)
    try:
        from taylorseer.runtime.generation import Generator
    except ImportError as error:
        raise DependencyError(f"This needs {error.name}: `pip install 'taylorseer-trt[onnxruntime]'`.") from error
    generator = Generator(bundle)
    prompts = options.prompt or [_load_conditions(options.conditions)]
    made: list[Generated] = []
    with progress_bar("denoising") as bar:
        for number, prompt in enumerate(prompts):

            def show(step: int, full: bool, number: int = number) -> None:
                done = (number + (step + 1) / config.steps) / len(prompts)
                bar.update("full step" if full else "forecast step", done)

            made.append(
                generator.generate(
                    prompt,
                    seed=options.seed + number,
                    cache=config,
                    guidance=options.guidance,
                    every_step_full=options.every_step_full,
                    on_step=show,
                )
            )
    _save(made, prompts, output, options)
    seconds = [image.result.step_seconds.sum() for image in made]
    full = int(made[0].result.full_steps.sum())
    kind = "clip" if _makes_clips(bundle.manifest) else "image"
    count = f"{len(made)} {kind}" + "s" * (len(made) > 1)
    each = statistics.median(seconds)
    print(f"{output}: {count}, {each:.2f} s each, {full} of {config.steps} steps full")
    return 0


def _makes_clips(manifest: Manifest) -> bool:
    return manifest.sizes["frames"] > 1


def _output(options: argparse.Namespace, manifest: Manifest) -> pathlib.Path:
    """Return where the result goes, having refused before the loop what could not be written after it."""
    clips = _makes_clips(manifest)
    path = pathlib.Path(options.output or ("out/clip.png" if clips else "out/image.png"))
    latents = path.suffix.lower() == ".npy"
    moving = clips and not options.sheet and not latents
    if options.sheet and (latents or not clips):
        raise InputError("--sheet shows the frames of clips: leave it out for images and for latents.")
    if options.frame_rate is not None and not moving:
        raise InputError("--frame-rate is for clips in motion: leave it out for images, for sheets and for latents.")
    if latents:
        return path
    if not moving and path.suffix.lower() != ".png":
        raise OutputError(f"{str(path)!r} is neither a picture nor latents: give --output FILE.png or FILE.npy.")
    if manifest.pipeline.decoder == "none":
        raise OutputError("This model's latents need its own decoder: give --output FILE.npy to keep the latents.")
    # Says what to install while nothing is lost.
    from taylorseer.runtime.clips import FRAME_RATE, check_clip_file

    if moving:
        check_clip_file(path, FRAME_RATE if options.frame_rate is None else options.frame_rate)
    return path


def _load_conditions(path: str) -> dict[str, Any]:
    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds one array without a name: save the inputs by name with np.savez.")
        with file:
            return dict(file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        # NumPy's own text recommends pickle here, which would run whatever the file holds.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no .npz file"
        raise InputError(f"{path} cannot be read: {reason}. Save the inputs by name with np.savez.") from error


def _save(made: "list[Generated]", prompts: list[Any], output: pathlib.Path, options: argparse.Namespace) -> None:
    """Write a picture of all images, or all clips side by side, or the latents."""
    import numpy as np

    from taylorseer.runtime.whole_file import write_whole

    if output.suffix.lower() == ".npy":
        encoded = io.BytesIO()
        np.save(encoded, np.concatenate([image.latent for image in made]))
        write_whole(output, encoded.getvalue())
        return
    from taylorseer.runtime.clips import FRAME_RATE, save_clip, side_by_side
    from taylorseer.runtime.pictures import contact_sheet, grid, save_png

    images = [item.image for item in made if item.image is not None]  # the decoder was checked before the loop
    if images[0].ndim == 3:
        save_png(grid(images, scale=options.scale), output)
    elif options.sheet:
        titles = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
        numbers = [str(frame) for frame in range(len(images[0]))]
        rows = [list(clip) for clip in images]
        save_png(contact_sheet(rows, row_titles=titles, column_titles=numbers, scale=options.scale), output)
    else:
        save_clip(side_by_side(images, options.scale), output, frame_rate=options.frame_rate or FRAME_RATE)
