"""What a tuned schedule gains on requests that it was not tuned on."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.runtime.generation import Generator
from taylorseer.runtime.trial import Request, closeness_db

__all__ = ["Gain", "bootstrap_interval", "check_held_out", "measure_gain", "split_prompts"]

Floats = NDArray[np.float64]

_RESAMPLES = 2000
"""Of the bootstrap: the ends of the interval then vary by a few hundredths of its width."""


@dataclasses.dataclass(frozen=True)
class Gain:
    """PSNR in dB of two schedules against every step full, over (prompt, seed) pairs."""

    pairs: int
    preset_db: float
    """Median of the preset."""
    tuned_db: float
    """Median of the tuned schedule."""
    gain_db: float
    """tuned_db - preset_db."""
    interval_db: tuple[float, float]
    """95 % interval of the gain: percentiles of the bootstrap over prompts, each with all of its seeds."""
    improved: float
    """Share of pairs that the tuned schedule brings closer."""

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that ``json.dumps`` accepts."""
        return dataclasses.asdict(self) | {"interval_db": list(self.interval_db)}


def split_prompts(prompts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Return two halves of different prompts, in random order: to calibrate on, and to hold out.

    Raises:
        InputError: fewer than four prompts, so that one half would have fewer than two.
    """
    different = list(dict.fromkeys(prompts))
    if len(different) < 4:
        raise InputError(
            f"{len(different)} different prompts are too few to hold out half of them: give four or more, or a file of "
            "others with --held-out."
        )
    order = np.random.default_rng(seed).permutation(len(different))
    half = (len(different) + 1) // 2
    return [different[i] for i in order[:half]], [different[i] for i in order[half:]]


def check_held_out(prompts: Sequence[str]) -> None:
    """Raise InputError unless two different prompts or more are held out."""
    if len(set(prompts)) < 2:
        raise InputError("One held-out prompt says nothing about others: hold out two or more.")


def measure_gain(
    generator: Generator,
    requests: Sequence[Request],
    *,
    preset: CacheConfig,
    tuned: CacheConfig,
    guidance: float | None = None,
    on_request: Callable[[int], None] = lambda done: None,
) -> Gain:
    """Run every request with every step full, with the preset and with the tuned schedule.

    Args:
        generator: a loaded bundle.
        requests: prompt and seed, of two prompts or more.
        preset: what the gain is over.
        tuned: what gains.
        guidance: None: the bundle's default.
        on_request: called before each request with the number of those that are done.

    Raises:
        InputError: fewer than two prompts.
    """
    check_held_out([prompt for prompt, _ in requests])
    close = np.zeros((len(requests), 2))
    for number, (prompt, seed) in enumerate(requests):
        on_request(number)
        reference = generator.generate(prompt, seed=seed, cache=preset, guidance=guidance, every_step_full=True)
        for column, cache in enumerate((preset, tuned)):
            made = generator.generate(prompt, seed=seed, cache=cache, guidance=guidance)
            close[number, column] = closeness_db(reference, made)
    preset_db, tuned_db = (statistics.median(column) for column in close.T.tolist())
    return Gain(
        pairs=len(requests),
        preset_db=preset_db,
        tuned_db=tuned_db,
        gain_db=tuned_db - preset_db,
        interval_db=bootstrap_interval(close, [prompt for prompt, _ in requests]),
        improved=float(np.mean(close[:, 1] > close[:, 0])),
    )


def bootstrap_interval(close: Floats, prompts: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of the medians of ``close`` [pairs, 2].

    Prompts are drawn again, each with all of its pairs: pairs of one prompt are no independent witnesses.
    """
    rows = [[i for i, other in enumerate(prompts) if other == prompt] for prompt in dict.fromkeys(prompts)]
    random = np.random.default_rng(0)
    gains = []
    for _ in range(_RESAMPLES):
        drawn = [i for number in random.integers(len(rows), size=len(rows)) for i in rows[number]]
        preset, tuned = np.median(close[drawn], axis=0)
        gains.append(tuned - preset)
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)
