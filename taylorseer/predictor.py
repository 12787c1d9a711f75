"""How a forecast is made of remembered features: weights that follow from the cache schedule alone.

Every predictor here is linear, so a forecast is ``F(s) ~ sum_j w[s, j] F(j)`` over full steps j, elementwise
for each feature.  The weights ``w`` never look at a feature; they can be computed, printed and folded before
the loop starts.  The formulas are in :mod:`taylorseer.extrapolation`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from taylorseer.errors import ScheduleError
from taylorseer.extrapolation import CONTRACTION, DECAY, FORMULAS, Combination, OfDerivatives, OfFeatures, Place
from taylorseer.schedule import CacheSchedule

__all__ = [
    "EXACT_ON_LINES",
    "PREDICTORS",
    "check_predictor",
    "derivative_coefficients",
    "difference_scales",
    "forecast_weights",
    "largest_weight_sum",
    "refuse_derivatives",
]

PREDICTORS = tuple(FORMULAS)
"""``taylor``: the paper's; ``reuse``: the last feature unchanged; ``newton``: polynomial interpolation;
``least-squares``: a polynomial of a lower degree than the points could bear; ``hermite``: HiCache's, which trusts a
derivative less the farther it goes; ``exponential``: changes that die out."""

EXACT_ON_LINES = frozenset({"taylor", "newton", "least-squares"})
"""Predictors that forecast a linear series exactly from order 1 on, once two full steps are known."""

# A sum of |weights| is compared with its bound up to this relative rounding: 5 weights of a few roundings each.
_ROUNDING = 1e-12


def forecast_weights(
    schedule: CacheSchedule,
    *,
    order: int,
    predictor: str = "taylor",
    contraction: float = CONTRACTION,
    decay: float = DECAY,
    largest_sum: float = math.inf,
) -> dict[int, dict[int, float]]:
    """Return for each forecast step the non-zero float64 weight of each full step; empty for the baseline.

    Predictors that weigh derivatives (``taylor``, ``reuse``, ``hermite``, ``exponential``) do so on the official
    recurrence (TaylorSeer, arXiv 2503.06923, and the authors' code): ``D_0 = F``, ``D_{i+1} = (D_i - D_i of the
    previous full step) / gap`` for i < order, as far as D_i existed before and from ``schedule.derivatives_from`` on.
    ``newton`` and ``least-squares`` take the last ``order + 1`` full steps, or as many as are known; they build no
    derivatives, so ``derivatives_from`` does not concern them.  The weights of one forecast step sum to 1.

    Args:
        schedule: when to forecast.
        order: the highest derivative, or one less than the number of full steps that a forecast uses.
        predictor: one of :data:`PREDICTORS`.
        contraction: of ``hermite``.
        decay: of ``exponential``.
        largest_sum: 1 or more; where ``sum_j |w[s, j]|`` would exceed it, that forecast step is of the largest lower
            order whose sum does not.  Order 0 never does.

    Raises:
        ScheduleError: a negative order, or a predictor that is not in :data:`PREDICTORS`.
    """
    check_predictor(predictor, order)
    forecasts = _Forecasts(schedule, order, predictor, contraction, decay)
    return {step: forecasts.row(step, forecasts.order_at(step, largest_sum)) for step in schedule.forecast_steps}


def difference_scales(schedule: CacheSchedule, *, order: int) -> dict[int, npt.NDArray[np.float64]]:
    """Return for each full step a float64 array [order]: ``1 / gap`` at entry i if D_{i+1} is built, else 0.

    With them every full step does the same work, ``D_{i+1} = scale[i] * (D_i - D_i of the previous full
    step)`` for all i < order, on a state that starts as zeros (not as uninitialized memory: 0 times NaN is
    NaN).  This equals the recurrence of :func:`forecast_weights`: a derivative that does not exist there is
    exactly 0 here, so it adds nothing to ``sum_i c_i D_i``; and it is never differenced, because whatever the
    recurrence would build from it does not exist either, hence has scale 0.  Raises :class:`ScheduleError`
    for a negative order.
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
    schedule: CacheSchedule,
    *,
    order: int,
    predictor: str = "taylor",
    contraction: float = CONTRACTION,
    decay: float = DECAY,
    largest_sum: float = math.inf,
) -> dict[int, npt.NDArray[np.float64]]:
    """Return for each forecast step a float64 array [order + 1]: the coefficient of each derivative D_i.

    It is 0 for a D_i that does not exist at the last full step, and above the order of a forecast step that
    ``largest_sum`` lowers.  The arguments are those of :func:`forecast_weights`.  Raises :class:`ScheduleError` for a
    predictor that weighs features, for an unknown predictor and for a negative order.
    """
    check_predictor(predictor, order)
    if isinstance(FORMULAS[predictor], OfFeatures):
        refuse_derivatives(predictor)
    forecasts = _Forecasts(schedule, order, predictor, contraction, decay)
    coefficients = {}
    for step in schedule.forecast_steps:
        known = forecasts.coefficients(step, forecasts.order_at(step, largest_sum))
        coefficients[step] = np.zeros(order + 1, dtype=np.float64)
        coefficients[step][: len(known)] = known
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


def check_predictor(predictor: str, order: int, *, known: Iterable[str] = PREDICTORS) -> None:
    """Raise :class:`ScheduleError` if ``predictor`` is not in ``known`` or ``order`` is negative."""
    names = tuple(known)
    if predictor not in names:
        raise ScheduleError(f"There is no predictor {predictor!r}; use one of {', '.join(names)}.")
    if order < 0:
        raise ScheduleError(f"The order is {order}; use 0 to reuse the last feature, 1 for a linear forecast, or more.")


def refuse_derivatives(predictor: str) -> None:
    """Raise the :class:`ScheduleError` of a predictor that weighs features, in the layout ``derivatives``."""
    served = ", ".join(name for name, formula in FORMULAS.items() if isinstance(formula, OfDerivatives))
    raise ScheduleError(
        f"Predictor {predictor!r} was asked of the state layout 'derivatives', which holds the paper's "
        f"differences; use the state layout 'history', or one of the predictors {served}."
    )


@dataclasses.dataclass(frozen=True)
class _Forecasts:
    """The forecasts of one schedule by one predictor, at any order up to its own."""

    schedule: CacheSchedule
    order: int
    predictor: str
    contraction: float
    decay: float

    @functools.cached_property
    def ladders(self) -> dict[int, list[Combination]]:
        # The ladder of a lower order is the beginning of this one.
        return _derivatives(self.schedule, self.order)

    def order_at(self, step: int, largest_sum: float) -> int:
        """Return the largest order whose weights at ``step`` keep to ``largest_sum``."""
        bound = largest_sum * (1 + _ROUNDING)
        orders = range(self.order, 0, -1) if largest_sum < math.inf else (self.order,)
        return next((o for o in orders if math.fsum(map(abs, self.row(step, o).values())) <= bound), 0)

    def row(self, step: int, order: int) -> Combination:
        formula = FORMULAS[self.predictor]
        if isinstance(formula, OfDerivatives):
            weights = self._of_derivatives(step, order)
        else:
            known = [j for j in self.schedule.full_steps if j < step][-(order + 1) :]
            weights = formula.weights(known, step, order)
        return {j: weights[j] for j in sorted(weights) if weights[j] != 0.0}

    def coefficients(self, step: int, order: int) -> list[float]:
        """Return those of D_0, D_1, ... as far as they exist."""
        formula, last = FORMULAS[self.predictor], self.schedule.last_full_step(step)
        assert isinstance(formula, OfDerivatives)
        place = Place(
            distance=step - last,
            gap=self.schedule.gap(last) or 0,  # 0 where no derivative exists that would be asked for
            contraction=self.contraction,
            decay=self.decay,
        )
        existing = min(order, len(self.ladders[last]) - 1)
        return [1.0, *(formula.coefficient(i, place) for i in range(1, existing + 1))]

    def _of_derivatives(self, step: int, order: int) -> Combination:
        weights: Combination = {}
        ladder = self.ladders[self.schedule.last_full_step(step)]
        for coefficient, derivative in zip(self.coefficients(step, order), ladder, strict=False):
            for j, factor in derivative.items():
                weights[j] = weights.get(j, 0.0) + factor * coefficient
        return weights


def _derivatives(schedule: CacheSchedule, order: int) -> dict[int, list[Combination]]:
    """Run the recurrence over one-hot sequences: D_0, D_1, ... at each full step, as far as they exist."""
    ladders: dict[int, list[Combination]] = {}
    previous: list[Combination] = []
    for step in schedule.full_steps:
        ladder: list[Combination] = [{step: 1.0}]
        gap = schedule.gap(step)
        if gap is not None and step >= schedule.derivatives_from:
            for older in previous[:order]:
                ladder.append(_difference(ladder[-1], older, gap))
        ladders[step] = previous = ladder
    return ladders


def _difference(newer: Combination, older: Combination, gap: int) -> Combination:
    return {j: (newer.get(j, 0.0) - older.get(j, 0.0)) / gap for j in sorted(newer.keys() | older.keys())}
