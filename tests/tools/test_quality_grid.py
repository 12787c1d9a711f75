"""What the study tries: every interval, order and predictor, and nothing twice."""

import pytest

from taylorseer.guard import LARGEST_SUM
from taylorseer.predictor import PREDICTORS
from tools.quality_grid import (
    GUARD_INTERVALS,
    INTERVALS,
    STEPS,
    Forecast,
    forecast_digest,
    grid,
    guard_grid,
    sample_forecasts,
    short_grid,
    weight_sum,
)
from tools.quality_systems import SYSTEMS

FLUX = SYSTEMS["flux-emoji"]


def digest(order: int, predictor: str, interval: int = 6) -> str:
    forecast = Forecast(steps=STEPS, interval=interval, order=order, predictor=predictor)
    return forecast_digest(forecast.cache(FLUX))


def test_the_grid_has_every_interval_order_and_predictor() -> None:
    tried = {(f.interval, f.order, f.predictor) for f in grid()}
    wanted = {(n, o, p) for n in range(2, 11) for o in range(1, 5) for p in PREDICTORS if p != "reuse"}
    assert tried == wanted | {(n, 0, "reuse") for n in range(2, 11)}


def test_forecasts_of_equal_weights_are_one() -> None:
    assert digest(1, "newton") == digest(1, "least-squares") == digest(1, "taylor")
    assert digest(0, "taylor") == digest(0, "newton") == digest(0, "reuse")
    assert digest(2, "exponential") == digest(1, "exponential")


def test_forecasts_of_other_weights_are_not() -> None:
    assert digest(2, "newton") != digest(2, "taylor") != digest(1, "taylor") != digest(0, "reuse")
    assert digest(1, "taylor") != digest(1, "taylor", interval=7)


@pytest.mark.parametrize("model", SYSTEMS)
def test_guards_keep_the_number_of_full_steps_and_bound_the_weights(model: str) -> None:
    bare: dict[tuple[int, int], int] = {}
    for forecast in guard_grid():
        cache = forecast.cache(SYSTEMS[model])
        full, place = len(cache.schedule().full_steps), (forecast.interval, forecast.order)
        if forecast.guard == "none":
            bare[place] = full
            if forecast.order == 1:
                assert weight_sum(cache)[1] == pytest.approx(2 * forecast.interval - 1)
        else:
            assert full == bare[place] and weight_sum(cache)[1] <= LARGEST_SUM + 1e-9
    assert {interval for interval, _ in bare} == set(GUARD_INTERVALS)


def test_short_loops_have_a_schedule_at_every_interval() -> None:
    for forecast in short_grid(20):
        assert forecast.cache(FLUX).schedule().steps == 20
    assert {forecast.interval for forecast in short_grid(20)} == set(INTERVALS)


@pytest.mark.parametrize("model", SYSTEMS)
def test_samples_of_taylor_and_reuse_have_the_same_full_steps(model: str) -> None:
    ways = sample_forecasts(SYSTEMS[model])
    taylor, reuse = ways["taylor"], ways["reuse"]
    assert ways["every step full"] is None and taylor and reuse
    schedules = [way.cache(SYSTEMS[model]).schedule().full_steps for way in (taylor, reuse)]
    assert schedules[0] == schedules[1]
