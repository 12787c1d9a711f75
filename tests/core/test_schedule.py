"""Cache schedules: the two rules against counters written independently, the arithmetic of steps, every
refusal.
"""

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.errors import ScheduleError
from taylorseer.schedule import CacheSchedule, interval_schedule, mask_schedule, modulo_schedule

Arguments = tuple[int, int, int, int]  # steps, interval, warm-up, cool-down


@st.composite
def rule_arguments(draw: st.DrawFn) -> Arguments:
    steps = draw(st.integers(9, 100))
    warmup = draw(st.integers(1, steps - 1))
    return steps, draw(st.integers(2, 20)), warmup, draw(st.integers(0, steps - 1 - warmup))


@st.composite
def masks(draw: st.DrawFn) -> list[bool]:
    """One bool per step, the first True and at least one False."""
    rest = draw(st.lists(st.booleans(), min_size=8, max_size=99).filter(lambda full: not all(full)))
    return [True, *rest]


def counted_full_steps(steps: int, interval: int, warmup: int, cooldown: int) -> tuple[int, ...]:
    """Count forecasts as the official sampling loop does, instead of comparing step numbers."""
    full, forecasts = [], 0
    for step in range(steps):
        if step < warmup or forecasts == interval - 1 or steps - step <= cooldown:
            full.append(step)
            forecasts = 0
        else:
            forecasts += 1
    return tuple(full)


@settings(max_examples=300, deadline=None, database=None)
@given(rule_arguments())
def test_interval_counts_forecasts_since_the_last_full_step(arguments: Arguments) -> None:
    assert interval_schedule(*arguments).full_steps == counted_full_steps(*arguments)


@settings(max_examples=300, deadline=None, database=None)
@given(rule_arguments())
def test_modulo_is_full_at_a_fixed_grid_warmup_and_cooldown(arguments: Arguments) -> None:
    steps, interval, warmup, cooldown = arguments
    grid = set(range(warmup + 1, steps, interval)) | set(range(warmup)) | set(range(steps - cooldown, steps))
    # The grid also runs backward, but every step before the warm-up's end is full anyway.
    assert modulo_schedule(*arguments).full_steps == tuple(sorted(grid))


@settings(max_examples=300, deadline=None, database=None)
@given(masks())
def test_steps_know_their_last_full_step_distance_and_gap(mask: list[bool]) -> None:
    schedule = mask_schedule(len(mask), mask)
    last: int | None = None
    gaps: dict[int, int | None] = {}
    for step, is_full in enumerate(mask):
        if is_full:
            gaps[step] = None if last is None else step - last
            last = step
        assert last is not None
        assert schedule.is_full(step) is is_full
        assert schedule.last_full_step(step) == last
        assert schedule.distance(step) == step - last
    assert {step: schedule.gap(step) for step in schedule.full_steps} == gaps
    assert sorted(schedule.full_steps + schedule.forecast_steps) == list(range(len(mask)))


@settings(max_examples=100, deadline=None, database=None)
@given(masks(), st.randoms(use_true_random=False))
def test_a_mask_and_its_step_numbers_in_any_order_are_one_schedule(mask: list[bool], random: Random) -> None:
    numbers = [step for step, is_full in enumerate(mask) if is_full]
    random.shuffle(numbers)
    expected = mask_schedule(len(mask), mask, 2)
    assert expected == mask_schedule(len(mask), numbers, derivatives_from=2)
    assert expected == mask_schedule(len(mask), list(np.array(mask)), 2)
    from_numpy = mask_schedule(len(mask), list(np.array(numbers)), 2)
    assert expected == from_numpy
    assert all(type(step) is int for step in from_numpy.full_steps)


def test_cooldown_steps_are_full() -> None:
    assert interval_schedule(20, 6, 3, cooldown_steps=2).full_steps == (0, 1, 2, 8, 14, 18, 19)
    assert modulo_schedule(20, 5, 3, cooldown_steps=3).full_steps == (0, 1, 2, 4, 9, 14, 17, 18, 19)


def test_the_shortest_loop_has_nine_steps() -> None:
    assert interval_schedule(9, 6, 3).forecast_steps == (3, 4, 5, 6, 7)


def test_ideal_speedup_is_steps_over_full_steps() -> None:
    schedule = interval_schedule(50, 6, 3)
    assert schedule.ideal_speedup == 5.0


@pytest.mark.parametrize("steps", [1, 8, 50])
def test_baseline_forecasts_nothing_at_any_length(steps: int) -> None:
    baseline = CacheSchedule.every_step_full(steps)
    assert baseline.full_steps == tuple(range(steps))
    assert baseline.forecast_steps == ()
    assert baseline.ideal_speedup == 1.0


def test_schedule_is_a_value() -> None:
    schedule = interval_schedule(50, 6, 3, derivatives_from=2)
    assert schedule == CacheSchedule(steps=50, full_steps=schedule.full_steps, derivatives_from=2)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert len({schedule, interval_schedule(50, 6, 3, derivatives_from=2), interval_schedule(50, 6, 3)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.steps = 28  # type: ignore[misc]


@pytest.mark.parametrize("step", [-1, 50])
@pytest.mark.parametrize("question", ["is_full", "last_full_step", "distance", "gap"])
def test_a_step_outside_the_loop_is_an_index_error(question: str, step: int) -> None:
    with pytest.raises(IndexError, match=rf"step {step} is outside the loop of steps 0\.\.49"):
        getattr(interval_schedule(50, 6, 3), question)(step)


def test_a_forecast_step_has_no_gap() -> None:
    with pytest.raises(ValueError, match="step 3 is a forecast step"):
        interval_schedule(50, 6, 3).gap(3)


@pytest.mark.parametrize("build", [interval_schedule, modulo_schedule])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((50, 0, 3), r"interval is 0,.* use 2 or more"),
        ((50, -4, 3), r"interval is -4,.* use 2 or more"),
        (
            (50, 1, 3),
            r"Interval 1 makes every step full, so nothing is forecast; use 2 or more.*every_step_full",
        ),
        ((50, 6, 0), r"0 warm-up steps, but the first step must be full.* use 1 or more"),
        ((50, 6, 3, -1), r"-1 cool-down steps; use 0 for none"),
        (
            (50, 6, 50),
            r"50 warm-up and 0 cool-down steps cover all 50 steps, so nothing is forecast; use fewer",
        ),
        ((50, 6, 30, 20), r"30 warm-up and 20 cool-down steps cover all 50 steps"),
        ((8, 6, 3), r"loop has 8 steps, and with 8 steps or fewer .*use 9 or more.*every_step_full"),
        ((0, 6, 3), r"loop has 0 steps"),
        ((50, 6, 3, 0, -1), r"derivatives_from is -1, .*use 0"),
    ],
)
def test_rules_refuse_with_the_reason(
    build: Callable[..., CacheSchedule], arguments: Sequence[int], message: str
) -> None:
    with pytest.raises(ScheduleError, match=message):
        build(*arguments)


@pytest.mark.parametrize(
    ("steps", "full", "message"),
    [
        (8, [0, 4], r"8 steps or fewer"),
        (9, [], r"first step is not full.* make step 0 full"),
        (9, [1, 5], r"first step is not full.* make step 0 full"),
        (9, [False] + [True] * 8, r"first step is not full.* make step 0 full"),
        (9, [0, 9, 12], r"Full steps \[9, 12\] are outside the loop; use steps from 0 to 8"),
        (9, [-3, 0, 4], r"Full steps \[-3\] are outside the loop"),
        (9, [0, 4, 4, 6, 6], r"Full steps \[4, 6\] are given more than once"),
        (9, [True, False], r"mask has 2 entries, but the loop has 9 steps; give one True or False for each"),
        (9, [True] * 9, r"All 9 steps are full, so nothing is forecast; leave some .*every_step_full"),
        (9, range(9), r"All 9 steps are full"),
        (9, [0, 2.5], r"full steps \[0, 2\.5\] are not all step numbers; give integers"),
        (9, [0, True, 4], r"full steps \[0, True, 4\] are not all step numbers"),
    ],
)
def test_masks_refuse_with_the_reason(steps: int, full: Sequence[int], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        mask_schedule(steps, full)


@pytest.mark.parametrize(
    ("steps", "full_steps", "message"),
    [
        (50, (0, 8, 2), r"Full steps \[0, 8, 2\] do not ascend; sort them"),
        (50, (1, 8), r"first step is not full"),
        (50, (0, 8, 8), r"Full steps \[8\] are given more than once"),
        (50, (0, 50), r"Full steps \[50\] are outside the loop"),
        (8, (0, 4), r"8 steps or fewer"),
        (0, (), r"loop has 0 steps; use 1 or more"),
    ],
)
def test_no_invalid_schedule_can_be_constructed(steps: int, full_steps: tuple[int, ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        CacheSchedule(steps=steps, full_steps=full_steps)
