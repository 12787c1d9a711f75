"""Both guards bound the sum of |weights|; the spread costs no full step, no longer window and no cool-down."""

import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.accumulators import accumulators_of
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.guard import LARGEST_SUM, check_spread, spread_warmup
from taylorseer.predictor import PREDICTORS, forecast_weights, largest_weight_sum
from taylorseer.schedule import CacheSchedule, interval_schedule, mask_schedule, modulo_schedule

BOUND = LARGEST_SUM * (1 + 1e-9)
"""Weights are rounded."""

Build = Callable[..., CacheSchedule]

predictors, rules = st.sampled_from(PREDICTORS), st.sampled_from([interval_schedule, modulo_schedule])


def gaps(schedule: CacheSchedule) -> list[int]:
    """The last one reaches to the end of the loop."""
    return [end - start for start, end in itertools.pairwise((*schedule.full_steps, schedule.steps))]


@pytest.mark.parametrize("guard", ["lower-order", "spread-warmup"])
@pytest.mark.parametrize("interval", range(2, 11))
def test_the_first_window_of_flux_is_quiet_without_another_full_step(interval: int, guard: str) -> None:
    official = CacheConfig.from_preset("flux", interval=interval)
    guarded = CacheConfig.from_preset("flux", interval=interval, guard=guard)
    assert largest_weight_sum(official.weights())[1] == 2 * interval - 1
    assert largest_weight_sum(guarded.weights())[1] <= BOUND
    assert len(guarded.schedule().full_steps) == len(official.schedule().full_steps)


@st.composite
def loops(draw: st.DrawFn) -> tuple[CacheSchedule, int]:
    """A schedule of either rule or any mask, and the number of its last steps that are full on purpose."""
    steps, derivatives_from = draw(st.integers(9, 100)), draw(st.integers(0, 4))
    if draw(st.booleans()):
        inner = draw(st.sets(st.integers(1, steps - 1), max_size=min(20, steps - 2)))
        return mask_schedule(steps, [0, *inner], derivatives_from), 0
    warmup_steps, cooldown_steps = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    build = draw(rules)
    return build(steps, draw(st.integers(2, 12)), warmup_steps, cooldown_steps, derivatives_from), cooldown_steps


@settings(max_examples=300, deadline=None, database=None)
@given(loops())
def test_a_spread_warmup(loop: tuple[CacheSchedule, int]) -> None:
    official, cooldown_steps = loop
    spread = spread_warmup(official)
    assert all(gap <= before + 1 for before, gap in itertools.pairwise(gaps(spread)))
    assert len(spread.full_steps) == len(official.full_steps)
    assert max(gaps(spread)) <= max(gaps(official)), "a state that was built for the official schedule serves it"
    if cooldown_steps:
        assert spread.full_steps[-cooldown_steps:] == official.full_steps[-cooldown_steps:]
    assert spread.derivatives_from == official.derivatives_from
    assert spread_warmup(spread) == spread
    for predictor in PREDICTORS:
        assert largest_weight_sum(forecast_weights(spread, order=1, predictor=predictor))[1] <= BOUND


@settings(max_examples=200, deadline=None, database=None)
@given(rules, st.integers(9, 60), st.integers(2, 10), st.integers(1, 6), st.integers(0, 4), predictors)
def test_lower_orders_keep_to_the_sum_at_any_order(
    rule: Build, steps: int, interval: int, warmup_steps: int, order: int, predictor: str
) -> None:
    """And leave every forecast alone that keeps to it anyway."""
    schedule = rule(steps, interval, warmup_steps)
    official = forecast_weights(schedule, order=order, predictor=predictor)
    for step, row in forecast_weights(schedule, order=order, predictor=predictor, largest_sum=LARGEST_SUM).items():
        assert sum(map(abs, row.values())) <= BOUND
        if sum(map(abs, official[step].values())) <= LARGEST_SUM:
            assert row == official[step]


def test_flux_by_hand() -> None:
    official = PRESETS["flux"].schedule()
    spread = spread_warmup(official)
    assert official.full_steps == (0, 1, 2, 8, 14, 20, 26, 32, 38, 44)
    assert spread.full_steps == (0, 2, 5, 9, 14, 20, 26, 32, 38, 44)
    assert gaps(spread)[:6] == [2, 3, 4, 5, 6, 6]
    lowered = CacheConfig.from_preset("flux", guard="lower-order").weights()
    assert lowered[3] == {1: -1.0, 2: 2.0} and all(lowered[step] == {2: 1.0} for step in (4, 5, 6, 7))
    assert {s: row for s, row in lowered.items() if s > 8} == {
        s: row for s, row in PRESETS["flux"].weights().items() if s > 8
    }


def test_the_first_gaps_are_the_shortest_that_the_later_ones_make_up_for() -> None:
    assert spread_warmup(interval_schedule(50, 10, 3)).full_steps == (0, 5, 11, 18, 25, 33, 42)


def test_no_gap_grows_beyond_the_longest() -> None:
    """3 here; one of 4 would need more accumulators than the schedule was built for."""
    official = mask_schedule(15, [0, 2, 5, 6, 8, 11, 12])
    assert spread_warmup(official).full_steps == (0, 1, 2, 4, 6, 9, 12)


def test_a_loop_too_short_to_go_back_to_the_interval_is_spread_whole() -> None:
    assert spread_warmup(interval_schedule(20, 9, 3)).full_steps == (0, 4, 9, 14)
    assert spread_warmup(interval_schedule(20, 9, 3, 2)).full_steps[-2:] == (18, 19)


@pytest.mark.parametrize("preset", ["hunyuan-video", "wan", "hidream"])
def test_without_a_warmup_nothing_is_moved(preset: str) -> None:
    assert spread_warmup(PRESETS[preset].schedule()) == PRESETS[preset].schedule()


@pytest.mark.parametrize("interval", range(2, 10))
def test_a_spread_warmup_needs_the_state_of_the_official_one(interval: int) -> None:
    """Where the loop goes back to the interval; the others need less."""
    official = interval_schedule(50, interval, 3)
    assert accumulators_of(spread_warmup(official), 1) == accumulators_of(official, 1)


def test_a_spread_that_amplifies_all_the_same_is_refused() -> None:
    message = (
        "The guard 'spread-warmup' is to keep the sum of |weights| at 3 or below, but taylor at order 2 reaches 5.50 "
        "at step 8 even on the full steps 0, 2, 5, 9, 14, 20, 26, 32, 38, 44; use order 1, or the guard 'lower-order'."
    )
    with pytest.raises(ScheduleError, match=f"^{re.escape(message)}$"):
        CacheConfig.from_preset("flux", order=2, guard="spread-warmup").schedule()
    check_spread(mask_schedule(9, [0, 4]), {8: {0: -1.0, 4: 2.0}}, "taylor at order 1")


@pytest.mark.parametrize("predictor", ["least-squares", "hermite", "exponential", "reuse"])
def test_a_spread_of_order_two_serves_the_quieter_predictors(predictor: str) -> None:
    config = CacheConfig.from_preset("flux", order=2, predictor=predictor, guard="spread-warmup")
    assert largest_weight_sum(config.weights())[1] <= BOUND
