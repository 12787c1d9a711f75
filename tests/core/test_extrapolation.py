"""Each formula on the series that it is to be exact on, and no other series by accident."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.config import PRESETS
from taylorseer.extrapolation import FORMULAS, OfDerivatives, Place
from taylorseer.predictor import PREDICTORS, derivative_coefficients, forecast_weights, largest_weight_sum
from taylorseer.schedule import CacheSchedule, interval_schedule, mask_schedule

EXACT = 1e-11
"""Relative to the magnitudes that are summed: a least squares system of five points takes some hundred float64
roundings, of 1e-16 each, and is conditioned to a few hundred."""

shares = st.floats(0.01, 0.99)


@st.composite
def schedules(draw: st.DrawFn) -> CacheSchedule:
    """Full steps 1 to 9 apart, in a loop that goes on after the last."""
    gaps = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    full_steps = [0, *(sum(gaps[: i + 1]) for i in range(len(gaps)))]
    steps = max(9, full_steps[-1] + draw(st.integers(2, 9)))
    return mask_schedule(steps, full_steps, draw(st.integers(0, 4)))


def known(schedule: CacheSchedule, step: int, order: int) -> list[int]:
    return [j for j in schedule.full_steps if j < step][-(order + 1) :]


def has_derivative(schedule: CacheSchedule, step: int) -> bool:
    last = schedule.last_full_step(step)
    return last > 0 and last >= schedule.derivatives_from


@settings(max_examples=150, deadline=None, database=None)
@given(schedules(), st.integers(1, 5))
def test_least_squares_is_exact_on_polynomials_of_its_degree(schedule: CacheSchedule, order: int) -> None:
    for step, row in forecast_weights(schedule, order=order, predictor="least-squares").items():
        points = known(schedule, step, order)
        for degree in range(min(len(points) - 1, max(1, order - 1)) + 1):
            terms = [weight * ((j - step) / 9 + 1) ** degree for j, weight in row.items()]
            assert abs(math.fsum(terms) - 1) <= EXACT * (1 + math.fsum(map(abs, terms)))


@settings(max_examples=150, deadline=None, database=None)
@given(schedules(), st.integers(2, 4))
def test_least_squares_lets_noise_grow_no_more_than_a_polynomial_through_fewer_points(
    schedule: CacheSchedule, order: int
) -> None:
    """Noise that is independent at each full step grows by the root of the sum of squares."""
    fitted = forecast_weights(schedule, order=order, predictor="least-squares")
    through = forecast_weights(schedule, order=order - 1, predictor="newton")
    for step, row in fitted.items():
        assert math.hypot(*row.values()) <= (1 + EXACT) * math.hypot(*through[step].values())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_least_squares_sums_to_less_than_newton(preset: str, order: int) -> None:
    schedule = PRESETS[preset].schedule()
    sums = [
        largest_weight_sum(forecast_weights(schedule, order=order, predictor=predictor))[1]
        for predictor in ("least-squares", "newton")
    ]
    assert sums[0] < sums[1]


def test_least_squares_by_hand() -> None:
    """A line through the steps 0, 6 and 12, seen from 15: their mean is 6, the sum of squares around it 72."""
    row = forecast_weights(mask_schedule(16, [0, 6, 12]), order=2, predictor="least-squares")[15]
    assert row == pytest.approx({0: 1 / 3 - 54 / 72, 6: 1 / 3, 12: 1 / 3 + 54 / 72})


@settings(max_examples=50, deadline=None, database=None)
@given(schedules())
def test_least_squares_of_order_one_is_newton(schedule: CacheSchedule) -> None:
    fitted = forecast_weights(schedule, order=1, predictor="least-squares")
    for step, row in forecast_weights(schedule, order=1, predictor="newton").items():
        assert fitted[step] == pytest.approx(row, rel=EXACT)


@settings(max_examples=100, deadline=None, database=None)
@given(st.integers(1, 6), st.integers(1, 20), shares)
def test_hermite_is_that_of_numpy(i: int, distance: int, contraction: float) -> None:
    formula = FORMULAS["hermite"]
    assert isinstance(formula, OfDerivatives)
    found = formula.coefficient(i, Place(distance=distance, gap=1, contraction=contraction))
    basis = [0.0] * i + [1.0]
    expected = np.polynomial.hermite.hermval(contraction * distance, basis) * contraction**i / math.factorial(i)
    # Terms of a Hermite polynomial alternate; they are at most those of a polynomial of the same moduli.
    size = np.abs(np.polynomial.hermite.herm2poly(basis)) @ (contraction * distance) ** np.arange(i + 1)
    assert abs(found - expected) <= EXACT * size


@settings(max_examples=100, deadline=None, database=None)
@given(schedules(), st.integers(1, 2), shares)
def test_hermite_contracts_the_distance_along_a_line(schedule: CacheSchedule, order: int, contraction: float) -> None:
    """Once the second difference of a line is the 0 that it has to be; exact for no contraction but sqrt(1/2)."""
    weights = forecast_weights(schedule, order=order, predictor="hermite", contraction=contraction)
    for step, row in weights.items():
        terms = [weight * (3.0 * j + 7.0) for j, weight in row.items()]
        reach = 2 * contraction**2 * schedule.distance(step) if has_derivative(schedule, step) else 0.0
        expected = 3.0 * (schedule.last_full_step(step) + reach) + 7.0
        assert abs(math.fsum(terms) - expected) <= EXACT * (expected + math.fsum(map(abs, terms)))


def test_hermite_of_order_one_is_taylor_for_the_root_of_a_half() -> None:
    schedule = interval_schedule(50, 6, 3)
    found = forecast_weights(schedule, order=1, predictor="hermite", contraction=math.sqrt(0.5))
    for step, row in forecast_weights(schedule, order=1).items():
        assert found[step] == pytest.approx(row)


@settings(max_examples=150, deadline=None, database=None)
@given(schedules(), st.integers(1, 4), shares)
def test_exponential_is_exact_on_a_constant_and_one_decay(schedule: CacheSchedule, order: int, decay: float) -> None:
    for step, row in forecast_weights(schedule, order=order, predictor="exponential", decay=decay).items():
        assert len(row) <= 2
        last = schedule.last_full_step(step)
        terms = [weight * (5.0 + decay ** (j - last)) for j, weight in row.items()]
        expected = 5.0 + decay ** (step - last if has_derivative(schedule, step) else 0)
        assert abs(math.fsum(terms) - expected) <= EXACT * (expected + math.fsum(map(abs, terms)))


@settings(max_examples=50, deadline=None, database=None)
@given(schedules())
def test_exponential_lies_between_reuse_and_a_line(schedule: CacheSchedule) -> None:
    def rows(predictor: str, **number: float) -> dict[int, dict[int, float]]:
        return forecast_weights(schedule, order=1, predictor=predictor, **number)

    slow, fast = rows("exponential", decay=1 - 1e-9), rows("exponential", decay=1e-12)
    line, reuse = rows("taylor"), rows("reuse")
    for step in schedule.forecast_steps:
        assert slow[step] == pytest.approx(line[step], rel=1e-6)
        assert {0: 0.0, **fast[step]} == pytest.approx(
            {0: 0.0, **dict.fromkeys(fast[step], 0.0), **reuse[step]}, abs=1e-11
        )


@settings(max_examples=50, deadline=None, database=None)
@given(schedules(), st.integers(1, 4), shares)
def test_exponential_has_a_coefficient_of_the_first_derivative_alone(
    schedule: CacheSchedule, order: int, decay: float
) -> None:
    coefficients = derivative_coefficients(schedule, order=order, predictor="exponential", decay=decay)
    for step, row in coefficients.items():
        assert row[0] == 1.0 and not row[2:].any()
        assert 0.0 <= row[1] <= schedule.distance(step)
        assert (row[1] > 0.0) == has_derivative(schedule, step)


def test_the_formulas_are_the_predictors() -> None:
    assert tuple(FORMULAS) == PREDICTORS
