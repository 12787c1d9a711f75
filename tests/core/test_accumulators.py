"""Where accumulators lie: reads and writes by the placements alone give every forecast, and none is lost before."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.accumulators import Accumulators, Placement, accumulators_of, place_accumulators
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.predictor import PREDICTORS, forecast_weights
from taylorseer.schedule import CacheSchedule, interval_schedule, mask_schedule, modulo_schedule

EXACT = 1e-12
"""Sums of at most 5 float64 products, in another order."""

Weights = dict[int, dict[int, float]]

orders, predictors = st.integers(0, 4), st.sampled_from(PREDICTORS)


@st.composite
def schedules(draw: st.DrawFn) -> CacheSchedule:
    """Any mask of 9 to 40 steps, or either rule."""
    steps, begin = draw(st.integers(9, 40)), draw(st.integers(0, 3))
    if draw(st.booleans()):
        rest = draw(st.lists(st.booleans(), min_size=steps - 1, max_size=steps - 1).filter(lambda full: not all(full)))
        return mask_schedule(steps, [True, *rest], begin)
    rule = draw(st.sampled_from([interval_schedule, modulo_schedule]))
    return rule(steps, draw(st.integers(3, 8)), draw(st.integers(1, 4)), draw(st.integers(0, 2)), begin)


def larger(built: Accumulators, spare: int) -> Accumulators:
    """Return what a bundle has that was built for a window of ``spare`` forecasts more."""
    window, order = built.window + spare, built.carried // built.window
    return Accumulators(count=(order + 1) * window, carried=order * window)


class Ring:
    """Numbers in the slots, each with the forecast step that it is for."""

    def __init__(self, built: Accumulators) -> None:
        self.built = built
        self.values = np.full(built.ring, np.nan)
        self.owners: list[int | None] = [None] * built.ring

    def full(self, step: int, placed: Placement, weights: Weights, feature: float) -> None:
        """Read, add and write as a full step does; whatever is overwritten must be over."""
        read = [(placed.base + index) % self.built.ring for index in range(self.built.carried)]
        written = [self.built.slot(placed.base, index) for index in range(self.built.count)]
        assert sorted(read + written) == list(range(self.built.ring)), "no slot is read and written, or left out"
        overwritten = [owner for slot, owner in enumerate(self.owners) if slot in written and owner is not None]
        assert all(owner < step for owner in overwritten), "a forecast has not yet read it"
        sums = [0.0 if s is None else weights[s].get(step, 0.0) * feature for s in placed.steps]
        for index, slot in enumerate(read):
            if placed.kept[index]:
                assert self.owners[slot] == placed.steps[index], "it goes on for the step that it was for"
                sums[index] += self.values[slot]
        self.values[written], self.values[read] = sums, np.nan
        self.owners = [None] * self.built.ring
        for slot, owner in zip(written, placed.steps, strict=True):
            self.owners[slot] = owner

    def forecast(self, step: int) -> float:
        """Read the one slot that is for ``step``."""
        assert self.owners.count(step) == 1
        return float(self.values[self.owners.index(step)])


@settings(max_examples=300, deadline=None, database=None)
@given(schedules(), orders, predictors, st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_a_ring_gives_every_forecast(
    schedule: CacheSchedule, order: int, predictor: str, spare: int, seed: int
) -> None:
    """Also in the ring of a bundle that was built for a longer interval."""
    built = larger(accumulators_of(schedule, order), spare)
    weights = forecast_weights(schedule, order=order, predictor=predictor)
    require_exact(schedule, weights, built, seed)


@settings(max_examples=300, deadline=None, database=None)
@given(schedules(), orders, predictors, st.integers(1, 8), orders, st.integers(0, 2**32 - 1))
def test_the_ring_of_any_bundle_is_exact_or_too_small(
    schedule: CacheSchedule, order: int, predictor: str, window: int, built_order: int, seed: int
) -> None:
    """A bundle for a higher order may serve a longer interval, and never gives anything but the forecast."""
    built = Accumulators(count=(built_order + 1) * window, carried=built_order * window)
    least = accumulators_of(schedule, order)
    weights = forecast_weights(schedule, order=order, predictor=predictor)
    try:
        require_exact(schedule, weights, built, seed)
    except ScheduleError:
        assert window < least.window or built_order < order


def require_exact(schedule: CacheSchedule, weights: Weights, built: Accumulators, seed: int) -> None:
    """Run a loop on a ring of random features, and compare each forecast with the sum that it stands for."""
    placements = place_accumulators(schedule, weights, built)
    features = np.random.default_rng(seed).standard_normal(schedule.steps)
    assert tuple(placements) == schedule.full_steps
    ring = Ring(built)
    for step in range(schedule.steps):
        if step in placements:
            ring.full(step, placements[step], weights, features[step])
        else:
            terms = [weight * features[full] for full, weight in weights[step].items()]
            assert abs(ring.forecast(step) - math.fsum(terms)) <= EXACT * math.fsum(map(abs, terms))


@settings(max_examples=300, deadline=None, database=None)
@given(schedules(), orders, predictors)
def test_live_accumulators_never_exceed_the_state(schedule: CacheSchedule, order: int, predictor: str) -> None:
    """(order + 1) * window outlive a full step, at the most: what the memory plan calls state."""
    built = accumulators_of(schedule, order)
    weights = forecast_weights(schedule, order=order, predictor=predictor)
    for step, placed in place_accumulators(schedule, weights, built).items():
        begun = {s for s, row in weights.items() if s > step and any(full <= step for full in row)}
        served = [s for s in placed.steps if s is not None]
        assert set(served) == begun and len(served) == len(begun), "one for each forecast that has begun, and no other"
        assert len(served) <= (order + 1) * built.window == built.count


@pytest.mark.parametrize("interval", [2, 3, 6])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
def test_an_interval_schedule_uses_every_accumulator(interval: int, order: int) -> None:
    """In the steady state: (order + 1) * (interval - 1), of which the last ones go on until they are read."""
    schedule = interval_schedule(steps=20 * interval, interval=interval, warmup_steps=1)
    built = accumulators_of(schedule, order)
    weights = forecast_weights(schedule, order=order)
    placements = place_accumulators(schedule, weights, built)
    assert (built.count, built.carried) == ((order + 1) * (interval - 1), order * (interval - 1))
    steady = [placements[full] for full in schedule.full_steps[5:-5]]
    assert all(None not in placed.steps and all(placed.kept) for placed in steady)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets(preset: str) -> None:
    config = PRESETS[preset]
    built = accumulators_of(config.schedule(), config.order)
    assert built.window == config.interval - 1
    placements = place_accumulators(config.schedule(), config.weights(), built)
    assert not any(placements[0].kept) and any(any(placed.kept) for placed in placements.values())


@pytest.mark.parametrize(
    ("count", "carried", "bases"),
    [(3, 0, 1), (10, 5, 3), (15, 10, 5), (20, 15, 7), (15, 12, 9)],
)
def test_bases_take_turns(count: int, carried: int, bases: int) -> None:
    built = Accumulators(count=count, carried=carried)
    found = [built.base(number) for number in range(3 * bases)]
    assert built.bases == bases == len(set(found[:bases])) and found == found[:bases] * 3
    for number in range(bases):  # a full step reads what the one before wrote last
        last = [built.slot(built.base(number), index) for index in range(count - carried, count)][:carried]
        following = [(built.base(number + 1) + index) % built.ring for index in range(carried)]
        assert following == last


def test_a_schedule_that_forecasts_nothing_places_nothing() -> None:
    schedule = CacheSchedule.every_step_full(5)
    placements = place_accumulators(schedule, {}, Accumulators(count=4, carried=2))
    assert all(placed.steps == (None,) * 4 and placed.kept == (False,) * 2 for placed in placements.values())
    assert accumulators_of(schedule, 1) == Accumulators(count=2, carried=1)


@pytest.mark.parametrize(
    ("config", "full"),
    [
        (CacheConfig(steps=20, interval=6, order=1, warmup_steps=1), 0),  # a longer window
        (CacheConfig(steps=20, interval=4, order=2, warmup_steps=1), 0),  # a forecast that uses three full steps
        (CacheConfig(steps=20, full_steps=(0, 3, 6, 9, 19), order=1), 6),  # a window that is long once
    ],
)
def test_a_schedule_that_needs_more_is_refused(config: CacheConfig, full: int) -> None:
    with pytest.raises(
        ScheduleError,
        match=rf"^At the full step {full} the schedule needs more than the 6 accumulators of this bundle, which serve "
        r"3 forecasts in a row at order 1: use a smaller interval or order, or build with a larger --interval or --or",
    ):
        place_accumulators(config.schedule(), config.weights(), Accumulators(count=6, carried=3))
