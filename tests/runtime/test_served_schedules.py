"""What a bundle serves without a rebuild: runs of forecasts, and the preset with another number of full steps."""

import pytest

from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.manifest import Layout
from taylorseer.runtime.served_schedules import is_served, longest_run, preset_at_budget
from taylorseer.runtime.step_plan import BuiltState

FLUX = BuiltState.for_config("folded", PRESETS["flux"])
DIT = BuiltState.for_config("folded", PRESETS["dit"])


@pytest.mark.parametrize(
    ("built", "order", "expected"),
    [
        (FLUX, 1, 5),
        (FLUX, 0, 10),  # all accumulators serve one full step
        (FLUX, 2, 0),
        (DIT, 4, 3),
        (DIT, 2, 3),  # an accumulator lies in three of the five places, three slots apart, that it passes through
        (DIT, 1, 6),
        (BuiltState(layout="history", slots=2), 1, 49),
        (BuiltState(layout="derivatives", slots=2), 1, 49),
        (BuiltState(layout="history", slots=2), 2, 0),
    ],
)
def test_the_longest_run(built: BuiltState, order: int, expected: int) -> None:
    assert longest_run(built, 50, order) == expected


def test_a_schedule_that_is_none_is_not_served() -> None:
    assert is_served(PRESETS["flux"], FLUX)
    assert not is_served(CacheConfig(steps=8), FLUX)
    assert not is_served(CacheConfig(interval=7), FLUX)


def test_a_preset_of_the_budget_stays_as_it_is() -> None:
    assert preset_at_budget(PRESETS["flux"], 10, FLUX) is PRESETS["flux"]


@pytest.mark.parametrize(
    ("name", "layout", "budget", "expected"),
    [
        ("dit", "history", 10, {"interval": 6, "warmup_steps": 2, "order": 4}),
        ("dit", "folded", 10, {"interval": 6, "warmup_steps": 2, "order": 1}),  # 15 accumulators
        ("hunyuan-video", "history", 13, {"interval": 4, "warmup_steps": 1, "order": 1}),
        ("flux", "history", 11, {"interval": 5, "warmup_steps": 2, "order": 1}),  # no interval alone makes 11
    ],
)
def test_a_preset_at_another_budget(name: str, layout: Layout, budget: int, expected: dict[str, int]) -> None:
    preset = PRESETS[name]
    found = preset_at_budget(preset, budget, BuiltState.for_config(layout, preset))
    assert {field: getattr(found, field) for field in expected} == expected
    assert len(found.schedule().full_steps) == budget
    assert (found.predictor, found.derivatives_from) == (preset.predictor, preset.derivatives_from)


def test_no_preset_at_a_budget() -> None:
    cooled = CacheConfig(steps=50, interval=6, cooldown_steps=10)
    with pytest.raises(ScheduleError, match="one with 9 of 50 full steps that this bundle serves, so there is nothing"):
        preset_at_budget(cooled, 9, BuiltState(layout="history", slots=2))
