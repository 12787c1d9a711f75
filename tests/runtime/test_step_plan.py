"""The plan of a loop: carried out on random numbers, every state layout gives the forecasts that the weights say."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.accumulators import Accumulators
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.forecast_table import ForecastTable
from taylorseer.predictor import PREDICTORS
from taylorseer.runtime.step_plan import BuiltState, plan_steps

ROUNDING = 1e-6
"""Coefficients and scales are float32; each rounds once, by 6e-8, and at most 2 * 4 of them are multiplied."""

OF_FEATURES = ("newton", "least-squares")
"""Predictors that the layout ``derivatives`` does not serve."""

Forecasts = dict[int, tuple[float, float]]
"""Forecast step -> (its value, sum of magnitudes that went into it)."""


@st.composite
def configs(draw: st.DrawFn) -> CacheConfig:
    """Any mask of 9 to 40 steps, order 0 to 4, any predictor, lowered or not."""
    rest = draw(st.lists(st.booleans(), min_size=8, max_size=39).filter(lambda full: not all(full)))
    return CacheConfig(
        steps=len(rest) + 1,
        full_steps=(0, *(step for step, full in enumerate(rest, 1) if full)),
        order=draw(st.integers(0, 4)),
        predictor=draw(st.sampled_from(PREDICTORS)),
        derivatives_from=draw(st.integers(0, 4)),
        guard=draw(st.sampled_from(["none", "lower-order"])),
    )


def history_forecasts(config: CacheConfig, slots: int, features: list[float]) -> Forecasts:
    """What the session does with slots, on one number per feature; slots that were never written hold a trap."""
    remembered, made = np.full(slots, 0.0), {}
    for step, planned in enumerate(plan_steps(config, BuiltState(layout="history", slots=slots))):
        if planned.is_full:
            remembered[planned.variant] = features[step]
        else:
            terms = planned.numbers.astype(np.float64) * remembered
            made[step] = (float(terms.sum()), float(np.abs(terms).sum()))
    return made


def derivative_forecasts(config: CacheConfig, slots: int, features: list[float]) -> Forecasts:
    """What the session and the full graph do with two sets of derivatives; magnitudes go through the same sums."""
    sets, sizes, made = np.zeros((2, slots)), np.zeros((2, slots)), {}
    for step, planned in enumerate(plan_steps(config, BuiltState(layout="derivatives", slots=slots))):
        current, previous = planned.variant, 1 - planned.variant
        if planned.is_full:
            sets[current, 0], sizes[current, 0] = features[step], abs(features[step])
            for i, scale in enumerate(planned.numbers.astype(np.float64)):
                sets[current, i + 1] = scale * (sets[current, i] - sets[previous, i])
                sizes[current, i + 1] = scale * (sizes[current, i] + sizes[previous, i])
        else:
            numbers = planned.numbers.astype(np.float64)
            made[step] = (float(numbers @ sets[current]), float(np.abs(numbers) @ sizes[current]))
    return made


def accumulators(config: CacheConfig, spare: int = 0) -> Accumulators:
    """What a bundle has that was built for this config, and for windows of ``spare`` forecasts more."""
    built = BuiltState.for_config("folded", config).accumulators
    assert built is not None
    window, order = built.window + spare, built.carried // built.window
    return Accumulators(count=(order + 1) * window, carried=order * window)


def folded_forecasts(config: CacheConfig, built: Accumulators, features: list[float]) -> Forecasts:
    """What the session and the full graph do with a ring that begins with zeros."""
    ring, sizes, made = np.zeros(built.ring), np.zeros(built.ring), {}
    for step, planned in enumerate(plan_steps(config, BuiltState(layout="folded", slots=1, accumulators=built))):
        if not planned.is_full:
            made[step] = (ring[planned.variant], sizes[planned.variant])
            continue
        weights = planned.numbers.astype(np.float64)
        ring[list(planned.cleared)] = sizes[list(planned.cleared)] = 0
        base = planned.variant * built.count % built.ring
        read = [(base + index) % built.ring for index in range(built.carried)]
        written = [(base + built.carried + index) % built.ring for index in range(built.count)]
        assert not {*read} & {*written}
        sums, magnitudes = weights * features[step], abs(weights * features[step])
        sums[: built.carried] += ring[read]
        magnitudes[: built.carried] += sizes[read]
        ring[written], sizes[written] = sums, magnitudes
    return made


def assert_follows_the_weights(made: Forecasts, config: CacheConfig, features: list[float]) -> None:
    weights = config.weights()
    assert made.keys() == weights.keys()
    for step, (value, size) in made.items():
        exact = sum(weight * features[source] for source, weight in weights[step].items())
        assert abs(value - exact) <= ROUNDING * size


@settings(max_examples=200, deadline=None, database=None)
@given(configs(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_history_reproduces_the_weights(config: CacheConfig, spare: int, seed: int) -> None:
    features = list(np.random.default_rng(seed).standard_normal(config.steps))
    assert_follows_the_weights(history_forecasts(config, config.order + 1 + spare, features), config, features)


@settings(max_examples=200, deadline=None, database=None)
@given(
    configs().filter(lambda config: config.predictor not in OF_FEATURES), st.integers(0, 3), st.integers(0, 2**32 - 1)
)
def test_derivatives_reproduce_the_weights(config: CacheConfig, spare: int, seed: int) -> None:
    features = list(np.random.default_rng(seed).standard_normal(config.steps))
    assert_follows_the_weights(derivative_forecasts(config, config.order + 1 + spare, features), config, features)


@settings(max_examples=200, deadline=None, database=None)
@given(configs(), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_folded_reproduces_the_weights(config: CacheConfig, spare: int, seed: int) -> None:
    features = list(np.random.default_rng(seed).standard_normal(config.steps))
    assert_follows_the_weights(folded_forecasts(config, accumulators(config, spare), features), config, features)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_on_every_layout(preset: str) -> None:
    config, features = PRESETS[preset], list(np.random.default_rng(1).standard_normal(50))
    for forecasts in (history_forecasts, derivative_forecasts):
        assert_follows_the_weights(forecasts(config, config.order + 1, features), config, features)
    assert_follows_the_weights(folded_forecasts(config, accumulators(config), features), config, features)


# One bundle serves them all


@st.composite
def choices(draw: st.DrawFn, built: CacheConfig) -> CacheConfig:
    """What a bundle of ``built`` is to serve without a rebuild: less of interval and order, any predictor and guard."""
    order = draw(st.integers(0, built.order))
    predictor = draw(st.sampled_from(PREDICTORS))
    loud = order > 1 and predictor in ("taylor", "newton", "least-squares")  # a spread is refused there, with a reason
    config = CacheConfig(
        steps=draw(st.integers(20, 50)),
        interval=draw(st.integers(2, built.interval)),
        order=order,
        predictor=predictor,
        warmup_steps=draw(st.integers(1, 4)),
        derivatives_from=draw(st.integers(0, 3)),
        guard=draw(st.sampled_from(["none", "lower-order"] if loud else ["none", "lower-order", "spread-warmup"])),
    )
    return tabled(config, draw(st.integers(0, 2**32 - 1))) if draw(st.integers(0, 6)) == 0 else config


def tabled(config: CacheConfig, seed: int) -> CacheConfig:
    """The same full steps, with weights that are no predictor's."""
    random, schedule, rows = np.random.default_rng(seed), config.schedule(), {}
    for step in schedule.forecast_steps:
        remembered = [full for full in schedule.full_steps if full < step][-config.order - 1 :]
        some = random.choice(remembered, random.integers(1, len(remembered) + 1), replace=False)
        drawn = random.uniform(-2, 2, len(some))
        rows[step] = dict(
            zip(map(int, some), drawn + (random.uniform(0.6, 1.4) - drawn.sum()) / len(some), strict=True)
        )
    guard = "none" if config.guard == "lower-order" else config.guard
    return dataclasses.replace(config, predictor="table", table=ForecastTable.from_weights(rows), guard=guard)


BUILT = CacheConfig(interval=7, order=3, warmup_steps=3)


@settings(max_examples=200, deadline=None, database=None)
@given(choices(BUILT), st.integers(0, 2**32 - 1))
def test_one_bundle_serves_every_predictor_and_guard(config: CacheConfig, seed: int) -> None:
    features = list(np.random.default_rng(seed).standard_normal(config.steps))
    assert_follows_the_weights(history_forecasts(config, BUILT.order + 1, features), config, features)
    assert_follows_the_weights(folded_forecasts(config, accumulators(BUILT), features), config, features)


@pytest.mark.parametrize("guard", ["lower-order", "spread-warmup"])
@pytest.mark.parametrize("interval", range(2, 11))
def test_a_bundle_of_the_official_schedule_serves_a_guarded_one(interval: int, guard: str) -> None:
    official = CacheConfig.from_preset("flux", interval=interval)
    guarded = CacheConfig.from_preset("flux", interval=interval, guard=guard)
    features = list(np.random.default_rng(interval).standard_normal(50))
    assert_follows_the_weights(folded_forecasts(guarded, accumulators(official), features), guarded, features)
    for forecasts in (history_forecasts, derivative_forecasts):
        assert_follows_the_weights(forecasts(guarded, official.order + 1, features), guarded, features)


def test_slots_rotate_in_the_order_of_full_steps() -> None:
    config = CacheConfig(steps=12, full_steps=(0, 1, 5, 6, 10), order=2)
    plan = plan_steps(config, BuiltState.for_config("history", config))
    assert [(step, planned.variant) for step, planned in enumerate(plan) if planned.is_full] == [
        (0, 0),
        (1, 1),
        (5, 2),
        (6, 0),
        (10, 1),
    ]
    assert BuiltState.for_config("history", config).variants() == {"full": 3, "forecast": 1}


def test_sets_take_turns_and_a_forecast_reads_the_newest() -> None:
    config = CacheConfig(steps=9, full_steps=(0, 3, 4), order=1)
    plan = plan_steps(config, BuiltState.for_config("derivatives", config))
    assert [planned.variant for planned in plan] == [1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert BuiltState.for_config("derivatives", config).variants() == {"full": 2, "forecast": 2}


@pytest.mark.parametrize("layout", ["history", "derivatives"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_baseline_asks_nothing_of_the_config_but_its_steps(layout: str, predictor: str) -> None:
    config = CacheConfig(steps=5, order=9, predictor=predictor)  # too few steps and too high an order to forecast
    plan = plan_steps(config, BuiltState(layout=layout, slots=3), baseline=True)  # type: ignore[arg-type]
    assert [planned.is_full for planned in plan] == [True] * 5
    assert all(planned.numbers.shape == (2,) for planned in plan)


@pytest.mark.parametrize("layout", ["history", "derivatives"])
def test_an_order_above_the_bundles_is_refused(layout: str) -> None:
    with pytest.raises(ScheduleError, match=r"Order 3 needs 4 remembered tensors .* has 3: use order 2, or build with"):
        plan_steps(CacheConfig(order=3), BuiltState(layout=layout, slots=3))  # type: ignore[arg-type]


@pytest.mark.parametrize("predictor", [*OF_FEATURES, "table"])
def test_who_weighs_features_is_refused_by_derivatives(predictor: str) -> None:
    config = tabled(CacheConfig(), 0) if predictor == "table" else CacheConfig(predictor=predictor)
    with pytest.raises(ScheduleError, match=f"'{predictor}' was asked of the state layout 'derivatives'"):
        plan_steps(config, BuiltState(layout="derivatives", slots=2))


# The folded state

FOLDED = CacheConfig(steps=12, full_steps=(0, 1, 5, 6, 10), order=1)
"""Two forecasts in a row at the most, or three: the windows are 2..4, 7..9 and 11."""


def test_bases_take_turns_and_each_forecast_reads_a_slot_of_its_own() -> None:
    built = BuiltState.for_config("folded", FOLDED)
    assert built.accumulators == Accumulators(count=6, carried=3)
    assert built.variants() == {"full": 3, "forecast": 9}  # 9 slots, of which a full step moves on by 6
    plan = plan_steps(FOLDED, built)
    assert [planned.variant for planned in plan if planned.is_full] == [0, 1, 2, 0, 1]
    assert {step: planned.variant for step, planned in enumerate(plan) if not planned.is_full} == {
        # The full step at 1 has base 6: it writes the slots 0 to 5, and the forecasts up to the next are the first.
        2: 0,
        3: 1,
        4: 2,
        # At 6 the base is 0 again.
        7: 3,
        8: 4,
        9: 5,
        11: 0,
    }


def test_a_full_step_is_told_weights_and_the_steps_whose_gates_it_needs() -> None:
    plan, weights = plan_steps(FOLDED, BuiltState.for_config("folded", FOLDED)), FOLDED.weights()
    first, second = plan[0], plan[1]
    # The first full step writes nothing for itself: 2..4 come after the second, which goes on with them.
    assert first.ahead == (0, 0, 0, 2, 3, 4) and second.ahead == (2, 3, 4, 1, 1, 1)
    expected = [0, 0, 0, *(weights[step][0] for step in (2, 3, 4))]
    np.testing.assert_array_equal(first.numbers, np.array(expected, np.float32))
    expected = [*(weights[step][1] for step in (2, 3, 4)), 0, 0, 0]
    np.testing.assert_array_equal(second.numbers, np.array(expected, np.float32))
    assert all(planned.ahead == () and planned.numbers.size == 0 for planned in plan if not planned.is_full)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_folded_baseline_adds_up_nothing(predictor: str) -> None:
    built = BuiltState(layout="folded", slots=3, accumulators=Accumulators(count=6, carried=4))
    plan = plan_steps(CacheConfig(steps=5, order=9, predictor=predictor), built, baseline=True)
    assert [planned.is_full for planned in plan] == [True] * 5
    assert not any(planned.numbers.any() for planned in plan)
    assert all(planned.ahead == () for planned in plan)
    assert all(planned.numbers.shape == (6,) for planned in plan)


def test_any_order_is_folded_whose_accumulators_suffice() -> None:
    """No more than two full steps precede a forecast here, so that order 3 is order 1."""
    built = BuiltState.for_config("folded", CacheConfig(interval=6, order=1))
    low, high = (CacheConfig(steps=12, full_steps=(0, 6, 11), order=order) for order in (1, 3))
    for one, other in zip(plan_steps(low, built), plan_steps(high, built), strict=True):
        np.testing.assert_array_equal(one.numbers, other.numbers)
        assert (one.variant, one.ahead) == (other.variant, other.ahead)


def test_a_schedule_that_needs_more_accumulators_is_refused() -> None:
    built = BuiltState.for_config("folded", CacheConfig(interval=4, order=1))
    with pytest.raises(
        ScheduleError, match=r"needs more than the 6 accumulators of this bundle, which serve 3 .*--int"
    ):
        plan_steps(CacheConfig(interval=6, order=1), built)


def test_what_auto_is_built_for_is_a_folded_state() -> None:
    config = CacheConfig(predictor="newton")
    assert BuiltState.for_config("auto", config) == BuiltState.for_config("folded", config)
