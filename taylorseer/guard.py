"""Guards against amplification: the first forecasts after the warm-up multiply the rounding noise of the features.

With W = 3 warm-up steps and the interval N, the first window extrapolates up to N - 1 steps from a difference over
one: at order 1 its weights sum up to ``2 N - 1`` in magnitude (11 for N = 6), where a steady window stays below 3.
A guard bounds that sum by :data:`LARGEST_SUM` and costs no full step.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

from taylorseer.errors import ScheduleError
from taylorseer.predictor import largest_weight_sum
from taylorseer.schedule import CacheSchedule

__all__ = ["LARGEST_SUM", "Guard", "check_spread", "spread_warmup"]

Guard = Literal["none", "lower-order", "spread-warmup"]
"""``none``: the published schedules; ``lower-order``: where the sum would exceed the bound, a forecast step is of the
largest order that keeps to it; ``spread-warmup``: the first full steps lie apart, :func:`spread_warmup`."""

LARGEST_SUM = 3.0
"""Bound of ``sum_j |w[s, j]|``.  A line through two full steps has 3 as far beyond the last as they lie apart; an
interval schedule stays below it in every window but the first."""


def spread_warmup(schedule: CacheSchedule) -> CacheSchedule:
    """Return ``schedule`` with its first full steps spread until each gap is at most one step longer than the last.

    Then no forecast of order 1 reaches farther than its difference is long, and sums to 3 at the most.  There are as
    many full steps as before, and no gap is longer than the longest was, so a state that was built for ``schedule``
    serves the spread one.  Only as many full steps are moved as have to be, and the early gaps are as short as they can
    be: the gaps 1 1 6 6 6 ... of FLUX become 2 3 4 5 6 ..., its full steps 0 1 2 8 14 become 0 2 5 9 14.  For W = 3 and
    the interval N that takes k gaps with ``k (k + 1) / 2 >= 2 (N - 1)``; in a loop too short for that, all are moved
    but the cool-down steps, whose gaps do not grow.  A schedule whose gaps are so already (any interval schedule with
    W = 1) is returned as it is.
    """
    ends = (*schedule.full_steps[1:], schedule.steps)
    longest = max(_gaps(ends))
    moved = ((*_ramp(count, ends, longest), *ends[count:]) for count in range(len(ends) + 1))
    # One is found, at the latest where all gaps are even; the first one moves the fewest full steps.
    spread = next(candidate for candidate in moved if _grows_by_one(candidate))
    return CacheSchedule(steps=schedule.steps, full_steps=(0, *spread[:-1]), derivatives_from=schedule.derivatives_from)


def check_spread(schedule: CacheSchedule, weights: Mapping[int, Mapping[int, float]], predictor: str) -> None:
    """Raise :class:`ScheduleError` if ``weights`` on the spread ``schedule`` exceed :data:`LARGEST_SUM` all the same.

    At orders up to 1 none do.  From order 2 on, ``taylor`` and ``newton`` do even on evenly spaced full steps, for
    intervals of 3 or more.
    """
    step, largest = largest_weight_sum(weights)
    if largest > LARGEST_SUM * (1 + 1e-12):  # the rounding of the weights themselves
        raise ScheduleError(
            f"The guard 'spread-warmup' is to keep the sum of |weights| at {LARGEST_SUM:g} or below, but {predictor} "
            f"reaches {largest:.2f} at step {step} even on the full steps {', '.join(map(str, schedule.full_steps))}; "
            "use order 1, or the guard 'lower-order'."
        )


def _ramp(count: int, ends: Sequence[int], longest: int) -> list[int]:
    """Return where ``count`` gaps end, the last as in ``ends``: each as short as the later ones can make up for."""
    found, reached, most = [], 0, longest
    for remaining in range(count, 0, -1):
        left = ends[count - 1] - reached
        gap = next(gap for gap in range(1, most + 1) if _reach(gap, remaining, longest) >= left)
        reached, most = reached + gap, gap + 1
        found.append(reached)
    return found


def _reach(gap: int, count: int, longest: int) -> int:
    """Return the sum of ``count`` gaps that begin with ``gap`` and grow by one as long as they may."""
    return sum(min(longest, gap + i) for i in range(count))


def _grows_by_one(ends: Sequence[int]) -> bool:
    return all(gap <= before + 1 for before, gap in itertools.pairwise(_gaps(ends)))


def _gaps(ends: Sequence[int]) -> list[int]:
    return [end - start for start, end in itertools.pairwise((0, *ends))]
