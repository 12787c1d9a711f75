"""Weights by least squares: what a forecast is best made of, by the inner products that a calibration recorded."""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taylorseer.predictor import forecast_weights
from taylorseer.schedule import CacheSchedule

__all__ = ["ForecastFit", "taylor_weights"]

Floats = NDArray[np.float64]

_SHORTEST = 9
"""Steps of the shortest loop that a schedule forecasts in."""


class ForecastFit:
    """Weights and errors of forecasts from the last few full steps, each worked out once."""

    def __init__(self, products: Floats, moves: Floats, ridge: float | None) -> None:
        """Fit to recorded products.

        Args:
            products: float64 [steps, steps], inner products of the predictions, summed over the requests.
            moves: float64 [steps], how far an error of each step moves the result.
            ridge: how hard the weights are drawn to Taylor's, beside the mean square of the differences that they
                weigh: 0 is plain least squares; None: Taylor's weights as they are.
        """
        self._products, self._moves, self._ridge = products, moves, ridge
        self._runs = functools.lru_cache(maxsize=None)(self._run)

    @property
    def steps(self) -> int:
        """Steps of the loop."""
        return len(self._moves)

    def flattened(self, power: float) -> "ForecastFit":
        """Return the same fit with the moves to this power: below 1 errors of all steps count more alike."""
        return ForecastFit(self._products, self._moves**power, self._ridge)

    def weights(self, full_steps: Sequence[int], order: int) -> dict[int, dict[int, float]]:
        """Return forecast step -> {full step: weight}, each forecast of the last ``order + 1`` full steps."""
        found = {}
        for number, (start, end) in enumerate(zip(full_steps, (*full_steps[1:], self.steps), strict=True)):
            known = tuple(full_steps[max(0, number - order) : number + 1])
            rows = self._fitted(known, range(start + 1, end))
            found.update({start + 1 + i: dict(zip(known, map(float, row), strict=True)) for i, row in enumerate(rows)})
        return found

    def error(self, known: tuple[int, ...], end: int) -> float:
        """Return what forecasting the steps after ``known[-1]`` and before ``end`` costs.

        The sum of squared errors of these forecasts from the full steps ``known``, each as it moves the result.
        """
        return float(self._runs(known)[end - known[-1] - 1])

    def _run(self, known: tuple[int, ...]) -> Floats:
        """The cost of 0, 1, 2 ... forecasts after ``known[-1]``, to the end of the loop."""
        targets = range(known[-1] + 1, self.steps)
        weights = self._fitted(known, targets)
        among = self._products[np.ix_(known, known)]
        with_targets = self._products[np.ix_(targets, known)]
        squares = np.einsum("ti,ij,tj->t", weights, among, weights) - 2 * np.sum(weights * with_targets, axis=1)
        squares += self._products.diagonal()[known[-1] + 1 :]
        # Rounding may leave a little less than nothing of an exact forecast.
        return np.append(0.0, np.cumsum(self._moves[known[-1] + 1 :] ** 2 * np.maximum(squares, 0)))

    def _fitted(self, known: tuple[int, ...], targets: range) -> Floats:
        """Float64 [targets, known]: the weights that sum to 1 with the smallest error, drawn to Taylor's."""
        prior = np.array([taylor_weights(known, step) for step in targets]).reshape(len(targets), len(known))
        free = len(known) - 1
        if self._ridge is None or not free or not targets:
            return prior
        # Whatever is added along these columns keeps the sum: one full step more, the last one less.
        along = np.vstack([np.eye(free), -np.ones(free)])
        among = self._products[np.ix_(known, known)]
        left = self._products[np.ix_(targets, known)] - prior @ among
        square = along.T @ among @ along
        square += self._ridge * np.trace(square) / free * np.eye(free)
        # The smallest change, should the differences of the full steps not be independent.
        change = np.linalg.lstsq(square, (left @ along).T, rcond=None)[0]
        fitted: Floats = prior + change.T @ along.T
        return fitted


def taylor_weights(known: tuple[int, ...], step: int) -> Floats:
    """Return float64 [known]: the paper's weights at ``step`` of the last full steps, at the order that they allow."""
    return _taylor_weights(tuple(full - known[0] for full in known), step - known[0])


@functools.lru_cache(maxsize=1 << 16)
def _taylor_weights(known: tuple[int, ...], step: int) -> Floats:
    schedule = CacheSchedule(steps=max(step + 1, _SHORTEST), full_steps=known)
    row = forecast_weights(schedule, order=len(known) - 1)[step]
    return np.array([row.get(full, 0.0) for full in known])
