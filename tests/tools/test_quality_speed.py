"""Timed requests: the preset's bundle at the schedules that it serves, both baselines beside every one."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from taylorseer.accumulators import accumulators_of
from taylorseer.runtime.generation import Generated
from taylorseer.runtime.session import Result
from taylorseer.runtime.step_plan import BuiltState
from tools import quality_speed
from tools.quality_plan import FULL, QUICK, Setting
from tools.quality_results import Results
from tools.quality_speed import machine, measure_speed, timed_forecasts
from tools.quality_systems import SYSTEMS, System
from tools.quality_workers import Progress


@dataclasses.dataclass
class Bundle:
    """As much of a bundle as is asked for."""

    manifest: Any


class FakeGenerator:
    """Makes gray pictures at once; a forecast is one level off."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        assert threads == 1

    def __enter__(self) -> "FakeGenerator":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def generate(self, prompt: str, *, seed: int, cache: Any, every_step_full: bool) -> Generated:
        full = np.array([every_step_full or cache.schedule().is_full(step) for step in range(cache.steps)])
        result = Result(np.zeros(1), np.where(full, 0.01, 0.001), full)
        return Generated(np.zeros(1, np.float32), np.full((16, 16, 3), 9 + (not every_step_full), np.uint8), result)


@pytest.fixture(params=SYSTEMS.values(), ids=list(SYSTEMS))
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> System:
    """A system whose bundle is what its preset builds."""
    found: System = request.param
    accumulators = accumulators_of(found.preset.schedule(), found.preset.order)
    state = BuiltState(layout="folded", slots=found.preset.order + 1, accumulators=accumulators)
    monkeypatch.setattr(BuiltState, "of_bundle", lambda manifest: state)
    monkeypatch.setattr(quality_speed, "Generator", FakeGenerator)
    monkeypatch.setattr(quality_speed, "identity", lambda bundle: "abc")
    return found


def test_the_preset_is_timed_first_and_what_its_bundle_serves_after_it(system: System) -> None:
    forecasts = timed_forecasts(system, Bundle(None), FULL)  # type: ignore[arg-type]
    served = [(forecast.interval, forecast.order) for forecast in forecasts]
    assert served[0] == (system.preset.interval, system.preset.order)
    assert len(served) == len(set(served)) and {(2, 1), (system.preset.interval, 1)} <= set(served)
    assert (10, system.preset.order) not in served
    assert timed_forecasts(system, Bundle(None), QUICK) == forecasts[:1]  # type: ignore[arg-type]


def test_every_round_has_both_baselines(system: System, tmp_path: pathlib.Path) -> None:
    bundle: Any = Bundle(None)
    with Results(tmp_path / "results.jsonl") as results:
        setting = Setting(
            system=system,
            wide=bundle,
            folded=bundle,
            scope=QUICK,
            results=results,
            output=tmp_path,
            pictures=tmp_path,
            threads=1,
            again=False,
        )
        measure_speed(setting, Progress())
        measure_speed(setting, Progress())  # is there
        (record,) = results.of_kind("speed")
        assert len((tmp_path / "results.jsonl").read_text("utf-8").splitlines()) == 1
        measure_speed(dataclasses.replace(setting, again=True), Progress())
        assert len((tmp_path / "results.jsonl").read_text("utf-8").splitlines()) == 2
    first, second = record["rounds"]
    assert first.keys() == second.keys() > {"history_ms", "full_ms", "forecast_ms", "psnr_db"}
    assert first["forecast_step_ms"] == pytest.approx(1.0) and first["full_step_ms"] == pytest.approx(10.0)
    assert first["psnr_db"] == pytest.approx(20 * np.log10(255))
    assert record["full_steps"] == len(system.preset.schedule().full_steps) and record["machine"]["cores"] >= 1


def test_a_machine_says_what_it_is() -> None:
    found = machine()
    assert found["processor"] and found["onnxruntime"]
