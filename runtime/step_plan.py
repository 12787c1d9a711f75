"""What each denoising step does, worked out before the loop: which engine, which buffers, which numbers.

It follows from the cache configuration and the state layout alone, so the loop itself decides nothing.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.manifest import Layout
from taylorseer.predictor import derivative_coefficients, difference_scales, forecast_weights
from taylorseer.schedule import CacheSchedule

__all__ = ["StepPlan", "plan_steps", "state_variants"]


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One denoising step."""

    is_full: bool
    variant: int
    """Which bound call: the slot that a full step writes (history), the set that is current (derivatives)."""
    numbers: NDArray[np.float32]
    """Forecast step: the coefficients [slots] of the state tensors.  Full step: the difference scales [slots - 1]."""


def state_variants(layout: Layout, slots: int) -> int:
    """Return how many differently bound full calls a layout needs: one a slot, or two sets that take turns."""
    return slots if layout == "history" else 2


def plan_steps(config: CacheConfig, layout: Layout, slots: int, *, baseline: bool = False) -> tuple[StepPlan, ...]:
    """Return the plan of every denoising step.

    Args:
        config: when and how to forecast.
        layout: the state layout of the bundle.
        slots: remembered tensors per feature, that is the bundle's order plus 1.
        baseline: every step full, whatever the config says.

    Raises:
        ScheduleError: the config needs a higher order than ``slots`` allow, or a predictor that the layout lacks.
    """
    if baseline:
        # Nothing is forecast, so order and predictor of the config have no say, whether or not the bundle has them.
        schedule, config = CacheSchedule.every_step_full(config.steps), CacheConfig(steps=config.steps, order=0)
    else:
        schedule = config.schedule()
        if config.order >= slots:
            raise ScheduleError(
                f"Order {config.order} needs {config.order + 1} remembered tensors per feature, this bundle has "
                f"{slots}: use order {slots - 1}, or build with --order {config.order}."
            )
    plan = _history if layout == "history" else _derivatives
    return plan(schedule, config, slots)


def _history(schedule: CacheSchedule, config: CacheConfig, slots: int) -> tuple[StepPlan, ...]:
    """Full step number i (counted among full steps) overwrites slot i modulo slots; nothing else moves."""
    weights = forecast_weights(schedule, order=config.order, predictor=config.predictor)
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


def _derivatives(schedule: CacheSchedule, config: CacheConfig, slots: int) -> tuple[StepPlan, ...]:
    """Two sets of derivatives take turns: a full step reads one and writes the other."""
    order = config.order
    scales = difference_scales(schedule, order=order)
    coefficients = derivative_coefficients(schedule, order=order, predictor=config.predictor)
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
