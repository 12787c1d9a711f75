"""Which denoising step is full and which is forecast: a cache schedule is data, fixed before the loop.

Denoising steps count up from 0.  At a full step the transformer runs; at a forecast step its features are
extrapolated from the full steps before.  Order and predictor are not part of a schedule: they say *how* to
forecast (``taylorseer.predictor``), this module says only *when*.
"""

import operator
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from taylorseer.errors import ScheduleError

__all__ = ["CacheSchedule", "check_rule", "interval_schedule", "mask_schedule", "modulo_schedule"]

# Below this there are too few steps for a difference of features to say anything about the next one.
_FEWEST_STEPS = 9

_BASELINE = "CacheSchedule.every_step_full(steps) is the baseline that forecasts nothing"


@dataclass(frozen=True, kw_only=True)
class CacheSchedule:
    """Full and forecast steps of one denoising loop; immutable and hashable.

    Raises :class:`ScheduleError` when the full steps do not start at 0, do not ascend strictly or leave the
    loop, when ``derivatives_from`` is negative, and when a loop of 8 steps or fewer is to be forecast.
    """

    steps: int
    """Number of denoising steps of the loop."""

    full_steps: tuple[int, ...]
    """The full steps, strictly ascending; the first is 0."""

    derivatives_from: int = 0
    """First step at which derivatives beyond D_0 may be built (the official code's gate; 2 for FLUX)."""

    def __post_init__(self) -> None:
        """Refuse what no loop could run."""
        _check_full_steps(self.steps, self.full_steps)
        if len(self.full_steps) < self.steps:
            _check_enough_steps(self.steps)
        if self.derivatives_from < 0:
            raise ScheduleError(
                f"derivatives_from is {self.derivatives_from}, but steps count from 0; use 0 to build "
                "derivatives as soon as their inputs exist."
            )

    @classmethod
    def every_step_full(cls, steps: int) -> Self:
        """Return the baseline, of any length from 1: the only schedule that may forecast nothing."""
        return cls(steps=steps, full_steps=tuple(range(steps)))

    @property
    def forecast_steps(self) -> tuple[int, ...]:
        """The steps that are not full, ascending; empty for the baseline."""
        full = set(self.full_steps)
        return tuple(step for step in range(self.steps) if step not in full)

    @property
    def ideal_speedup(self) -> float:
        """``steps / len(full_steps)``: the speed-up if a forecast step cost nothing."""
        return self.steps / len(self.full_steps)

    def is_full(self, step: int) -> bool:
        """Whether the transformer runs at ``step``; IndexError outside the loop."""
        return self.last_full_step(step) == step

    def last_full_step(self, step: int) -> int:
        """Return the newest full step that is not after ``step``; IndexError outside the loop."""
        return self.full_steps[self._position(step)]

    def distance(self, step: int) -> int:
        """Return the steps since the last full step, 0 at a full step; IndexError outside the loop."""
        return step - self.last_full_step(step)

    def gap(self, step: int) -> int | None:
        """Return the steps between the full step ``step`` and the one before, None at the first.

        Raises ValueError at a forecast step, where no gap is defined, and IndexError outside the loop.
        """
        position = self._position(step)
        if self.full_steps[position] != step:
            raise ValueError(f"step {step} is a forecast step; a gap lies between two full steps")
        return step - self.full_steps[position - 1] if position else None

    def _position(self, step: int) -> int:
        """Return the place in ``full_steps`` of the newest full step that is not after ``step``."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside the loop of steps 0..{self.steps - 1}")
        return bisect_right(self.full_steps, step) - 1


def interval_schedule(
    steps: int, interval: int, warmup_steps: int, cooldown_steps: int = 0, derivatives_from: int = 0
) -> CacheSchedule:
    """Full while ``s < warmup_steps`` or once ``interval - 1`` forecasts have passed (the official rule).

    The interval counts from the last full step.  The last ``cooldown_steps`` steps are full as well.  Raises
    :class:`ScheduleError` for arguments out of range and for a schedule that would forecast nothing.
    """
    _check_loop(steps, interval, warmup_steps, cooldown_steps)
    full: list[int] = []
    for step in range(steps):
        if step < warmup_steps or step >= steps - cooldown_steps or step - full[-1] >= interval:
            full.append(step)
    return CacheSchedule(steps=steps, full_steps=tuple(full), derivatives_from=derivatives_from)


def modulo_schedule(
    steps: int, interval: int, warmup_steps: int, cooldown_steps: int = 0, derivatives_from: int = 0
) -> CacheSchedule:
    """Full while ``s < D or (s - D - 1) % N == 0 or s >= after`` (the rule of the diffusers library).

    D is ``warmup_steps``, N ``interval`` and ``after`` is ``steps - cooldown_steps``.  The interval counts
    from the fixed step D + 1, so that with D = 3 step 4 is full although step 2 was.  Raises
    :class:`ScheduleError` as :func:`interval_schedule` does.
    """
    _check_loop(steps, interval, warmup_steps, cooldown_steps)
    after = steps - cooldown_steps
    full_steps = tuple(
        step
        for step in range(steps)
        if step < warmup_steps or (step - warmup_steps - 1) % interval == 0 or step >= after
    )
    return CacheSchedule(steps=steps, full_steps=full_steps, derivatives_from=derivatives_from)


def mask_schedule(steps: int, full: Sequence[int] | Sequence[bool], derivatives_from: int = 0) -> CacheSchedule:
    """Full at the given steps: ``full`` holds step numbers, or one bool per step (True is full).

    Step numbers may come in any order; 0 and 1 are step numbers, so a mask must hold real bools (Python's or
    NumPy's).  Raises :class:`ScheduleError` for a mask of another length than ``steps``, step numbers that
    are no integers, duplicated or outside the loop, a first step that is not full, and nothing left to
    forecast.
    """
    _check_enough_steps(steps)
    full_steps = _steps_of_mask(steps, full) if _is_mask(full) else _sorted_steps(full)
    schedule = CacheSchedule(steps=steps, full_steps=full_steps, derivatives_from=derivatives_from)
    if not schedule.forecast_steps:
        raise ScheduleError(f"All {steps} steps are full, so nothing is forecast; leave some of them out. {_BASELINE}.")
    return schedule


def check_rule(interval: int, warmup_steps: int, cooldown_steps: int) -> None:
    """Raise :class:`ScheduleError` for an interval, warm-up or cool-down that fits no loop of any length."""
    if interval < 1:
        raise ScheduleError(f"The interval is {interval}, but it counts steps between full steps; use 2 or more.")
    if warmup_steps < 1:
        raise ScheduleError(
            f"There are {warmup_steps} warm-up steps, but the first step must be full, for there is nothing "
            "to forecast it from; use 1 or more."
        )
    if cooldown_steps < 0:
        raise ScheduleError(f"There are {cooldown_steps} cool-down steps; use 0 for none, or more.")


def _check_loop(steps: int, interval: int, warmup_steps: int, cooldown_steps: int) -> None:
    check_rule(interval, warmup_steps, cooldown_steps)
    _check_enough_steps(steps)
    if interval == 1:
        raise ScheduleError(f"Interval 1 makes every step full, so nothing is forecast; use 2 or more. {_BASELINE}.")
    if warmup_steps + cooldown_steps >= steps:
        raise ScheduleError(
            f"{warmup_steps} warm-up and {cooldown_steps} cool-down steps cover all {steps} steps, so "
            f"nothing is forecast; use fewer of them. {_BASELINE}."
        )


def _check_enough_steps(steps: int) -> None:
    if steps < _FEWEST_STEPS:
        raise ScheduleError(
            f"The loop has {steps} steps, and with 8 steps or fewer there is too little to forecast from; "
            f"use {_FEWEST_STEPS} or more. {_BASELINE}."
        )


def _check_full_steps(steps: int, full_steps: tuple[int, ...]) -> None:
    if steps < 1:
        raise ScheduleError(f"The loop has {steps} steps; use 1 or more.")
    outside = [step for step in full_steps if not 0 <= step < steps]
    if outside:
        raise ScheduleError(f"Full steps {outside} are outside the loop; use steps from 0 to {steps - 1}.")
    duplicates = sorted({step for step in full_steps if full_steps.count(step) > 1})
    if duplicates:
        raise ScheduleError(f"Full steps {duplicates} are given more than once; name each full step once.")
    if 0 not in full_steps:
        raise ScheduleError("The first step is not full, and there is nothing to forecast it from; make step 0 full.")
    if list(full_steps) != sorted(full_steps):
        raise ScheduleError(f"Full steps {list(full_steps)} do not ascend; sort them.")


def _is_mask(full: Sequence[int] | Sequence[bool]) -> bool:
    return len(full) > 0 and all(isinstance(entry, bool | np.bool_) for entry in full)


def _steps_of_mask(steps: int, mask: Sequence[int] | Sequence[bool]) -> tuple[int, ...]:
    if len(mask) != steps:
        raise ScheduleError(
            f"The mask has {len(mask)} entries, but the loop has {steps} steps; give one True or False for each step."
        )
    return tuple(step for step, is_full in enumerate(mask) if is_full)


def _sorted_steps(full: Sequence[int]) -> tuple[int, ...]:
    try:
        if any(isinstance(step, bool) for step in full):
            raise TypeError
        return tuple(sorted(operator.index(step) for step in full))
    except TypeError:
        raise ScheduleError(
            f"The full steps {list(full)} are not all step numbers; give integers, or one True or False for each step."
        ) from None
