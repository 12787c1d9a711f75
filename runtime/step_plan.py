"""What each denoising step does, worked out before the loop: which engine, which buffers, which numbers.

It follows from the cache configuration and the state layout alone, so the loop itself decides nothing.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from taylorseer.accumulators import (
    Accumulators,
    Placement,
    Weights,
    accumulators_of,
    built_accumulators,
    place_accumulators,
)
from taylorseer.config import CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.manifest import Layout, Manifest
from taylorseer.predictor import difference_scales
from taylorseer.schedule import CacheSchedule

__all__ = ["BuiltState", "StepPlan", "plan_steps"]

_NOTHING: NDArray[np.float32] = np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One denoising step."""

    is_full: bool
    variant: int
    """Which bound call: the slot that a full step writes (history); the set that is current (derivatives); which base
    a full step has, counted in full steps, and the slot that a forecast reads (folded)."""
    numbers: NDArray[np.float32]
    """Forecast step: the coefficients [slots] of the state tensors.  Full step: the difference scales [slots - 1].
    Folded: a full step's fold weights [count]; a forecast has none."""
    ahead: tuple[int, ...] = ()
    """Folded, full step: the denoising step [count] whose gates each accumulator takes, this one where it is for none;
    empty where all are for none."""
    cleared: tuple[int, ...] = ()
    """Folded, full step: slots that have to be zero before it; of another forecast that has been made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltState:
    """What the graphs of a bundle remember."""

    layout: Layout
    slots: int
    """Remembered tensors per feature, that is the bundle's order plus 1; without meaning for ``folded``."""
    accumulators: Accumulators | None = None
    """Of the layout ``folded``."""

    @classmethod
    def of_bundle(cls, manifest: Manifest) -> Self:
        """Return what a bundle was built for."""
        accumulators = built_accumulators(manifest.folding) if manifest.folding else None
        return cls(layout=manifest.layout, slots=manifest.order + 1, accumulators=accumulators)

    @classmethod
    def for_config(cls, layout: Layout | Literal["auto"], config: CacheConfig) -> Self:
        """Return what a bundle with ``config`` as its default has to be built for.

        ``auto`` is answered for ``folded``: what can be served there, ``history`` serves as well.

        Raises:
            ScheduleError: a folded state, and a schedule that could not run or would forecast nothing.
        """
        layout = "folded" if layout == "auto" else layout
        accumulators = accumulators_of(config.schedule(), config.order) if layout == "folded" else None
        return cls(layout=layout, slots=config.order + 1, accumulators=accumulators)

    def variants(self) -> Mapping[str, int]:
        """Return how many differently bound calls the full and the forecast graph need.

        A full step of ``history`` writes any slot and a forecast reads them all; ``derivatives`` has two sets that take
        turns; ``folded`` has as many full calls as bases and as many forecasts as slots in its ring.
        """
        if self.accumulators:
            return {"full": self.accumulators.bases, "forecast": self.accumulators.ring}
        return {"full": self.slots, "forecast": 1} if self.layout == "history" else {"full": 2, "forecast": 2}


@functools.lru_cache(maxsize=64)  # a service asks for the same few again and again
def plan_steps(config: CacheConfig, built: BuiltState, *, baseline: bool = False) -> tuple[StepPlan, ...]:
    """Return the plan of every denoising step.

    Args:
        config: when and how to forecast.
        built: what the bundle remembers.
        baseline: every step full, whatever the config says.

    Raises:
        ScheduleError: what :meth:`CacheConfig.schedule` refuses; the config needs a higher order than ``built`` has
            slots for, a predictor that its layout lacks, or more accumulators than there are.
    """
    if baseline:
        # Nothing is forecast, so order and predictor of the config have no say, whether or not the bundle has them.
        return _plan(CacheSchedule.every_step_full(config.steps), None, built)
    schedule = config.schedule()
    if not built.accumulators and config.order >= built.slots:
        raise ScheduleError(
            f"Order {config.order} needs {config.order + 1} remembered tensors per feature, this bundle has "
            f"{built.slots}: use order {built.slots - 1}, or build with --order {config.order}."
        )
    return _plan(schedule, config, built)


def _plan(schedule: CacheSchedule, config: CacheConfig | None, built: BuiltState) -> tuple[StepPlan, ...]:
    """Plan the steps of ``schedule``; no config: nothing is forecast."""
    if built.layout == "derivatives":
        return _derivatives(schedule, config, built.slots)
    weights = config.weights() if config else {}
    if built.accumulators:
        return _folded(schedule, weights, built.accumulators)
    return _history(schedule, weights, built.slots)


def _history(schedule: CacheSchedule, weights: Weights, slots: int) -> tuple[StepPlan, ...]:
    """Full step number i (counted among full steps) overwrites slot i modulo slots; nothing else moves."""
    slot = {step: number % slots for number, step in enumerate(schedule.full_steps)}
    plan = []
    for step in range(schedule.steps):
        numbers = np.zeros(slots, np.float32)
        if schedule.is_full(step):
            plan.append(StepPlan(True, slot[step], numbers[1:]))
            continue
        for source, weight in weights[step].items():
            numbers[slot[source]] = weight
        plan.append(StepPlan(False, 0, numbers))
    return tuple(plan)


def _derivatives(schedule: CacheSchedule, config: CacheConfig | None, slots: int) -> tuple[StepPlan, ...]:
    """Two sets of derivatives take turns: a full step reads one and writes the other."""
    order, coefficients = (config.order, config.coefficients()) if config else (0, {})
    scales = difference_scales(schedule, order=order)
    plan, current = [], 0
    for step in range(schedule.steps):
        if schedule.is_full(step):
            current = 1 - current
            numbers = np.zeros(slots - 1, np.float32)
            numbers[:order] = scales[step]
        else:
            numbers = np.zeros(slots, np.float32)
            numbers[: order + 1] = coefficients[step]
        plan.append(StepPlan(schedule.is_full(step), current, numbers))
    return tuple(plan)


def _folded(schedule: CacheSchedule, weights: Weights, built: Accumulators) -> tuple[StepPlan, ...]:
    """A full step adds to the accumulators of the forecasts to come; a forecast reads its own where it was written."""
    placements = place_accumulators(schedule, weights, built)
    plan: list[StepPlan] = []
    slots: dict[int, int] = {}
    for step in range(schedule.steps):
        if step not in placements:
            plan.append(StepPlan(False, slots[step], _NOTHING))
            continue
        placed = placements[step]
        slots = {s: built.slot(placed.base, index) for index, s in enumerate(placed.steps) if s is not None}
        variant = schedule.full_steps.index(step) % built.bases
        ahead = tuple(step if s is None else s for s in placed.steps) if slots else ()
        cleared = tuple((placed.base + index) % built.ring for index in placed.over)
        plan.append(StepPlan(True, variant, _fold_weights(placed, weights, step), ahead, cleared))
    return tuple(plan)


def _fold_weights(placed: Placement, weights: Weights, full: int) -> NDArray[np.float32]:
    factors = [0.0 if step is None else weights[step].get(full, 0.0) for step in placed.steps]
    return np.array(factors, np.float32)
