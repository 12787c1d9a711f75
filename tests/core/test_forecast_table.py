"""A table of weights: the round trip, what fits a schedule, a refusal for each mistake."""

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.errors import ScheduleError
from taylorseer.forecast_table import ForecastTable
from taylorseer.predictor import PREDICTORS, forecast_weights
from taylorseer.schedule import interval_schedule, mask_schedule

SCHEDULE = mask_schedule(9, [0, 2, 4, 6])
ROWS = {1: {0: 1.0}, 3: {0: -0.5, 2: 1.4}, 5: {2: -0.5, 4: 1.5}, 7: {6: 1.0}, 8: {4: -1.0, 6: 2.0}}


@settings(max_examples=50, deadline=None, database=None)
@given(st.integers(9, 30), st.integers(2, 6), st.integers(1, 3), st.integers(0, 3), st.sampled_from(PREDICTORS))
def test_any_predictor_is_a_table(steps: int, interval: int, warmup: int, order: int, predictor: str) -> None:
    schedule = interval_schedule(steps, interval, warmup)
    weights = forecast_weights(schedule, order=order, predictor=predictor)
    table = ForecastTable.from_weights(weights)
    table.check(schedule, order=order)
    assert table.weights() == weights
    again = ForecastTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table and hash(again) == hash(table)


def test_rows_are_sorted_and_zeros_left_out() -> None:
    table = ForecastTable.from_weights({3: {2: 2.0, 0: -1.0, 1: 0.0}, 1: {0: 1}})
    assert table.rows == ((1, ((0, 1.0),)), (3, ((0, -1.0), (2, 2.0))))
    assert table.to_json() == {"1": {"0": 1.0}, "3": {"0": -1.0, "2": 2.0}}


def test_a_table_that_fits() -> None:
    ForecastTable.from_weights(ROWS).check(SCHEDULE, order=1)
    ForecastTable.from_weights(ROWS).check(SCHEDULE, order=3)


@pytest.mark.parametrize("total", [0.5, 1.5])
def test_a_sum_may_be_somewhat_off(total: float) -> None:
    assert ForecastTable.from_weights({1: {0: total}}).weights() == {1: {0: total}}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({3: {0: math.nan, 2: 1.0}}, r"weight nan at step 3; give finite numbers"),
        ({3: {2: math.inf}}, r"weight inf at step 3"),
        ({3: {2: 0.49}}, r"weights of step 3 sum to 0\.49, .* to about 1 \(0\.5 to 1\.5\); calibrate again"),
        ({3: {0: -1.0, 2: 2.6}}, r"sum to 1\.6"),
        ({3: {}}, r"weights of step 3 sum to 0,"),
        ({3: {3: 1.0}}, r"forecasts step 3 from step 3; use full steps before it"),
        ({3: {-1: 1.0}}, r"forecasts step 3 from step -1"),
    ],
)
@pytest.mark.parametrize(
    "build",
    [
        ForecastTable.from_weights,
        lambda weights: ForecastTable(rows=tuple((step, tuple(row.items())) for step, row in weights.items())),
    ],
)
def test_weights_that_no_schedule_could_use(
    build: Callable[..., ForecastTable], weights: dict[int, dict[int, float]], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        build(weights)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (((3, ((2, 1.0),)), (1, ((0, 1.0),))), r"the forecast steps do not ascend: 3, 1; sort them, each once"),
        (((1, ((0, 1.0),)), (1, ((0, 1.0),))), r"the forecast steps do not ascend: 1, 1"),
        (((3, ((2, 2.0), (0, -1.0))),), r"the full steps of the forecast step 3 do not ascend: 2, 0"),
    ],
)
def test_rows_ascend(rows: tuple[tuple[int, tuple[tuple[int, float], ...]], ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        ForecastTable(rows=rows)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([[1, 0, 1.0]], r"A table is an object of a row for each forecast step; write \{\"3\": \{\"1\": -1\.0"),
        ({"1": 1.0}, r"an object of a row for each"),
        ({"1": {"0": "1.0"}}, r"A table holds steps and weights, and '1\.0' is no number; write"),
        ({"1": {"0": True}}, r"True is no number"),
        ({"one": {"0": 1.0}}, r"invalid literal for int\(\) .* 'one'; write"),
        ({"3": {"0": 2.0}}, r"weights of step 3 sum to 2,"),
    ],
)
def test_json_that_is_no_table(mapping: object, message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        ForecastTable.from_json(mapping)


@pytest.mark.parametrize(
    ("changes", "order", "message"),
    [
        ({7: None}, 1, r"no row for step 7, which is forecast in a schedule of 9 steps with the full steps 0, 2, 4, 6"),
        ({2: {0: 1.0}}, 1, r"a row for step 2, which is full in a schedule .*; calibrate again for this schedule, or"),
        ({9: {6: 1.0}}, 1, r"a row for step 9, which is full"),
        ({}, 0, r"forecasts step 3 from step 0, and order 0 remembers the full steps 2 there; use a higher order, or"),
        ({8: {2: 1.0}}, 1, r"forecasts step 8 from step 2, and order 1 remembers the full steps 4, 6 there"),
        ({8: {7: 1.0}}, 1, r"forecasts step 8 from step 7, and order 1 remembers"),
    ],
)
def test_a_table_of_another_schedule(changes: dict[int, dict[int, float] | None], order: int, message: str) -> None:
    rows = {step: row for step, row in {**ROWS, **changes}.items() if row is not None}
    with pytest.raises(ScheduleError, match=message):
        ForecastTable.from_weights(rows).check(SCHEDULE, order=order)
