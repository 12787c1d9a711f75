"""What the study records of ``tune``, and how far the progress says it is."""

import dataclasses
import pathlib
from typing import Any

import pytest

from taylorseer.runtime.held_out import Gain
from taylorseer.runtime.trial import Candidate
from taylorseer.runtime.tuning import Tuning
from taylorseer.schedule_file import load_schedule
from tools import quality_tune
from tools.quality_plan import FULL, QUICK, Setting
from tools.quality_results import Results
from tools.quality_systems import SYSTEMS
from tools.quality_tune import measure_tune, schedule_path, tune_cost
from tools.quality_workers import Progress

FLUX = SYSTEMS["flux-emoji"]
BEST = dataclasses.replace(FLUX.preset, full_steps=(0, 2, 5, 9, 14, 20, 26, 32, 38, 44))
GAIN = Gain(pairs=3, preset_db=38.0, tuned_db=50.0, gain_db=12.0, interval_db=(11.0, 13.0), improved=1.0)


def test_the_gain_is_recorded_and_the_schedule_file_is_one_that_loads(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, best = Candidate("preset", FLUX.preset, (38.0, 38.0)), Candidate("even", BEST, (50.0, 50.0))
    found = Tuning(preset=preset, best=best, tried=(preset, best), moves=7, longest_run=5)
    runs: list[tuple[Any, ...]] = []
    monkeypatch.setattr(quality_tune, "identity", lambda bundle: "abc")

    def tune(*asked: Any) -> tuple[Tuning, Gain]:
        runs.append(asked)
        return found, GAIN

    monkeypatch.setattr(quality_tune, "_tuned", tune)
    nothing: Any = None
    with Results(tmp_path / "results.jsonl") as results:
        setting = Setting(
            system=FLUX,
            wide=nothing,
            folded=nothing,
            scope=QUICK,
            results=results,
            output=tmp_path,
            pictures=tmp_path,
            threads=1,
            again=False,
        )
        for _ in range(2):
            measure_tune(setting, Progress())
        (record,) = results.of_kind("tune")
    assert len(runs) == 1 and runs[0][1:3] == (FLUX.calibrated[:2], FLUX.held_out[:3])
    assert (record["gain_db"], record["chosen"], record["moves"], record["calibrated"]) == (12.0, "even", 7, 2)
    file = load_schedule(schedule_path(tmp_path, FLUX))
    assert file.cache == BEST and file.measured["gain_db"] == 12.0 and file.model == FLUX.model


@pytest.mark.parametrize("scope", [FULL, QUICK])
def test_the_progress_grows_from_phase_to_phase_up_to_the_cost(scope: Any) -> None:
    phases = quality_tune._phases(FLUX, scope)
    told = ("recording every step full", "trying even placement", "moving full steps", "measuring on held-out requests")
    spent = [quality_tune._spent(phases, what, fraction) for what in told for fraction in (0.0, 0.5, 1.0)]
    assert spent == sorted(spent) and spent[0] == 0 and spent[-1] == pytest.approx(tune_cost(FLUX, scope))
