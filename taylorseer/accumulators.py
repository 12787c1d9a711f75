"""The accumulators of the folded state: how many a schedule needs, and where each lies at every full step.

At a full step j the folded state gets ``A_s += w[s, j] * sum_m g_m(s) * F_m(j)`` for every later forecast step s that
uses j.  ``count`` accumulators are written at a full step; ``carried`` of them go on from the full step before.  They
lie in a ring of ``count + carried`` slots, for a call never writes what it reads: a full step reads the ``carried``
slots from its base on and writes the ``count`` slots after them, and the last ``carried`` of those are what the next
one reads.  All of these numbers are multiples of the window, so windows of slots can be tensors, none of which goes
round the end of the ring.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from taylorseer.errors import ScheduleError
from taylorseer.manifest import FoldingSpec
from taylorseer.schedule import CacheSchedule

__all__ = ["Accumulators", "Placement", "accumulators_of", "built_accumulators", "place_accumulators", "stacked_shape"]

Weights = Mapping[int, Mapping[int, float]]
"""Forecast step -> {full step: weight}, as :func:`taylorseer.predictor.forecast_weights` gives them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulators:
    """How many accumulators a full graph reads and writes."""

    count: int
    """Written at a full step: (order + 1) * window."""
    carried: int
    """Read there: order * window."""

    @property
    def window(self) -> int:
        """Forecast steps between two full steps, at the most."""
        return self.count - self.carried

    @property
    def ring(self) -> int:
        """Slots of memory: ``count`` that outlive a full step, and as many as are read while those are written."""
        return self.count + self.carried

    @property
    def bases(self) -> int:
        """Different bases that full steps have, one after another and again from the first."""
        return self.ring // math.gcd(self.count, self.ring)

    def base(self, number: int) -> int:
        """Return the base of a full step by its ``number`` among the full steps: where the one before wrote last."""
        return number * self.count % self.ring

    def slot(self, base: int, index: int) -> int:
        """Return the slot that a full step writes as its output ``index``; it reads input i from ``base + i``."""
        return (base + self.carried + index) % self.ring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What one full step writes."""

    base: int
    """Slot of the first accumulator that it reads."""
    steps: tuple[int | None, ...]
    """[count] the forecast step that each output is for; None: for none."""
    kept: tuple[bool, ...]
    """[carried] whether each input goes on as the output of the same index."""
    over: tuple[int, ...]
    """Inputs that are to be cleared before the full step adds them to something else: all of the first one's, later
    those whose forecast has been made.  The others that do not go on are zero, for nothing was ever added to them."""


def accumulators_of(schedule: CacheSchedule, order: int) -> Accumulators:
    """Return what a schedule needs: ``(order + 1) * window``, with the longest run of forecasts as the window.

    For an interval schedule the window is ``interval - 1`` (1-method.md, "The folded form").
    """
    ends = (*schedule.full_steps[1:], schedule.steps)
    window = max(1, *(end - start - 1 for start, end in zip(schedule.full_steps, ends, strict=True)))
    return Accumulators(count=(order + 1) * window, carried=order * window)


def built_accumulators(folding: FoldingSpec) -> Accumulators:
    """Return what the graphs of a bundle were built for."""
    return Accumulators(count=folding.accumulators, carried=folding.carried)


def stacked_shape(folding: FoldingSpec) -> tuple[int, tuple[int | str, ...]]:
    """Return how many accumulators one tensor of the full graph holds, and the tensor's shape [batch, rows, width]."""
    stacked = built_accumulators(folding).window if folding.form == "channels" else 1
    batch, rows, width = folding.shape
    return stacked, (batch, stacked * int(rows), width)


def place_accumulators(schedule: CacheSchedule, weights: Weights, built: Accumulators) -> dict[int, Placement]:
    """Return where the accumulators of every full step lie.

    Args:
        schedule: of the request.
        weights: of its forecast steps.
        built: what the full graph was built for.

    Raises:
        ScheduleError: it needs more accumulators than were built.
    """
    placements: dict[int, Placement] = {}
    carried: list[int | None] = [None] * built.carried
    for number, full in enumerate(schedule.full_steps):
        outputs: list[int | None] = [None] * built.count
        outputs[: built.carried] = [s if s is not None and s > full else None for s in carried]
        kept = tuple(step is not None for step in outputs[: built.carried])
        for later, step in _begun(schedule, weights, number, outputs):
            _place(outputs, step, later, built, full)
        over = [i for i, step in enumerate(carried) if number == 0 or (step is not None and not kept[i])]
        placements[full] = Placement(base=built.base(number), steps=tuple(outputs), kept=kept, over=tuple(over))
        carried = outputs[built.window :]
    return placements


def _begun(
    schedule: CacheSchedule, weights: Weights, number: int, outputs: Sequence[int | None]
) -> list[tuple[int, int]]:
    """Return (full steps until then, forecast step) of the accumulators that begin, those of the last window first."""
    full, after = schedule.full_steps[number], schedule.full_steps[number + 1 :]
    steps = (step for step, row in weights.items() if step > full and row.get(full) and step not in outputs)
    return sorted(((sum(f < step for f in after), step) for step in steps), key=lambda begun: (-begun[0], begun[1]))


def _place(outputs: list[int | None], step: int, later: int, built: Accumulators, full: int) -> None:
    """Put ``step`` where it can be carried over ``later`` full steps, each of which moves it by ``window`` places."""
    free = [index for index in range(later * built.window, built.count) if outputs[index] is None]
    if not free:
        raise ScheduleError(
            f"At the full step {full} the schedule needs more than the {built.count} accumulators of this bundle, "
            f"which serve {built.window} forecasts in a row at order {built.carried // built.window}: use a smaller "
            "interval or order, or build with a larger --interval or --order."
        )
    outputs[free[0]] = step
