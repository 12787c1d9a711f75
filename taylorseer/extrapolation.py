"""The formulas of the predictors, one function each: how one forecast step is made of what earlier full steps left.

A formula is of one of two kinds.  :class:`OfDerivatives` weighs the official derivatives: ``F(s) ~ D_0 + sum_i c_i
D_i``, so every state layout serves it.  :class:`OfFeatures` weighs the features themselves: ``F(s) ~ sum_j w_j F(j)``,
which the layouts ``history`` and ``folded`` serve.  Below, x is the distance of the forecast step from the last full
step, and gap that of the last full step from the one before.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

__all__ = ["CONTRACTION", "DECAY", "FORMULAS", "NUMBERS", "Combination", "OfDerivatives", "OfFeatures", "Place"]

CONTRACTION = 0.5
"""Of ``hermite``: the default of published HiCache code for FLUX."""

DECAY = 0.9
"""Of ``exponential``: a change is half as large 6.6 steps later, about one interval of the presets."""

Combination: TypeAlias = dict[int, float]
"""A linear combination of features: full step -> its float64 factor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a forecast step lies, and the numbers that some formulas take beside it."""

    distance: int
    gap: int
    contraction: float = CONTRACTION
    decay: float = DECAY


@dataclasses.dataclass(frozen=True)
class OfDerivatives:
    """``D_0 + sum_i coefficient(i, place) * D_i`` for 1 <= i <= order, over the derivatives that exist."""

    coefficient: Callable[[int, Place], float]


@dataclasses.dataclass(frozen=True)
class OfFeatures:
    """``weights(known, step, order)`` of the full steps ``known``: the last order + 1 of them, or as many as there are.

    They ascend and are at least one.
    """

    weights: Callable[[Sequence[int], int, int], Combination]


def _taylor(i: int, place: Place) -> float:
    """``x^i / i!``, as the authors do (TaylorSeer, arXiv 2503.06923).

    Exact on lines; not on quadratics, because backward differences stand for derivatives.
    """
    return float(place.distance**i / math.factorial(i))


def _reuse(i: int, place: Place) -> float:
    """0: the last feature as it is.  Exact on constants."""
    return 0.0


def _hermite(i: int, place: Place) -> float:
    """``c^i H_i(c x) / i!`` with the physicists' Hermite polynomials and the contraction c (HiCache, arXiv 2508.16984).

    ``H_0 = 1``, ``H_1 = 2 y``, ``H_{i+1} = 2 y H_i - 2 i H_{i-1}``.  Exact on constants.  On a line of slope b it gives
    ``F + 2 c^2 x b``: a distance contracted by 2 c^2, and exact only for c = sqrt(1/2), where order 1 is ``taylor``.
    """
    y = place.contraction * place.distance
    before, value = 0.0, 1.0
    for k in range(i):
        before, value = value, 2 * y * value - 2 * k * before
    return place.contraction**i * value / math.factorial(i)


def _exponential(i: int, place: Place) -> float:
    """Exact on ``a + b r^s``, with r the decay: what Prony's method fits, with one ratio that is known beforehand.

    Two full steps are enough: ``F + (F - F of the previous full step) r^gap (1 - r^x) / (1 - r^gap)``.  This is the
    damped trend of forecasting (Gardner and McKenzie, 1985); r towards 1 is a line, r towards 0 is ``reuse``.
    """
    if i > 1:
        return 0.0
    rate = math.log(place.decay)  # expm1 keeps the digits of 1 - r^x for r near 1
    grown = math.exp(rate * place.gap) * math.expm1(rate * place.distance) / math.expm1(rate * place.gap)
    return place.gap * grown


def _newton(known: Sequence[int], step: int, order: int) -> Combination:
    """Lagrange's weights of the polynomial through all known points; exact on polynomials of degree ``order``."""
    return {j: math.prod(((step - k) / (j - k) for k in known if k != j), start=1.0) for j in known}


def _least_squares(known: Sequence[int], step: int, order: int) -> Combination:
    """Weights of the polynomial of degree ``max(1, order - 1)`` that fits the known points by least squares.

    They are those of the smallest Euclidean norm among all that are exact on such polynomials, so independent noise of
    the features grows least.  Up to order 1, and while no more points are known than a degree takes, it is ``newton``.
    """
    degree = min(len(known) - 1, max(1, order - 1))
    center, half = (known[0] + known[-1]) / 2, max(1.0, (known[-1] - known[0]) / 2)
    # In the points' own units, so that powers neither grow nor vanish and the system stays well conditioned.
    powers = np.vander((np.array(known, np.float64) - center) / half, degree + 1, increasing=True)
    target = ((step - center) / half) ** np.arange(degree + 1, dtype=np.float64)
    smallest = np.linalg.lstsq(powers.T, target, rcond=None)[0]
    return dict(zip(known, map(float, smallest), strict=True))


FORMULAS: Mapping[str, OfDerivatives | OfFeatures] = MappingProxyType(
    {
        "taylor": OfDerivatives(_taylor),
        "reuse": OfDerivatives(_reuse),
        "newton": OfFeatures(_newton),
        "least-squares": OfFeatures(_least_squares),
        "hermite": OfDerivatives(_hermite),
        "exponential": OfDerivatives(_exponential),
    }
)
"""Predictor -> its formula."""

NUMBERS: Mapping[str, str] = MappingProxyType({"hermite": "contraction", "exponential": "decay"})
"""Predictor -> the field of the cache config that is its alone."""
