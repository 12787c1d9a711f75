"""``plan``: the presets' published schedules, their weights and their state, before anything runs."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import PRESETS

Run = Callable[..., Any]

GOLDEN = {
    "flux": [0, 1, 2, 8, 14, 20, 26, 32, 38, 44],
    "hunyuan-video": [0, 5, 10, 15, 20, 25, 30, 35, 40, 45],
    "dit": [0, 1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49],
    "wan": [0, 5, 10, 15, 20, 25, 30, 35, 40, 45],
    "hidream": [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48],
    "diffusers": [0, 1, 2, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49],
}
"""Full steps of 50: read in the authors' code, and in diffusers' for ``diffusers``."""


def test_every_preset_is_golden() -> None:
    assert GOLDEN.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", GOLDEN)
def test_the_plan_of_a_preset(run: Run, preset: str) -> None:
    plan = run("plan", "--preset", preset, "--steps", 50, "--json").json
    full = GOLDEN[preset]
    assert plan["full_steps"] == full
    assert plan["ideal_speedup"] == pytest.approx(50 / len(full))
    assert plan["expected_speedup"] == pytest.approx(50 / (len(full) + 0.05 * (50 - len(full))))
    weights = plan["weights"]
    assert [int(step) for step in weights] == [step for step in range(50) if step not in full]
    for step, row in weights.items():
        sources = [int(source) for source in row]
        assert sources == sorted(sources) and set(sources) <= set(full) and max(sources) < int(step)
        assert 1 <= len(row) <= PRESETS[preset].order + 1
        assert math.isclose(sum(row.values()), 1, abs_tol=1e-9)
    sums = {int(step): sum(map(abs, row.values())) for step, row in weights.items()}
    assert plan["largest_weight_sum"] == pytest.approx(max(sums.values()))
    assert sums[plan["largest_weight_sum_step"]] == pytest.approx(max(sums.values()))


def test_28_steps_of_flux(run: Run) -> None:
    assert run("plan", "--preset", "flux", "--steps", 28, "--json").json["full_steps"] == [0, 1, 2, 8, 14, 20, 26]


def test_weights_of_flux_by_hand(run: Run) -> None:
    """From steps 1 and 2 to 7, five steps away: F(2) + 5 (F(2) - F(1)); from 8 and 14 to 17: half a gap."""
    weights = run("plan", "--preset", "flux", "--json").json["weights"]
    assert weights["7"] == {"1": -5.0, "2": 6.0}
    assert weights["17"] == pytest.approx({"8": -0.5, "14": 1.5})


def test_state_bytes_of_the_published_models(run: Run) -> None:
    flux = run("plan", "--preset", "flux", "--json").json
    assert flux["state_bytes"] == {"derivatives": 7_650_410_496, "history": 3_825_205_248}
    assert flux["state_of"] == "FLUX.1-dev, 1024x1024, bf16"
    assert run("plan", "--preset", "flux", "--order", 2, "--batch", 2, "--json").json["state_bytes"]["history"] == (
        3_825_205_248 * 3
    )
    assert run("plan", "--preset", "diffusers", "--json").json["state_bytes"] is None


def test_a_loud_window_is_warned_of(run: Run) -> None:
    text = run("plan", "--preset", "flux").out
    assert "largest sum of |weights| 11.00, at step 7" in text
    assert "warning: rounding noise grows 11-fold there" in text
    assert "more warm-up steps, full steps spaced apart (--full-steps) or --order 0 avoid it" in text


@pytest.mark.parametrize(
    "options", [("--preset", "flux", "--order", 0), ("--preset", "wan"), ("--full-steps", "0,3,6,9", "--steps", 12)]
)
def test_a_quiet_plan_is_not(run: Run, options: tuple[object, ...]) -> None:
    outcome = run("plan", *options)
    assert outcome.code == 0 and "warning" not in outcome.out


def test_the_text_tells_the_same(run: Run) -> None:
    text = run("plan", "--preset", "flux").out
    assert text.startswith("50 steps, 10 full: 0, 1, 2, 8, 14, 20, 26, 32, 38, 44\npredictor taylor, order 1\n")
    assert "speed-up 5.00x if forecasts were free, 4.17x with forecasts at 5% of a full step" in text
    assert "history      3.83 GB" in text
    assert "\n    7: 1 x -5  2 x +6\n" in text


def test_a_bundle_brings_its_own_defaults(run: Run, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("dit-tiny")
    plan = run("plan", bundle.folder, "--json").json
    assert plan["full_steps"] == GOLDEN["dit"] and plan["cache"]["order"] == 2
    assert plan["state_of"] == str(bundle.folder)
    assert plan["state_bytes"]["history"] == 6 * 3 * 16 * 32 * 4  # features, slots, rows, width, float32
    twice = run("plan", bundle.folder, "--batch", 2, "--steps", 20, "--json").json
    assert twice["state_bytes"]["history"] == 2 * plan["state_bytes"]["history"]
    assert twice["cache"]["steps"] == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preset", "fluks"), "no preset 'fluks'. Did you mean 'flux'?"),
        (("--interval", 1), "Interval 1 makes every step full, so nothing is forecast"),
        (("--interval", 0), "The interval is 0"),
        (("--order", -1), "The order is -1; use 0 to reuse the last feature"),
        (("--warmup-steps", 50), "cover all 50 steps, so nothing is forecast"),
        (("--warmup-steps", 0), "There are 0 warm-up steps, but the first step must be full"),
        (("--steps", 8), "with 8 steps or fewer there is too little to forecast from"),
        (("--steps", 9, "--full-steps", "0,1,2,3,4,5,6,7,8"), "All 9 steps are full, so nothing is forecast"),
        (("--full-steps", "1,2"), "The first step is not full"),
        (("--full-steps", "0,50"), "outside the loop; use steps from 0 to 49"),
        (("--full-steps", "0,1,1"), "given more than once"),
        (("--full-steps", "0;1"), "--full-steps takes step numbers such as 0,1,2,8, not '0;1'"),
        (("--predictor", "hermite"), "no predictor 'hermite'; use one of taylor, reuse, newton"),
        (("--batch", 0), "give an order >= 0 and a batch >= 1"),
        (("--forecast-cost", -0.25), "--forecast-cost -0.25 is no share of a full step: give 0 or more"),
        (("--forecast-cost", "nan"), "--forecast-cost nan"),
    ],
)
def test_what_cannot_be_planned_is_refused(run: Run, options: tuple[object, ...], message: str) -> None:
    outcome = run("plan", *options)
    assert outcome.refused(message)
    assert outcome.out == ""


def test_json_is_all_that_is_printed(run: Run) -> None:
    outcome = run("plan", "--json")
    assert outcome.err == "" and json.loads(outcome.out)["cache"]["steps"] == 50
