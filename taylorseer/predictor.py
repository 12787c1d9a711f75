"""How a forecast is made of remembered features: weights that follow from the cache schedule alone.

Every predictor here is linear, so a forecast is ``F(s) ~ sum_j w[s, j] F(j)`` over full steps j, elementwise
for each feature.  The weights ``w`` never look at a feature; they can be computed, printed and folded before
the loop starts.
"""

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from taylorseer.errors import ScheduleError
from taylorseer.schedule import CacheSchedule

__all__ = [
    "PREDICTORS",
    "check_predictor",
    "derivative_coefficients",
    "difference_scales",
    "forecast_weights",
    "largest_weight_sum",
]

PREDICTORS = ("taylor", "reuse", "newton")
"""``taylor``: the paper's; ``reuse``: the last feature unchanged; ``newton``: polynomial interpolation."""

# A linear combination of features: full step -> its float64 factor.
_Combination: TypeAlias = dict[int, float]


def forecast_weights(schedule: CacheSchedule, *, order: int, predictor: str = "taylor") -> dict[int, dict[int, float]]:
    """Return for each forecast step the non-zero float64 weight of each full step; empty for the baseline.

    - ``taylor``: the official recurrence (TaylorSeer, arXiv 2503.06923, and the authors' code): ``D_0 = F``,
      ``D_{i+1} = (D_i - D_i of the previous full step) / gap`` for i < order, as far as D_i existed before
      and from ``schedule.derivatives_from`` on; then ``F(s) ~ sum_i D_i x^i / i!`` at distance x.
    - ``reuse``: 1 on the last full step, whatever the order.
    - ``newton``: Lagrange's weights of the polynomial through the last ``order + 1`` full steps, or as many
      as are known.  It builds no derivatives, so ``derivatives_from`` does not concern it.

    The weights of one forecast step sum to 1.  Raises :class:`ScheduleError` for a negative order and for a
    predictor that is not in :data:`PREDICTORS`.
    """
    check_predictor(predictor, order)
    if predictor == "newton":
        return {step: _newton(schedule, order, step) for step in schedule.forecast_steps}
    ladders = _derivatives(schedule, 0 if predictor == "reuse" else order)
    return {step: _taylor(schedule, ladders, step) for step in schedule.forecast_steps}


def difference_scales(schedule: CacheSchedule, *, order: int) -> dict[int, npt.NDArray[np.float64]]:
    """Return for each full step a float64 array [order]: ``1 / gap`` at entry i if D_{i+1} is built, else 0.

    With them every full step does the same work, ``D_{i+1} = scale[i] * (D_i - D_i of the previous full
    step)`` for all i < order, on a state that starts as zeros (not as uninitialized memory: 0 times NaN is
    NaN).  This equals the recurrence of :func:`forecast_weights`: a derivative that does not exist there is
    exactly 0 here, so it adds nothing to ``sum_i D_i x^i / i!``; and it is never differenced, because
    whatever the recurrence would build from it does not exist either, hence has scale 0.  Raises
    :class:`ScheduleError` for a negative order.
    """
    check_predictor("taylor", order)
    scales = {}
    for step, ladder in _derivatives(schedule, order).items():
        scales[step] = np.zeros(order, dtype=np.float64)
        gap = schedule.gap(step)
        if gap is not None:
            scales[step][: len(ladder) - 1] = 1.0 / gap
    return scales


def derivative_coefficients(
    schedule: CacheSchedule, *, order: int, predictor: str = "taylor"
) -> dict[int, npt.NDArray[np.float64]]:
    """Return for each forecast step a float64 array [order + 1]: the coefficient of each derivative D_i.

    ``taylor``: ``x^i / i!`` for the D_i that exist at the last full step, else 0.  ``reuse``: 1, 0, 0, ...
    Raises :class:`ScheduleError` for ``newton``, for an unknown predictor and for a negative order.
    """
    check_predictor(predictor, order)
    if predictor == "newton":
        raise ScheduleError(
            "Predictor 'newton' was asked of the state layout 'derivatives', which holds the paper's "
            "differences; use the state layout 'history', or the predictor 'taylor' or 'reuse'."
        )
    ladders = _derivatives(schedule, 0 if predictor == "reuse" else order)
    coefficients = {}
    for step in schedule.forecast_steps:
        known = len(ladders[schedule.last_full_step(step)])
        coefficients[step] = np.zeros(order + 1, dtype=np.float64)
        coefficients[step][:known] = [_coefficient(schedule.distance(step), i) for i in range(known)]
    return coefficients


def largest_weight_sum(weights: Mapping[int, Mapping[int, float]]) -> tuple[int, float]:
    """Return the forecast step with the largest ``sum_j |w[s, j]|`` (the first of equals), and that sum.

    The sum is the factor by which rounding noise of the features may grow.  ``weights`` is what
    :func:`forecast_weights` returned; ValueError if it is empty, as it is for the baseline.
    """
    sums = {step: math.fsum(map(abs, row.values())) for step, row in weights.items()}
    if not sums:
        raise ValueError("no forecast step has weights: every step of this schedule is full")
    step = max(sums, key=lambda s: sums[s])
    return step, sums[step]


def check_predictor(predictor: str, order: int) -> None:
    """Raise :class:`ScheduleError` if ``predictor`` is not in :data:`PREDICTORS` or ``order`` is negative."""
    if predictor not in PREDICTORS:
        raise ScheduleError(f"There is no predictor {predictor!r}; use one of {', '.join(PREDICTORS)}.")
    if order < 0:
        raise ScheduleError(f"The order is {order}; use 0 to reuse the last feature, 1 for a linear forecast, or more.")


def _derivatives(schedule: CacheSchedule, order: int) -> dict[int, list[_Combination]]:
    """Run the recurrence over one-hot sequences: D_0, D_1, ... at each full step, as far as they exist."""
    ladders: dict[int, list[_Combination]] = {}
    previous: list[_Combination] = []
    for step in schedule.full_steps:
        ladder: list[_Combination] = [{step: 1.0}]
        gap = schedule.gap(step)
        if gap is not None and step >= schedule.derivatives_from:
            for older in previous[:order]:
                ladder.append(_difference(ladder[-1], older, gap))
        ladders[step] = previous = ladder
    return ladders


def _difference(newer: _Combination, older: _Combination, gap: int) -> _Combination:
    return {j: (newer.get(j, 0.0) - older.get(j, 0.0)) / gap for j in sorted(newer.keys() | older.keys())}


def _taylor(schedule: CacheSchedule, ladders: dict[int, list[_Combination]], step: int) -> _Combination:
    weights: _Combination = {}
    for i, derivative in enumerate(ladders[schedule.last_full_step(step)]):
        for j, factor in derivative.items():
            weights[j] = weights.get(j, 0.0) + factor * _coefficient(schedule.distance(step), i)
    return {j: weights[j] for j in sorted(weights) if weights[j] != 0.0}


def _coefficient(distance: int, i: int) -> float:
    return float(distance**i / math.factorial(i))


def _newton(schedule: CacheSchedule, order: int, step: int) -> _Combination:
    known = [j for j in schedule.full_steps if j < step][-(order + 1) :]
    return {j: math.prod(((step - k) / (j - k) for k in known if k != j), start=1.0) for j in known}
