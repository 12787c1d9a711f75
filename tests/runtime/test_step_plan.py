"""The plan of a loop: carried out on random numbers, both state layouts give the forecasts that the weights say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.predictor import forecast_weights
from taylorseer.runtime.step_plan import plan_steps, state_variants

ROUNDING = 1e-6
"""Coefficients and scales are float32; each rounds once, by 6e-8, and at most 2 * 4 of them are multiplied."""

Forecasts = dict[int, tuple[float, float]]
"""Forecast step -> (its value, sum of magnitudes that went into it)."""


@st.composite
def configs(draw: st.DrawFn) -> CacheConfig:
    """Any mask of 9 to 40 steps, order 0 to 4, any predictor."""
    rest = draw(st.lists(st.booleans(), min_size=8, max_size=39).filter(lambda full: not all(full)))
    return CacheConfig(
        steps=len(rest) + 1,
        full_steps=(0, *(step for step, full in enumerate(rest, 1) if full)),
        order=draw(st.integers(0, 4)),
        predictor=draw(st.sampled_from(["taylor", "reuse", "newton"])),
        derivatives_from=draw(st.integers(0, 4)),
    )


def history_forecasts(config: CacheConfig, slots: int, features: list[float]) -> Forecasts:
    """What the session does with slots, on one number per feature; slots that were never written hold a trap."""
    remembered, made = np.full(slots, 0.0), {}
    for step, planned in enumerate(plan_steps(config, "history", slots)):
        if planned.is_full:
            remembered[planned.variant] = features[step]
        else:
            terms = planned.numbers.astype(np.float64) * remembered
            made[step] = (float(terms.sum()), float(np.abs(terms).sum()))
    return made


def derivative_forecasts(config: CacheConfig, slots: int, features: list[float]) -> Forecasts:
    """What the session and the full graph do with two sets of derivatives; magnitudes go through the same sums."""
    sets, sizes, made = np.zeros((2, slots)), np.zeros((2, slots)), {}
    for step, planned in enumerate(plan_steps(config, "derivatives", slots)):
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


def assert_follows_the_weights(made: Forecasts, config: CacheConfig, features: list[float]) -> None:
    weights = forecast_weights(config.schedule(), order=config.order, predictor=config.predictor)
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
@given(configs().filter(lambda config: config.predictor != "newton"), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_derivatives_reproduce_the_weights(config: CacheConfig, spare: int, seed: int) -> None:
    features = list(np.random.default_rng(seed).standard_normal(config.steps))
    assert_follows_the_weights(derivative_forecasts(config, config.order + 1 + spare, features), config, features)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_on_both_layouts(preset: str) -> None:
    config, features = PRESETS[preset], list(np.random.default_rng(1).standard_normal(50))
    for forecasts in (history_forecasts, derivative_forecasts):
        assert_follows_the_weights(forecasts(config, config.order + 1, features), config, features)


def test_slots_rotate_in_the_order_of_full_steps() -> None:
    plan = plan_steps(CacheConfig(steps=12, full_steps=(0, 1, 5, 6, 10), order=2), "history", 3)
    assert [(step, planned.variant) for step, planned in enumerate(plan) if planned.is_full] == [
        (0, 0),
        (1, 1),
        (5, 2),
        (6, 0),
        (10, 1),
    ]
    assert state_variants("history", 3) == 3


def test_sets_take_turns_and_a_forecast_reads_the_newest() -> None:
    plan = plan_steps(CacheConfig(steps=9, full_steps=(0, 3, 4), order=1), "derivatives", 2)
    assert [planned.variant for planned in plan] == [1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert state_variants("derivatives", 2) == 2


@pytest.mark.parametrize("layout", ["history", "derivatives"])
@pytest.mark.parametrize("predictor", ["taylor", "reuse", "newton"])
def test_the_baseline_asks_nothing_of_the_config_but_its_steps(layout: str, predictor: str) -> None:
    config = CacheConfig(steps=5, order=9, predictor=predictor)  # too few steps and too high an order to forecast
    plan = plan_steps(config, layout, 3, baseline=True)  # type: ignore[arg-type]
    assert [planned.is_full for planned in plan] == [True] * 5
    assert all(planned.numbers.shape == (2,) for planned in plan)


@pytest.mark.parametrize("layout", ["history", "derivatives"])
def test_an_order_above_the_bundles_is_refused(layout: str) -> None:
    with pytest.raises(ScheduleError, match=r"Order 3 needs 4 remembered tensors .* has 3: use order 2, or build with"):
        plan_steps(CacheConfig(order=3), layout, 3)  # type: ignore[arg-type]


def test_newton_is_refused_by_derivatives() -> None:
    with pytest.raises(ScheduleError, match="'newton' was asked of the state layout 'derivatives'"):
        plan_steps(CacheConfig(predictor="newton"), "derivatives", 2)
