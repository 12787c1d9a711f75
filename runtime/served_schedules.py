"""What schedules a bundle serves as it was built: how long a run of forecasts may be, and the preset at a budget."""

import dataclasses
from collections.abc import Iterator

from taylorseer.config import CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.runtime.step_plan import BuiltState, plan_steps

__all__ = ["is_served", "longest_run", "preset_at_budget"]


def is_served(config: CacheConfig, built: BuiltState) -> bool:
    """Whether ``config`` makes a schedule and the bundle serves it without a rebuild."""
    try:
        plan_steps(config, built)
    except ScheduleError:
        return False
    return True


def longest_run(built: BuiltState, steps: int, order: int) -> int:
    """Return how many forecasts in a row the bundle serves at ``order``, wherever they lie; 0: none.

    A folded state has a number of accumulators; the fewer full steps a forecast is made of, the more forecasts in a row
    they suffice for.
    """
    predictor = "taylor" if built.layout == "derivatives" else "newton"
    served = 0
    for interval in range(2, steps + 1):
        config = CacheConfig(steps=steps, interval=interval, order=order, warmup_steps=1, predictor=predictor)
        if not is_served(config, built):
            break
        served = interval - 1
    return served


def preset_at_budget(preset: CacheConfig, budget: int, built: BuiltState) -> CacheConfig:
    """Return the preset with ``budget`` full steps: its own rule with another interval, or the nearest to that.

    In this order, until the bundle serves it: as few warm-up steps more or less as possible (an interval alone does not
    reach every budget), as high an order as the preset's, an interval as near to its own.

    Raises:
        ScheduleError: nothing of the kind has so many full steps and is served.
    """
    if is_served(preset, built) and len(preset.schedule().full_steps) == budget:
        return preset
    for config in _near(preset, budget):
        if is_served(config, built) and len(config.schedule().full_steps) == budget:
            return config
    raise ScheduleError(
        f"No interval and warm-up make the bundle's preset one with {budget} of {preset.steps} full steps that this "
        "bundle serves, so there is nothing to compare with: give another --budget, or build with a larger --interval."
    )


def _near(preset: CacheConfig, budget: int) -> Iterator[CacheConfig]:
    warmups = sorted(range(1, budget + 1), key=lambda warmup: (abs(warmup - preset.warmup_steps), warmup))
    intervals = sorted(range(2, preset.steps + 1), key=lambda interval: (abs(interval - preset.interval), interval))
    for warmup in warmups:
        for order in range(preset.order, -1, -1):
            for interval in intervals:
                yield dataclasses.replace(preset, full_steps=None, warmup_steps=warmup, order=order, interval=interval)
