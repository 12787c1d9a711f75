"""Real loops as the judge: how close a schedule comes to every step full on a few requests."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from taylorseer.config import CacheConfig
from taylorseer.runtime.calibration import Recording, record
from taylorseer.runtime.fidelity import psnr_db
from taylorseer.runtime.generation import Generated, Generator

__all__ = ["Candidate", "Progress", "Request", "Trial", "closeness_db"]

Request: TypeAlias = tuple[str, int]
"""Prompt and seed."""

Progress: TypeAlias = Callable[[str, float], None]
"""Told what is being done, and the share of it that is behind."""

_EQUAL = 100.0
"""dB of two pictures without any difference, so that medians and gains stay finite."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A schedule that was tried."""

    name: str
    """Where it comes from."""
    cache: CacheConfig
    psnr_db: tuple[float, ...]
    """Of every calibration request, against every step full."""

    @property
    def median(self) -> float:
        """Median PSNR in dB."""
        return statistics.median(self.psnr_db)

    @property
    def mean(self) -> float:
        """Mean PSNR in dB."""
        return statistics.fmean(self.psnr_db)

    def is_clearly_better_than(self, other: "Candidate") -> bool:
        """Whether the mean gain over ``other`` is above its own standard error."""
        gains = [ours - theirs for ours, theirs in zip(self.psnr_db, other.psnr_db, strict=True)]
        return statistics.fmean(gains) > statistics.stdev(gains) / math.sqrt(len(gains))


class Trial:
    """The calibration requests with every step full, and how close a schedule comes to them."""

    def __init__(
        self,
        generator: Generator,
        requests: Sequence[Request],
        default: CacheConfig,
        guidance: float | None,
        on_progress: Progress,
    ) -> None:
        """Run every request with every step full, as many as ``default`` has, and record it."""
        self._generator, self._requests, self._guidance = generator, requests, guidance
        self.recordings: list[Recording] = []
        """One for each request."""
        for number, (prompt, seed) in enumerate(requests):
            on_progress("recording every step full", number / len(requests))
            self.recordings.append(record(generator, prompt, seed=seed, cache=default, guidance=guidance))

    def run(self, name: str, cache: CacheConfig) -> Candidate:
        """Run a schedule on every request."""
        close = [
            closeness_db(
                recording.made, self._generator.generate(prompt, seed=seed, cache=cache, guidance=self._guidance)
            )
            for (prompt, seed), recording in zip(self._requests, self.recordings, strict=True)
        ]
        return Candidate(name, cache, tuple(close))


def closeness_db(reference: Generated, made: Generated) -> float:
    """Return the PSNR in dB of the pictures, all frames of a clip as one; at most 100.

    Without a decoder it is that of the latents, whose peak is the range of the reference.
    """
    if reference.image is not None and made.image is not None:
        return min(psnr_db(reference.image, made.image), _EQUAL)
    error = float(np.mean((reference.latent.astype(np.float64) - made.latent.astype(np.float64)) ** 2))
    peak = float(np.ptp(reference.latent))
    return min(10 * math.log10(peak**2 / error), _EQUAL) if error and peak else _EQUAL
