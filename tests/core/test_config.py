"""The config record: golden presets, the round trip through JSON, a refusal for each mistake."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.forecast_table import ForecastTable
from taylorseer.guard import LARGEST_SUM, spread_warmup
from taylorseer.predictor import PREDICTORS, derivative_coefficients, forecast_weights
from taylorseer.schedule import interval_schedule, mask_schedule, modulo_schedule

Build = Callable[[dict[str, Any]], CacheConfig]

# name -> full steps of 50, order, first step with derivatives: what each published loop does.
GOLDEN = {
    "flux": ((0, 1, 2, 8, 14, 20, 26, 32, 38, 44), 1, 2),
    "hunyuan-video": ((0, 5, 10, 15, 20, 25, 30, 35, 40, 45), 1, 0),
    "dit": ((0, 1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49), 4, 1),
    "wan": ((0, 5, 10, 15, 20, 25, 30, 35, 40, 45), 1, 0),
    "hidream": ((0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48), 2, 0),
    "diffusers": ((0, 1, 2, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49), 1, 1),
}


def test_every_preset_is_golden() -> None:
    assert PRESETS.keys() == GOLDEN.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_preset_at_50_steps(name: str) -> None:
    config = CacheConfig.from_preset(name)
    full_steps, order, derivatives_from = GOLDEN[name]
    assert config == PRESETS[name]
    assert config.schedule() == mask_schedule(50, full_steps, derivatives_from)
    assert (config.order, config.predictor) == (order, "taylor")


def test_flux_at_28_steps() -> None:
    assert CacheConfig.from_preset("flux", steps=28).schedule().full_steps == (0, 1, 2, 8, 14, 20, 26)


def test_dit_counts_down_in_the_official_code() -> None:
    by_its_own_index = [49 - step for step in CacheConfig.from_preset("dit").schedule().full_steps]
    assert by_its_own_index == [49, *range(48, -1, -4)]


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["flux"] = CacheConfig()  # type: ignore[index]


def test_overrides_replace_fields_and_none_is_ignored() -> None:
    config = CacheConfig.from_preset("flux", steps=28, order=None, predictor="newton", interval=None)
    assert (config.steps, config.order, config.predictor, config.interval) == (28, 1, "newton", 6)
    assert config.derivatives_from == 2
    assert CacheConfig.from_preset("flux", full_steps=(0, 9)).schedule() == mask_schedule(50, (0, 9), 2)


def test_schedule_follows_the_rule_or_the_full_steps() -> None:
    arguments: dict[str, Any] = {
        "steps": 40,
        "interval": 4,
        "warmup_steps": 2,
        "cooldown_steps": 3,
        "derivatives_from": 5,
    }
    assert CacheConfig(**arguments).schedule() == interval_schedule(**arguments)
    assert CacheConfig(**arguments, rule="modulo").schedule() == modulo_schedule(**arguments)
    by_mask = CacheConfig(steps=40, full_steps=(0, 3, 30), derivatives_from=5)
    assert by_mask.schedule() == mask_schedule(40, (0, 3, 30), 5)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_weights_are_those_of_the_schedule(predictor: str) -> None:
    config = CacheConfig(order=2, predictor=predictor)
    assert config.weights() == forecast_weights(config.schedule(), order=2, predictor=predictor)


def test_numbers_and_guard_reach_the_weights() -> None:
    fields: dict[str, Any] = {"contraction": 0.25, "decay": 0.75}
    for predictor in ("hermite", "exponential"):
        config = CacheConfig(order=2, predictor=predictor, guard="lower-order", **fields)
        choice: dict[str, Any] = {"order": 2, "predictor": predictor, "largest_sum": LARGEST_SUM, **fields}
        assert config.weights() == forecast_weights(config.schedule(), **choice)
        assert config.weights() != CacheConfig(order=2, predictor=predictor, guard="lower-order").weights()
        expected = derivative_coefficients(config.schedule(), **choice)
        assert {step: row.tolist() for step, row in config.coefficients().items()} == {
            step: row.tolist() for step, row in expected.items()
        }


@pytest.mark.parametrize("rule", ["interval", "modulo"])
def test_a_spread_warmup_is_part_of_the_schedule(rule: Any) -> None:
    official = CacheConfig(rule=rule, cooldown_steps=2)
    spread = CacheConfig(rule=rule, cooldown_steps=2, guard="spread-warmup")
    assert spread.schedule().full_steps[-2:] == (48, 49)
    assert spread.schedule() == spread_warmup(official.schedule()) != official.schedule()
    assert spread.weights() == forecast_weights(spread.schedule(), order=1)


TABLE = ForecastTable.from_weights(CacheConfig(steps=12, predictor="newton").weights())


def test_a_table_is_its_own_weights() -> None:
    config = CacheConfig(steps=12, predictor="table", table=TABLE)
    assert config.weights() == TABLE.weights() == CacheConfig(steps=12, predictor="newton").weights()
    assert hash(config) == hash(CacheConfig.from_json(json.loads(json.dumps(config.to_json()))))
    assert CacheConfig(steps=12, table=TABLE).weights() == CacheConfig(steps=12).weights(), (
        "of taylor, whatever lies by"
    )


def test_a_table_is_of_its_schedule_and_weighs_features() -> None:
    for other in (CacheConfig(steps=13, predictor="table", table=TABLE), CacheConfig(predictor="table", table=TABLE)):
        with pytest.raises(ScheduleError, match=r"The table has no row for step .*; calibrate again for this schedule"):
            other.schedule()
    with pytest.raises(ScheduleError, match=r"from step 1, and order 0 remembers the full steps 2 there"):
        CacheConfig(steps=12, order=0, predictor="table", table=TABLE).weights()
    with pytest.raises(ScheduleError, match="Predictor 'table' was asked of the state layout 'derivatives'"):
        CacheConfig(steps=12, predictor="table", table=TABLE).coefficients()


def test_a_table_of_a_spread_warmup() -> None:
    """Its weights are its own, however large."""
    spread = CacheConfig(order=2, predictor="hermite", guard="spread-warmup")
    rows = {step: {max(row): 3.0, min(row): -2.0} if len(row) > 1 else row for step, row in spread.weights().items()}
    table = ForecastTable.from_weights(rows)
    assert CacheConfig(order=2, predictor="table", table=table, guard="spread-warmup").weights() == rows


configs = st.builds(
    CacheConfig,
    steps=st.integers(9, 100),
    interval=st.integers(1, 20),
    order=st.integers(0, 4),
    warmup_steps=st.integers(1, 9),
    predictor=st.sampled_from([*PREDICTORS, "table"]),
    contraction=st.floats(0.01, 0.99),
    decay=st.floats(0.01, 0.99),
    table=st.just(TABLE),
    full_steps=st.none() | st.lists(st.integers(0, 99)).map(tuple),
    rule=st.sampled_from(["interval", "modulo"]),
    derivatives_from=st.integers(0, 5),
)


@settings(max_examples=100, deadline=None, database=None)
@given(configs)
def test_json_round_trip(config: CacheConfig) -> None:
    assert CacheConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_fields_left_out_keep_their_default() -> None:
    assert CacheConfig.from_json({"steps": 28}) == CacheConfig(steps=28)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": -1}, r"order is -1; use 0"),
        ({"interval": 0}, r"interval is 0"),
        ({"warmup_steps": 0}, r"0 warm-up steps"),
        ({"cooldown_steps": -1}, r"-1 cool-down steps"),
        ({"predictor": "hermit"}, r"no predictor 'hermit'; use one of taylor, reuse, newton, .*, exponential, table"),
        ({"predictor": "table"}, r"predictor 'table' needs a table of weights; give one, or another predictor"),
        ({"guard": "spread"}, r"no guard 'spread'\. Did you mean 'spread-warmup'\? Known: none, lower-order, spread-w"),
        ({"guard": None}, r"guard is None of type NoneType; give a string"),
        ({"guard": "spread-warmup", "full_steps": (0, 9)}, r"already names every full step, and the guard 'spread-wa"),
        ({"guard": "lower-order", "predictor": "table", "table": TABLE}, r"'table' gives every weight itself, and the"),
        ({"contraction": 1.0}, r"contraction is 1\.0; give a number above 0 and below 1"),
        ({"contraction": float("nan")}, r"contraction is nan; give a number"),
        ({"decay": 0.0}, r"decay is 0\.0; give a number above 0"),
        ({"decay": 1}, r"decay is 1 of type int; give a number, such as 0\.5"),
        ({"table": "weights.json"}, r"table is 'weights\.json' of type str; give a ForecastTable, or None"),
        ({"rule": "modolo"}, r"no rule 'modolo'\. Did you mean 'modulo'\? Known: interval, modulo"),
        ({"full_steps": (0, 9), "cooldown_steps": 2}, r"cooldown_steps=2 would have no effect; add the last"),
        ({"steps": 50.0}, r"steps is 50\.0 of type float; give an integer"),
        ({"order": True}, r"order is True of type bool; give an integer"),
        ({"interval": "6"}, r"interval is '6' of type str; give an integer"),
        ({"predictor": 1}, r"predictor is 1 of type int; give a string"),
        ({"rule": None}, r"rule is None of type NoneType; give a string"),
        ({"full_steps": "0,1,2"}, r"full_steps is '0,1,2' of type str; give integers"),
        ({"full_steps": (0, 2.5)}, r"full_steps is \(0, 2\.5\) of type tuple; give integers"),
        ({"full_steps": (True, False)}, r"full_steps is \(True, False\) of type tuple; give integers"),
    ],
)
@pytest.mark.parametrize("build", [lambda fields: CacheConfig(**fields), CacheConfig.from_json])
def test_fields_refuse_with_the_reason(build: Build, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        build(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 8}, r"8 steps or fewer"),
        ({"interval": 1}, r"Interval 1 makes every step full"),
        ({"warmup_steps": 40, "cooldown_steps": 10}, r"cover all 50 steps"),
        ({"full_steps": (3, 9)}, r"first step is not full"),
        ({"full_steps": (0, 50)}, r"\[50\] are outside the loop"),
        ({"full_steps": (0, 9, 9)}, r"\[9\] are given more than once"),
        ({"full_steps": tuple(range(50))}, r"All 50 steps are full"),
        ({"derivatives_from": -1}, r"derivatives_from is -1"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_schedule_and_weights(fields: dict[str, Any], message: str) -> None:
    config = CacheConfig(**fields)
    with pytest.raises(ScheduleError, match=message):
        config.schedule()
    with pytest.raises(ScheduleError, match=message):
        config.weights()


@pytest.mark.parametrize("build", [lambda f: CacheConfig.from_preset("flux", **f), CacheConfig.from_json])
def test_unknown_fields_are_refused_with_a_close_match(build: Build) -> None:
    message = r"no cache config field 'intervall'\. Did you mean 'interval'\? Known: steps, interval, order"
    with pytest.raises(ScheduleError, match=message):
        build({"intervall": 6})


def test_json_must_be_an_object() -> None:
    with pytest.raises(ScheduleError, match=r"object of fields, but this is \[50, 6\]"):
        CacheConfig.from_json([50, 6])  # type: ignore[arg-type]


def test_overrides_are_checked() -> None:
    with pytest.raises(ScheduleError, match="order is -2"):
        CacheConfig.from_preset("flux", order=-2)


def test_unknown_presets_are_refused_with_a_close_match() -> None:
    with pytest.raises(ScheduleError, match=r"no preset 'hunyuan_video'\. Did you mean 'hunyuan-video'\?"):
        CacheConfig.from_preset("hunyuan_video")
    with pytest.raises(ScheduleError, match=r"no preset 'xyz'\. Known: flux, hunyuan-video, dit, wan, hidream, di"):
        CacheConfig.from_preset("xyz")
