"""What the study tries: intervals, orders, predictors and guards, each as a cache configuration.

Two configurations whose forecasts have the same weights are one and the same to a model.  They are told by
:func:`forecast_digest`, so nothing is computed twice: order 0 is ``reuse`` whatever the predictor, and up to order 1
``newton`` and ``least-squares`` are ``taylor``.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence

from taylorseer.config import CacheConfig
from taylorseer.guard import Guard
from taylorseer.predictor import PREDICTORS, largest_weight_sum
from tools.quality_systems import HIGHEST_ORDER, System

__all__ = [
    "GUARDS",
    "GUARD_INTERVALS",
    "GUARD_WARMUP",
    "INTERVALS",
    "SAMPLE_STEPS",
    "SHORT_LOOPS",
    "STEPS",
    "Forecast",
    "forecast_digest",
    "grid",
    "guard_grid",
    "sample_forecasts",
    "short_grid",
    "weight_sum",
]

STEPS = 50
"""Of the wide grid."""

SHORT_LOOPS = (28, 20)
"""Steps of the reduced grid."""

INTERVALS = tuple(range(2, 11))

GUARDS: tuple[Guard, ...] = ("none", "lower-order", "spread-warmup")

GUARD_INTERVALS = (4, 6, 10)

GUARD_WARMUP = 3
"""Warm-up steps of the guards' comparison: what the published FLUX schedule has, and where the sum is 2 N - 1."""

_SHORT_PREDICTORS = ("taylor", "exponential")
_SHORT_ORDERS = (0, 1, 2)

SAMPLE_STEPS, SAMPLE_INTERVAL = 20, 4
"""Of the distribution's samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """One way to forecast."""

    steps: int
    interval: int
    order: int
    predictor: str
    guard: Guard = "none"
    warmup_steps: int | None = None
    """None: the preset's."""

    def cache(self, system: System) -> CacheConfig:
        """Return the configuration: the system's preset but for what is said here."""
        changes = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(system.preset, **changes)


def grid(
    intervals: Sequence[int] = INTERVALS, orders: Sequence[int] = tuple(range(HIGHEST_ORDER + 1))
) -> list[Forecast]:
    """Return every interval, order and predictor at :data:`STEPS` steps; order 0 once, as ``reuse``."""
    return list(_forecasts(STEPS, intervals, orders, PREDICTORS))


def short_grid(steps: int, intervals: Sequence[int] = INTERVALS) -> list[Forecast]:
    """Return the reduced grid of a shorter loop."""
    return list(_forecasts(steps, intervals, _SHORT_ORDERS, _SHORT_PREDICTORS))


def guard_grid(intervals: Sequence[int] = GUARD_INTERVALS) -> list[Forecast]:
    """Return ``taylor`` at orders 1 and 2 under every guard, all with :data:`GUARD_WARMUP` warm-up steps."""
    return [
        Forecast(
            steps=STEPS,
            interval=interval,
            order=order,
            predictor="taylor",
            guard=guard,
            warmup_steps=GUARD_WARMUP,
        )
        for interval in intervals
        for order in (1, 2)
        for guard in GUARDS
        if (guard, order) != ("spread-warmup", 2)  # which exceeds the bound on evenly spaced full steps
    ]


def sample_forecasts(system: System) -> dict[str, Forecast | None]:
    """Return what the distribution is measured of, by name; None: every step full."""
    taylor = Forecast(
        steps=SAMPLE_STEPS, interval=SAMPLE_INTERVAL, order=min(system.preset.order, 1), predictor="taylor"
    )
    return {
        "every step full": None,
        "taylor": taylor,
        "reuse": dataclasses.replace(taylor, order=0, predictor="reuse"),
    }


def _forecasts(
    steps: int, intervals: Sequence[int], orders: Sequence[int], predictors: Sequence[str]
) -> Iterator[Forecast]:
    for interval in intervals:
        for order in orders:
            for predictor in ("reuse",) if order == 0 else predictors:
                if order and predictor == "reuse":
                    continue
                yield Forecast(steps=steps, interval=interval, order=order, predictor=predictor)


@functools.lru_cache(maxsize=4096)
def forecast_digest(cache: CacheConfig) -> str:
    """Return a digest of all that a schedule does to a loop: its steps, its full steps and its weights.

    The weights count to 9 digits: what the engines see of them is float32.
    """
    weights = {step: {j: f"{w:.9g}" for j, w in row.items()} for step, row in cache.weights().items()}
    content = json.dumps([cache.steps, cache.schedule().full_steps, weights])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def weight_sum(cache: CacheConfig) -> tuple[int, float]:
    """Return the forecast step with the largest sum of |weights|, and that sum."""
    return largest_weight_sum(cache.weights())
