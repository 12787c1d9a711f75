"""Medians with intervals, and differences of the same requests."""

import math

import pytest

from tools import quality_tables
from tools.quality_grid import Forecast, forecast_digest
from tools.quality_systems import SYSTEMS
from tools.quality_tables import Estimate, Measured, error_levels, gain, growth, table

SYSTEM = SYSTEMS["flux-emoji"]
TAYLOR = Forecast(steps=50, interval=6, order=1, predictor="taylor")
REUSE = Forecast(steps=50, interval=6, order=0, predictor="reuse")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests ask of an interval holds for a few resamples as well."""
    monkeypatch.setattr(quality_tables, "_ROUNDS", 40)


def records(forecast: Forecast, decibels: list[float]) -> list[dict[str, object]]:
    return [
        {
            "kind": "fidelity",
            "key": f"{forecast.predictor} {prompt}",
            "model": SYSTEM.model,
            "prompt": prompt,
            "seed": seed,
            "forecast": forecast_digest(forecast.cache(SYSTEM)),
            "psnr_db": value,
            "ssim": 0.9,
        }
        for (prompt, seed), value in zip(SYSTEM.grid, decibels, strict=False)
    ]


def test_an_estimate_is_the_median_within_its_interval() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert estimate.value == 3.0 and estimate.low <= 3.0 <= estimate.high and estimate.count == 5
    assert estimate.is_positive and not estimate.is_negative
    assert Estimate.of([-2.0, -1.0, -3.0]).is_negative


def test_one_request_has_no_interval() -> None:
    estimate = Estimate.of([3.0])
    assert estimate.text() == "3.0 [one request]" and not estimate.is_positive and not estimate.is_negative


def test_gains_are_of_the_same_requests() -> None:
    measured = Measured([*records(TAYLOR, [40.0, 50.0, 60.0]), *records(REUSE, [39.0, 48.0])])
    gains = measured.gains(SYSTEM, TAYLOR, REUSE, SYSTEM.grid)
    assert list(gains.values()) == [1.0, 2.0]
    over = gain(gains)
    assert over and over.value == 1.5 and over.count == 2
    assert gain({}) is None


def test_weights_find_a_result_whatever_the_predictor_is_called() -> None:
    measured = Measured(records(TAYLOR, [40.0, 50.0]))
    newton = Forecast(steps=50, interval=6, order=1, predictor="newton")
    assert measured.median(SYSTEM, newton) == 45.0
    assert measured.median(SYSTEM, REUSE) is None and measured.estimate(SYSTEM, REUSE) is None
    assert measured.requests(SYSTEM) == 2


def test_growth_is_of_requests_that_have_both() -> None:
    early, late = {("a", 0): 1.0, ("b", 0): 1.0}, {("a", 0): 4.0, ("c", 0): 9.0}
    change = growth(early, late)
    assert change and change.value == 3.0 and change.count == 1
    assert growth(early, {}) is None


def test_an_error_in_levels_is_what_the_psnr_says() -> None:
    assert error_levels(20 * math.log10(255)) == pytest.approx(1.0)
    assert Measured(records(TAYLOR, [40.0])).median(SYSTEM, TAYLOR, "error") == pytest.approx(2.55)


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
