"""Fitted weights: known ones are found again, errors are those of the forecasts, and the ridge leads to Taylor's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from taylorseer.predictor import forecast_weights
from taylorseer.runtime.calibration import inner_products
from taylorseer.runtime.forecast_fit import ForecastFit, taylor_weights
from taylorseer.schedule import mask_schedule

STEPS = 12


def predictions(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((STEPS, 40), np.float32)


@settings(max_examples=30, deadline=None, database=None)
@given(st.integers(0, 99), st.floats(-2, 3))
def test_least_squares_finds_the_weights_again(seed: int, weight: float) -> None:
    series = predictions(seed)
    for step in (7, 8, 9):
        series[step] = weight * series[6] + (1 - weight) * series[3]
    fit = ForecastFit(inner_products(series), np.ones(STEPS), 0.0)
    found = fit.weights((0, 3, 6, 10), 1)
    for step in (7, 8, 9):
        assert found[step] == pytest.approx({3: 1 - weight, 6: weight}, abs=1e-4)
    assert fit.error((3, 6), 10) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("ridge", [0.0, 0.5, None])
def test_the_error_is_that_of_the_forecasts(order: int, ridge: float | None) -> None:
    series, moves = predictions(1), np.linspace(1, 2, STEPS)
    fit, full_steps = ForecastFit(inner_products(series), moves, ridge), (0, 2, 5, 6)
    rows = fit.weights(full_steps, order)
    known = full_steps[-(order + 1) :]
    expected = sum(
        moves[s] ** 2 * np.mean((sum(w * series[j] for j, w in rows[s].items()) - series[s]) ** 2) for s in range(7, 11)
    )
    assert all(set(rows[s]) == set(known) for s in range(7, STEPS))
    assert fit.error(known, 11) == pytest.approx(expected, rel=1e-4)
    assert fit.error(known, 7) == 0


@settings(max_examples=30, deadline=None, database=None)
@given(st.integers(0, 99), st.integers(0, 3))
def test_weights_sum_to_one_and_cost_less_than_those_of_taylor(seed: int, order: int) -> None:
    products, full_steps = inner_products(predictions(seed)), (0, 1, 4, 7)
    fitted, taylor = (ForecastFit(products, np.ones(STEPS), ridge) for ridge in (0.0, None))
    rows = fitted.weights(full_steps, order)
    assert sorted(rows) == [s for s in range(STEPS) if s not in full_steps]
    assert [sum(row.values()) for row in rows.values()] == pytest.approx([1] * len(rows))
    known = full_steps[-(order + 1) :]
    assert fitted.error(known, STEPS) <= taylor.error(known, STEPS) * (1 + 1e-9)


def test_a_strong_ridge_leads_to_the_weights_of_taylor() -> None:
    products, known = inner_products(predictions(0)), (0, 3, 6, 8)
    away = []
    for ridge in (0.0, 1.0, 1e9):
        rows = ForecastFit(products, np.ones(STEPS), ridge).weights(known, 1)
        away.append(max(abs(rows[10][j] - w) for j, w in zip((6, 8), taylor_weights((6, 8), 10), strict=True)))
    assert away[0] > away[1] > 0.1 and away[2] < 1e-6


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_without_a_ridge_they_are_those_of_the_schedule(order: int) -> None:
    full_steps = (0, 1, 2, 5, 6, 9)
    found = ForecastFit(np.eye(STEPS), np.ones(STEPS), None).weights(full_steps, order)
    expected = forecast_weights(mask_schedule(STEPS, full_steps), order=order)
    for step, row in expected.items():
        assert {j: w for j, w in found[step].items() if w} == pytest.approx(row)


def test_equal_full_steps_leave_the_weights_of_taylor() -> None:
    fit = ForecastFit(np.ones((STEPS, STEPS)), np.ones(STEPS), 0.0)
    assert fit.weights((0, 3, 6), 1)[8] == pytest.approx({3: -2 / 3, 6: 5 / 3})


def test_flattened_moves_count_more_alike() -> None:
    moves = np.linspace(0.1, 1, STEPS)
    products = inner_products(predictions(2))
    flat, steep = (ForecastFit(products, moves, 0.1).flattened(power) for power in (0.0, 2.0))
    assert flat.error((0, 2), 6) == pytest.approx(ForecastFit(products, np.ones(STEPS), 0.1).error((0, 2), 6))
    assert steep.error((0, 2), 6) == pytest.approx(ForecastFit(products, moves**2, 0.1).error((0, 2), 6))
    assert flat.weights((0, 2, 6), 1) == steep.weights((0, 2, 6), 1)
