"""The page: its numbers and its findings follow from the results, also where they are not what the paper says."""

import json
import pathlib
import re
from collections.abc import Callable

import pytest

from tools import quality_tables
from tools.quality_grid import Forecast, forecast_digest, grid, guard_grid, short_grid
from tools.quality_page import write_page
from tools.quality_page_fidelity import best_choices, order_claims, reuse_against_taylor
from tools.quality_page_gpu import GPU_FILE, gpu_speed
from tools.quality_page_guard import guard_effects
from tools.quality_page_samples import distribution, largest, speed, speedups, tuning
from tools.quality_results import Record, Results
from tools.quality_study import main
from tools.quality_systems import SYSTEMS, Request
from tools.quality_tables import Measured

FLUX, VIDEO = SYSTEMS["flux-emoji"], SYSTEMS["hunyuan-video-emoji"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests ask of an interval holds for a few resamples as well."""
    monkeypatch.setattr(quality_tables, "_ROUNDS", 40)


def fidelity(forecast: Forecast, request: Request, psnr_db: float) -> Record:
    return {
        "kind": "fidelity",
        "key": f"{forecast} {request}",
        "model": FLUX.model,
        "prompt": request[0],
        "seed": request[1],
        "forecast": forecast_digest(forecast.cache(FLUX)),
        "psnr_db": psnr_db,
        "ssim": 0.9,
        "temporal_difference": None,
    }


def records(psnr_db: Callable[[Forecast], float], forecasts: list[Forecast]) -> list[Record]:
    """Three requests, the second half a decibel better than the first, the third a whole one."""
    return [
        fidelity(forecast, request, psnr_db(forecast) + number / 2)
        for forecast in forecasts
        for number, request in enumerate(FLUX.grid[:3])
    ]


def timed(interval: int = 6) -> Record:
    rounds = [
        {
            "history_ms": 480.0,
            "full_ms": 500.0 + number,
            "forecast_ms": 110.0,
            "forecast_step_ms": 0.1,
            "full_step_ms": 10.0,
            "psnr_db": 39.0,
        }
        for number in (0, 0, 1)
    ]
    machine = {"processor": "P", "cores": 2, "onnxruntime": "1", "load": 0.1}
    return {
        "kind": "speed",
        "key": f"speed {interval}",
        "model": FLUX.model,
        "interval": interval,
        "order": 1,
        "steps": 50,
        "full_steps": 10,
        "rounds": rounds,
        "machine": machine,
    }


def tuned(gain_db: float, pairs: int = 4) -> Record:
    cache = FLUX.preset.to_json()
    return {
        "kind": "tune",
        "key": f"tune {pairs}",
        "model": FLUX.model,
        "pairs": pairs,
        "chosen": "even",
        "preset": cache,
        "best": cache,
        "preset_db": 30.0,
        "tuned_db": 30.0 + gain_db,
        "gain_db": gain_db,
        "interval_db": [gain_db - 1, gain_db + 1],
        "improved": 0.75,
    }


def sampled(taylor: float, reuse: float) -> Record:
    rows = [
        {
            "name": name,
            "full_steps": 7,
            "to_real": 1.0,
            "to_real_interval": [0.9, 1.1],
            "to_full": apart,
            "to_full_interval": None if apart is None else [apart - 0.1, apart + 0.1],
            "accuracy": 0.5,
            "accuracy_interval": [0.4, 0.6],
        }
        for name, apart in (("every step full", None), ("taylor", taylor), ("reuse", reuse))
    ]
    return {"kind": "distribution", "key": "d", "model": FLUX.model, "samples": 1024, "steps": 20, "rows": rows}


def test_the_papers_order_is_confirmed_where_it_is_so() -> None:
    def better_and_better(forecast: Forecast) -> float:
        return 40.0 - forecast.interval + (forecast.interval if forecast.order else 0)

    claims = " ".join(order_claims(Measured(records(better_and_better, grid(orders=(0, 1)))), FLUX, 1))
    assert "*Taylor above reuse: confirmed* at every interval from 2 to 10." in claims
    assert "*The gap grows with the interval: confirmed.* From interval 2 to 10 it changes by +8.0" in claims


def test_the_papers_order_is_not_confirmed_where_it_is_not() -> None:
    def crossing(forecast: Forecast) -> float:
        return 40.0 - forecast.interval + (6 - forecast.interval if forecast.order else 0)

    claims = " ".join(order_claims(Measured(records(crossing, grid(orders=(0, 1)))), FLUX, 1))
    assert "*Taylor above reuse: not at every interval.*" in claims
    assert "above at the intervals 2, 3, 4, 5; below at the intervals 7, 8, 9, 10; not told apart from it at" in claims
    assert "*The gap grows with the interval: not confirmed.*" in claims


def test_a_gap_that_grows_in_levels_alone_is_said_to() -> None:
    def both_worse(forecast: Forecast) -> float:
        return 60.0 - 4 * forecast.interval + (4.0 - forecast.interval / 5 if forecast.order else 0)

    claims = " ".join(order_claims(Measured(records(both_worse, grid(orders=(0, 1)))), FLUX, 1))
    assert "confirmed in levels of 255, not otherwise" in claims and "a ratio of errors" in claims


def test_a_longer_interval_that_comes_closer_is_named() -> None:
    measured = Measured(records(lambda forecast: 45.0 if forecast.interval == 9 else 40.0, grid((7, 8, 9), (0, 1))))
    claims = " ".join(order_claims(measured, FLUX, 1))
    assert "the intervals 9 than 8 by +5.0 [+5.0, +5.0] dB (last full step 47 instead of 42). After" in claims


def test_a_row_has_the_full_steps_and_both_medians() -> None:
    measured = Measured(records(lambda forecast: 40.0 + forecast.order, grid((6,), (0, 1))))
    (row,) = [line for line in "\n".join(reuse_against_taylor(measured, FLUX)).splitlines() if line.startswith("| 6")]
    assert row.startswith("| 6 | 10 of 50, last 44 | 40.5 [40.0, 41.0] | 41.5 [41.0, 42.0] | +1.0 [+1.0, +1.0] |")


def test_the_best_is_the_one_with_the_highest_median() -> None:
    def best(forecast: Forecast) -> float:
        return 50.0 if (forecast.order, forecast.predictor) == (2, "newton") else 40.0

    text = "\n".join(best_choices(Measured(records(best, grid((6,)))), FLUX))
    assert "| 6 | 10 of 50 | newton, order 2 | 50.5 [50.0, 51.0] | +10.0 [+10.0, +10.0] |" in text


def test_guards_are_counted_by_what_they_did() -> None:
    def harmed(forecast: Forecast) -> float:
        return 40.0 if forecast.guard == "none" else 39.0 if forecast.guard == "lower-order" else 42.0

    text = "\n".join(guard_effects(Measured(records(harmed, guard_grid((10,)))), [FLUX]))
    assert "Of 3 comparisons with 3 warm-up steps, by the 95 % interval: 1 better, 2 worse, 0 not told apart." in text
    assert "| FLUX | 10 | 1 | spread-warmup | 3 | 40.5 [40.0, 41.0] | +2.00 [+2.00, +2.00] | 100% |" in text


def test_eta_is_the_speed_up_over_the_ideal_one() -> None:
    speedup, eta, beside_history = speedups(timed())
    assert (speedup, eta) == pytest.approx((500 / 110, 500 / 110 / 5))
    assert beside_history == pytest.approx(480 / 110 / 5)
    text = "\n".join(speed([timed(), timed(4)], [FLUX]))
    assert "| FLUX, preset | 6 | 1 | 10 of 50 | 500 | 110 | 1.0% | 4.55x of 5.00x | 0.909 [" in text
    assert "FLUX's preset: eta 0.91, at or above 0.90." in text


@pytest.mark.parametrize(
    ("gain_db", "said"),
    [
        (2.0, "beats the preset."),
        (0.5, "beats the preset, though the 95 % interval includes 0."),
        (-1.0, "does not beat the preset."),
    ],
)
def test_a_gain_is_told_by_its_interval(gain_db: float, said: str) -> None:
    text = "\n".join(tuning([tuned(gain_db)], [FLUX]))
    assert f"FLUX: the tuned schedule {said}" in text and f"{gain_db:+.2f} [{gain_db - 1:+.2f}" in text


def test_the_closer_samples_are_named_whichever_they_are() -> None:
    assert "the samples of taylor are 3.0 times as close" in "\n".join(distribution([sampled(0.5, 1.5)], [FLUX]))
    text = "\n".join(distribution([sampled(1.1, 1.0)], [FLUX]))
    assert "the samples of reuse are 1.1 times as close" in text and "though the intervals overlap" in text


def test_a_record_of_the_quick_form_does_not_replace_a_larger_one() -> None:
    found = largest([tuned(2.0, 24), tuned(9.0, 3)], lambda record: record["model"], lambda record: record["pairs"])
    assert found[FLUX.model]["gain_db"] == 2.0


def test_the_page_is_written_from_results_alone(tmp_path: pathlib.Path) -> None:
    forecasts = [*grid((2, 4), (0, 1, 2)), *short_grid(20, (4,)), *guard_grid((4,))]
    with Results(tmp_path / "results.jsonl") as results:
        for record in [*records(lambda f: 40.0 + f.order, forecasts), timed(), tuned(1.0), sampled(0.5, 1.5)]:
            results.add(record)
    page = tmp_path / "docs" / "quality.md"
    assert main(["--only", "page", "--output", str(tmp_path), "--page", str(page)]) == 0
    text = page.read_text("utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Reuse against Taylor at the same full steps",
        "## Interval, order and predictor",
        "## The first window after the warm-up",
        "## Distribution",
        "## Speed",
        "## Tuned schedules",
    ]
    plots = re.findall(r"\]\((quality-[^)]*)\)", text)
    assert len(plots) == 3 and all((page.parent / plot).stat().st_size > 1000 for plot in plots)


def test_a_page_without_results_is_written_too(tmp_path: pathlib.Path) -> None:
    with Results(tmp_path / "results.jsonl") as results:
        write_page(results, [FLUX, VIDEO], tmp_path / "quality.md", quick=True)
    assert "**This is the quick form:**" in (tmp_path / "quality.md").read_text("utf-8")


def test_what_a_gpu_measured_stands_beside_the_speed(tmp_path: pathlib.Path) -> None:
    assert list(gpu_speed(tmp_path, [FLUX])) == []
    loop = {"full_ms": 0.25, "forecast_ms": 0.0125}
    row = {"state": "folded, order 1", "precision": "bf16", "device": "GPU", "engine": "tensorrt-rtx 1"}
    measured = [{"model": FLUX.model, "forecasting": loop, "speedup": 4.0, "eta": 0.8} | row]
    (tmp_path / GPU_FILE).write_text(json.dumps(measured), "utf-8")
    said, lines = gpu_speed(tmp_path, [VIDEO, FLUX])
    assert "(GPU, tensorrt-rtx 1)" in said
    assert "| FLUX, preset | folded, order 1 | bf16 | 0.250 | 0.013 | 4.00x of 5.00x | 0.800 |" in lines
    assert "HunyuanVideo" not in lines
