"""Every step full against a cache schedule, and against reuse on that schedule: times and fidelity, interleaved."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.runtime.fidelity import SSIM_WINDOW, psnr_db, ssim, temporal_difference
from taylorseer.runtime.generation import Generated, Generator

__all__ = ["Comparison", "compare"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Medians over all prompts and seeds; times are wall times on this machine."""

    state: str
    """The state layout."""
    steps: int
    full_steps: tuple[int, ...]
    pairs: int
    """Prompt and seed pairs."""
    full_loop_ms: float
    """The whole loop, every step full."""
    loop_ms: float
    """The whole loop on the schedule."""
    predictor: str
    """What the schedule forecasts with."""
    baseline_full_ms: float
    """One step of the loop with every step full."""
    full_ms: float
    """One full step on the schedule, state written."""
    forecast_ms: float
    """One forecast step."""
    speedup: float
    """Median over pairs of (loop with every step full) / (loop on the schedule)."""
    eta: float
    """speedup / (steps / full steps); 1 is perfect."""
    full_request_ms: float
    """From the prompt to the image, every step full: the loop, and what prepare makes for it."""
    request_ms: float
    """From the prompt to the image on the schedule."""
    request_speedup: float
    """Median over pairs of the two."""
    request_eta: float
    """request_speedup / (steps / full steps)."""
    psnr_db: float
    """Against every step full."""
    reuse_psnr_db: float
    ssim: float
    reuse_ssim: float
    temporal_difference: float | None
    """Of the changes from frame to frame, against every step full; None for images."""
    reuse_temporal_difference: float | None
    better_than_reuse: float
    """Share of pairs whose PSNR is above that of reuse."""
    images: tuple[tuple[NDArray[np.uint8], ...], ...] = dataclasses.field(repr=False)
    """Rows: every step full, the schedule, reuse; a column per pair.  Images [H, W, 3] or clips [F, H, W, 3]."""

    def to_json(self) -> dict[str, Any]:
        """Return everything but the images; what is infinite, as the PSNR of equal images, becomes None."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "images"}
        return {name: None if value == float("inf") else value for name, value in values.items()}


def compare(
    generator: Generator,
    prompts: Sequence[str],
    seeds: Sequence[int],
    cache: CacheConfig,
    *,
    guidance: float | None = None,
    on_loop: Callable[[], None] = lambda: None,
) -> Comparison:
    """Generate every prompt with every seed three times, interleaved, and compare.

    Args:
        generator: a loaded bundle whose latents decode to images or clips.
        prompts: what the model takes.
        seeds: of the initial noise.
        cache: the schedule; its steps serve the other two runs too.
        guidance: None: the bundle's default.
        on_loop: called after each denoising loop.

    Raises:
        InputError: no prompts or seeds, or a model whose results are no pictures large enough to compare.
    """
    if not prompts or not seeds:
        raise InputError("There is nothing to compare: give at least one prompt and one seed.")
    _require_pictures(generator)
    reuse = dataclasses.replace(cache, predictor="reuse")
    generator.generate(prompts[0], seed=seeds[0], cache=cache, guidance=guidance)  # first touch of every buffer
    runs: list[tuple[Generated, Generated, Generated]] = []
    seconds: list[list[float]] = []
    for prompt in prompts:
        for seed in seeds:
            loops, times = [], []
            for config, full in ((cache, True), (cache, False), (reuse, False)):
                start = time.perf_counter()
                loops.append(
                    generator.generate(prompt, seed=seed, cache=config, guidance=guidance, every_step_full=full)
                )
                times.append(time.perf_counter() - start)
                on_loop()
            runs.append((loops[0], loops[1], loops[2]))
            seconds.append(times)
    return _summary(generator, cache, runs, np.array(seconds))


def _summary(
    generator: Generator,
    cache: CacheConfig,
    runs: Sequence[tuple[Generated, Generated, Generated]],
    requests: NDArray[np.float64],
) -> Comparison:
    """Return the medians; ``requests``: [pairs, 3] seconds of every whole request."""
    rows = tuple(tuple(_image(run[row]) for run in runs) for row in range(3))
    full_steps = cache.schedule().full_steps
    loops = np.array([[made.result.step_seconds.sum() for made in run[:2]] for run in runs])
    speedup = float(np.median(loops[:, 0] / loops[:, 1]))
    request_speedup = float(np.median(requests[:, 0] / requests[:, 1]))
    taylor, reuse = _each(psnr_db, rows[0], rows[1]), _each(psnr_db, rows[0], rows[2])
    clips = rows[0][0].ndim == 4 and len(rows[0][0]) > 1
    return Comparison(
        state=generator.manifest.layout,
        steps=cache.steps,
        full_steps=full_steps,
        pairs=len(runs),
        full_loop_ms=float(np.median(loops[:, 0])) * 1e3,
        loop_ms=float(np.median(loops[:, 1])) * 1e3,
        predictor=cache.predictor,
        baseline_full_ms=float(np.median([np.median(run[0].result.step_seconds) for run in runs])) * 1e3,
        full_ms=_step_ms(runs, full=True),
        forecast_ms=_step_ms(runs, full=False),
        speedup=speedup,
        eta=speedup / (cache.steps / len(full_steps)),
        full_request_ms=float(np.median(requests[:, 0])) * 1e3,
        request_ms=float(np.median(requests[:, 1])) * 1e3,
        request_speedup=request_speedup,
        request_eta=request_speedup / (cache.steps / len(full_steps)),
        psnr_db=float(np.median(taylor)),
        reuse_psnr_db=float(np.median(reuse)),
        ssim=float(np.median(_each(ssim, rows[0], rows[1]))),
        reuse_ssim=float(np.median(_each(ssim, rows[0], rows[2]))),
        temporal_difference=float(np.median(_each(temporal_difference, rows[0], rows[1]))) if clips else None,
        reuse_temporal_difference=float(np.median(_each(temporal_difference, rows[0], rows[2]))) if clips else None,
        better_than_reuse=float(np.mean(np.array(taylor) > np.array(reuse))),
        images=rows,
    )


def _each(
    measure: Callable[[NDArray[np.uint8], NDArray[np.uint8]], float],
    references: Sequence[NDArray[np.uint8]],
    images: Sequence[NDArray[np.uint8]],
) -> list[float]:
    return [measure(reference, image) for reference, image in zip(references, images, strict=True)]


def _step_ms(runs: Sequence[tuple[Generated, Generated, Generated]], *, full: bool) -> float:
    times = [made.result.step_seconds[made.result.full_steps == full] for _, made, _ in runs]
    return float(np.median(np.concatenate(times))) * 1e3


def _image(made: Generated) -> NDArray[np.uint8]:
    assert made.image is not None  # the decoder was checked before the first loop
    return made.image


def _require_pictures(generator: Generator) -> None:
    """Refuse before the first loop what could not be compared after the last."""
    manifest = generator.manifest
    if manifest.pipeline.decoder == "none":
        raise InputError(f"{manifest.model}'s latents need their own decoder, so there are no images to compare.")
    if min(manifest.sizes["height"], manifest.sizes["width"]) < SSIM_WINDOW:
        raise InputError(
            f"{manifest.model} makes images below {SSIM_WINDOW} pixels, too small for SSIM's window: compare a bundle "
            "of a larger size."
        )
