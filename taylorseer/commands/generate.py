"""``taylorseer generate``: prompts to a picture."""

import argparse
import io
import pathlib
import statistics
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.commands.options import add_cache_options, cache_config
from taylorseer.commands.progress import progress_bar
from taylorseer.config import CacheConfig
from taylorseer.errors import DependencyError, InputError, OutputError

if TYPE_CHECKING:
    from taylorseer.runtime.generation import Generated

__all__ = ["add_options", "run"]

SUMMARY = "make images from prompts"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="words, or a class number; may be repeated")
    parser.add_argument("--conditions", metavar="FILE.npz", help="the model's condition inputs, instead of a prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the next ones count up")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--every-step-full", action="store_true", help="without forecasts, for comparison")
    parser.add_argument("--output", default="out/image.png", metavar="FILE", help="a .png; a .npy for latents")
    parser.add_argument("--scale", type=int, default=8, help="enlarge small images this many times")
    add_cache_options(parser)


def run(options: argparse.Namespace) -> int:
    """Generate one image per prompt into one picture."""
    if (options.prompt is None) == (options.conditions is None):
        raise InputError("Give either --prompt (once or more) or --conditions.")
    if options.scale < 1:
        raise InputError(f"--scale {options.scale} is no enlargement: give 1 or more.")
    bundle = open_bundle(options.bundle)
    _check_output(options.output, bundle)
    config = cache_config(options, CacheConfig.from_json(bundle.manifest.cache))
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
    _save(made, options)
    seconds = [image.result.step_seconds.sum() for image in made]
    full = int(made[0].result.full_steps.sum())
    count = "1 image" if len(made) == 1 else f"{len(made)} images"
    each = statistics.median(seconds)
    print(f"{options.output}: {count}, {each:.2f} s each, {full} of {config.steps} steps full")
    return 0


def _check_output(output: str, bundle: Bundle) -> None:
    """Refuse before the loop what could not be written after it."""
    suffix = pathlib.Path(output).suffix.lower()
    if suffix not in (".png", ".npy"):
        raise OutputError(f"{output!r} is neither a picture nor latents: give --output FILE.png or FILE.npy.")
    if suffix == ".png" and bundle.manifest.pipeline.decoder == "none":
        raise OutputError("This model's latents need its own decoder: give --output FILE.npy to keep the latents.")
    if suffix == ".png":
        import taylorseer.runtime.pictures  # noqa: F401  says what to install while nothing is lost


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


def _save(made: "list[Generated]", options: argparse.Namespace) -> None:
    """Write a picture of all images, or their latents where the model has no decoder here."""
    import numpy as np

    from taylorseer.runtime.whole_file import write_whole

    path = pathlib.Path(options.output)
    if path.suffix.lower() == ".npy":
        encoded = io.BytesIO()
        np.save(encoded, np.concatenate([image.latent for image in made]))
        write_whole(path, encoded.getvalue())
        return
    from taylorseer.runtime.pictures import grid, save_png

    frames = []
    for item in made:
        assert item.image is not None  # the decoder was checked before the loop
        frames += list(item.image) if item.image.ndim == 4 else [item.image]
    save_png(grid(frames, scale=options.scale), path)
