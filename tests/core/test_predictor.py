"""Weights against the recurrence itself, run step by step on random features like the published loops."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.errors import ScheduleError
from taylorseer.predictor import (
    EXACT_ON_LINES,
    PREDICTORS,
    derivative_coefficients,
    difference_scales,
    forecast_weights,
    largest_weight_sum,
)
from taylorseer.schedule import CacheSchedule, interval_schedule, mask_schedule, modulo_schedule

# Two summation orders of one forecast differ by a few float64 roundings (1.1e-16) per operation.  Order 4
# takes some 40 operations, hence below 1e-14; the bound leaves room and is far below any wrong weight.
TOLERANCE = 1e-12

Array = npt.NDArray[np.float64]
Row = Mapping[int, float]


@st.composite
def schedules(draw: st.DrawFn) -> CacheSchedule:
    """A random schedule of 9..100 steps by either rule or by a mask, with a random derivative gate."""
    steps, gate = draw(st.integers(9, 100)), draw(st.integers(0, 4))
    if draw(st.booleans()):
        mask = [True, *(draw(st.integers(0, 2)) == 0 for _ in range(steps - 2)), False]
        return mask_schedule(steps, mask, gate)
    warmup = draw(st.integers(1, min(8, steps - 1)))
    cooldown = draw(st.integers(0, min(4, steps - 1 - warmup)))
    rule = draw(st.sampled_from([interval_schedule, modulo_schedule]))
    return rule(steps, draw(st.integers(2, 12)), warmup, cooldown, gate)


orders = st.integers(0, 4)
seeds = st.integers(0, 2**32 - 1)


def reference_forecasts(features: Array, schedule: CacheSchedule, order: int) -> dict[int, Array]:
    """Forecast as the official loop does: a dictionary of derivatives, remade at each full step."""
    cache: dict[int, Array] = {}
    activated: list[int] = []
    forecasts: dict[int, Array] = {}
    for step in range(schedule.steps):
        if step in schedule.full_steps:
            activated.append(step)
            factors = {0: features[step]}
            for i in range(order):
                if cache.get(i) is None or step < schedule.derivatives_from:
                    break
                factors[i + 1] = (factors[i] - cache[i]) / (activated[-1] - activated[-2])
            cache = factors
        else:
            x = step - activated[-1]
            forecasts[step] = np.sum([cache[i] * x**i / math.factorial(i) for i in range(len(cache))], axis=0)
    return forecasts


def weighted_terms(row: Row, features: Array) -> Array:
    return np.array([weight * features[j] for j, weight in row.items()])


def relative_error(found: Array, expected: Array, terms: Array) -> float:
    """Norm of the difference over norm of ``sum_j |w_j F_j|``.

    The terms, not the result, are the measure: where large terms cancel, no order of summation keeps the
    result's digits.  Taylor weights alternate in sign at every order, so the measure hides no cancellation
    among orders.
    """
    return float(np.linalg.norm(found - expected) / np.linalg.norm(np.abs(terms).sum(axis=0)))


def forecast_series(series: Callable[[int], float], schedule: CacheSchedule, **choice: Any) -> dict[int, float]:
    return {
        step: sum(weight * series(j) for j, weight in row.items())
        for step, row in forecast_weights(schedule, **choice).items()
    }


@settings(max_examples=1000, deadline=None, database=None, derandomize=True)
@given(schedules(), orders, seeds)
def test_taylor_weights_equal_the_official_recurrence(schedule: CacheSchedule, order: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((schedule.steps, 5))
    weights = forecast_weights(schedule, order=order)
    expected = reference_forecasts(features, schedule, order)
    assert weights.keys() == expected.keys() == set(schedule.forecast_steps)
    for step, row in weights.items():
        terms = weighted_terms(row, features)
        assert relative_error(terms.sum(axis=0), expected[step], terms) <= TOLERANCE


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(schedules(), orders, seeds, st.sampled_from(["taylor", "reuse", "hermite", "exponential"]))
def test_scales_and_coefficients_run_the_same_recurrence_without_conditions(
    schedule: CacheSchedule, order: int, seed: int, predictor: str
) -> None:
    features = np.random.default_rng(seed).standard_normal((schedule.steps, 5))
    weights = forecast_weights(schedule, order=order, predictor=predictor)
    scales = difference_scales(schedule, order=order)
    coefficients = derivative_coefficients(schedule, order=order, predictor=predictor)
    derivatives = np.zeros((order + 1, 5))
    for step in range(schedule.steps):
        if schedule.is_full(step):
            previous, derivatives = derivatives, np.zeros((order + 1, 5))
            derivatives[0] = features[step]
            for i in range(order):
                derivatives[i + 1] = scales[step][i] * (derivatives[i] - previous[i])
        else:
            found = coefficients[step] @ derivatives
            terms = weighted_terms(weights[step], features)
            assert relative_error(found, terms.sum(axis=0), terms) <= TOLERANCE


@settings(max_examples=300, deadline=None, database=None)
@given(schedules(), orders, st.sampled_from(PREDICTORS))
def test_weights_sum_to_one_stay_in_the_past_and_are_not_zero(
    schedule: CacheSchedule, order: int, predictor: str
) -> None:
    for step, row in forecast_weights(schedule, order=order, predictor=predictor).items():
        size = math.fsum(map(abs, row.values()))
        assert abs(math.fsum(row.values()) - 1.0) <= TOLERANCE * size
        newest = [j for j in schedule.full_steps if j < step][-(order + 1) :]
        assert set(row) <= set(newest)
        assert all(type(weight) is float and weight != 0.0 for weight in row.values())


@settings(max_examples=300, deadline=None, database=None)
@given(schedules(), st.integers(1, 4), st.sampled_from(sorted(EXACT_ON_LINES)))
def test_a_linear_series_is_exact_once_two_full_steps_are_known(
    schedule: CacheSchedule, order: int, predictor: str
) -> None:
    for step, row in forecast_weights(schedule, order=order, predictor=predictor).items():
        terms = [weight * (3.0 * j + 7.0) for j, weight in row.items()]
        last = schedule.last_full_step(step)
        gated = predictor == "taylor" and last < schedule.derivatives_from
        if last == 0 or gated:  # one feature known, or no derivative allowed yet: the last feature is reused
            assert terms == [3.0 * last + 7.0]
        else:
            error = abs(math.fsum(terms) - (3.0 * step + 7.0))
            assert error <= TOLERANCE * math.fsum(map(abs, terms))


@settings(max_examples=200, deadline=None, database=None)
@given(schedules(), st.integers(0, 3))
def test_newton_is_exact_on_polynomials_of_its_degree(schedule: CacheSchedule, order: int) -> None:
    weights = forecast_weights(schedule, order=order, predictor="newton")
    for step, row in weights.items():
        degree = len(row) - 1
        assert degree == min(order, schedule.full_steps.index(schedule.last_full_step(step)))
        scaled = {j: weight * (j - step + 1) ** degree for j, weight in row.items()}
        size = math.fsum(map(abs, scaled.values())) + 1.0
        assert math.fsum(scaled.values()) == pytest.approx(1.0, abs=TOLERANCE * size)


@settings(max_examples=100, deadline=None, database=None)
@given(schedules(), orders)
def test_reuse_is_the_last_feature_and_order_zero_is_reuse(schedule: CacheSchedule, order: int) -> None:
    expected = {step: {schedule.last_full_step(step): 1.0} for step in schedule.forecast_steps}
    assert forecast_weights(schedule, order=order, predictor="reuse") == expected
    for predictor in PREDICTORS:
        found = forecast_weights(schedule, order=0, predictor=predictor)
        assert {step: pytest.approx(row) for step, row in found.items()} == expected


def test_differences_are_not_derivatives_of_a_quadratic() -> None:
    schedule = mask_schedule(28, [0, 6, 12, 18, 24])
    taylor = forecast_series(lambda s: s**2, schedule, order=2)
    newton = forecast_series(lambda s: s**2, schedule, order=2, predictor="newton")
    assert taylor[27] == pytest.approx(711, abs=1e-9)
    assert newton[27] == pytest.approx(729, abs=1e-9)


def test_flux_weights_by_hand() -> None:
    weights = forecast_weights(interval_schedule(50, 6, 3, derivatives_from=2), order=1)
    assert weights[3] == {1: -1.0, 2: 2.0}
    assert weights[7] == {1: -5.0, 2: 6.0}
    assert weights[9] == pytest.approx({2: -1 / 6, 8: 7 / 6})


def test_the_gate_delays_a_second_derivative() -> None:
    gated = derivative_coefficients(interval_schedule(50, 6, 3, derivatives_from=2), order=2)
    free = derivative_coefficients(interval_schedule(50, 6, 3), order=2)
    assert gated[4].tolist() == [1.0, 2.0, 0.0]
    assert free[4].tolist() == [1.0, 2.0, 2.0]
    assert gated[10].tolist() == [1.0, 2.0, 2.0]


def test_scales_are_the_inverse_gap_where_a_derivative_is_built() -> None:
    scales = difference_scales(interval_schedule(14, 6, 3, derivatives_from=2), order=2)
    assert {step: row.tolist() for step, row in scales.items()} == {
        0: [0.0, 0.0],
        1: [0.0, 0.0],
        2: [1.0, 0.0],
        8: [1 / 6, 1 / 6],
    }


def test_arrays_are_float64_of_the_order() -> None:
    schedule = interval_schedule(50, 6, 3)
    for order in (0, 3):
        for row in difference_scales(schedule, order=order).values():
            assert row.dtype == np.float64 and row.shape == (order,)
        for row in derivative_coefficients(schedule, order=order, predictor="reuse").values():
            assert row.dtype == np.float64 and row.tolist() == [1.0] + [0.0] * order


@pytest.mark.parametrize("interval", [2, 6, 9])
def test_the_first_window_amplifies_most(interval: int) -> None:
    weights = forecast_weights(interval_schedule(50, interval, 3), order=1)
    assert largest_weight_sum(weights) == (2 + interval - 1, 2 * interval - 1)
    later = {step: row for step, row in weights.items() if step > 2 + interval}
    assert largest_weight_sum(later)[1] == pytest.approx(1 + 2 * (interval - 1) / interval)


def test_flux_amplifies_elevenfold_then_2_67() -> None:
    weights = forecast_weights(interval_schedule(50, 6, 3, derivatives_from=2), order=1)
    assert largest_weight_sum(weights) == (7, 11.0)
    assert largest_weight_sum({s: row for s, row in weights.items() if s > 8})[1] <= 2.67


def test_largest_weight_sum_names_the_first_of_equals() -> None:
    assert largest_weight_sum({4: {0: 1.0}, 5: {0: -1.0, 3: 2.0}, 6: {3: 3.0}}) == (5, 3.0)


def test_the_baseline_has_no_weights() -> None:
    baseline = CacheSchedule.every_step_full(50)
    assert all(forecast_weights(baseline, order=1, predictor=predictor) == {} for predictor in PREDICTORS)
    with pytest.raises(ValueError, match="every step of this schedule is full"):
        largest_weight_sum({})


def test_a_lower_order_is_the_largest_that_keeps_to_the_sum() -> None:
    """Also in the coefficients of the derivatives, and no further than it has to be."""
    schedule = interval_schedule(50, 6, 3, derivatives_from=2)
    weights = forecast_weights(schedule, order=2, largest_sum=3.0)
    by_order = [forecast_weights(schedule, order=order) for order in range(3)]
    coefficients = derivative_coefficients(schedule, order=2, largest_sum=3.0)
    lowered = {}
    for step, row in weights.items():
        sums = [math.fsum(map(abs, of_order[step].values())) for of_order in by_order]
        lowered[step] = max(order for order in range(3) if sums[order] <= 3.0)
        assert row == by_order[lowered[step]][step]
        assert not coefficients[step][lowered[step] + 1 :].any()
    assert [lowered[step] for step in (3, 4, 9, 10, 13)] == [2, 0, 2, 2, 1]


def test_without_a_bound_no_order_is_lowered() -> None:
    schedule = interval_schedule(50, 6, 3)
    assert forecast_weights(schedule, order=4, largest_sum=1e9) == forecast_weights(schedule, order=4)
    assert largest_weight_sum(forecast_weights(schedule, order=4, largest_sum=1.0))[1] == 1.0


@pytest.mark.parametrize("predictor", ["newton", "least-squares"])
def test_who_weighs_features_has_no_coefficients_of_derivatives(predictor: str) -> None:
    message = (
        rf"'{predictor}' was asked of the state layout 'derivatives', which holds the paper's differences; use the "
        r"state layout 'history', or one of the predictors taylor, reuse, hermite, exponential\."
    )
    with pytest.raises(ScheduleError, match=message):
        derivative_coefficients(interval_schedule(50, 6, 3), order=1, predictor=predictor)


@pytest.mark.parametrize("function", [forecast_weights, derivative_coefficients])
def test_unknown_predictors_are_refused(function: Callable[..., object]) -> None:
    message = r"no predictor 'hermit'; use one of taylor, reuse, newton, least-squares, hermite, exponential\."
    with pytest.raises(ScheduleError, match=message):
        function(interval_schedule(50, 6, 3), order=1, predictor="hermit")


@pytest.mark.parametrize("function", [forecast_weights, derivative_coefficients, difference_scales])
def test_negative_orders_are_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ScheduleError, match="order is -1; use 0 to reuse"):
        function(interval_schedule(50, 6, 3), order=-1)
