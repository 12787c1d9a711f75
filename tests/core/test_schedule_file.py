"""Schedule files: what is written is read again, and what is no such file says why."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.config import CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.forecast_table import ForecastTable
from taylorseer.predictor import forecast_weights
from taylorseer.schedule import mask_schedule
from taylorseer.schedule_file import ScheduleFile, load_schedule

FULL = (0, 2, 5, 8)


@pytest.fixture
def tuned() -> ScheduleFile:
    weights = forecast_weights(mask_schedule(10, FULL), order=1, predictor="newton")
    cache = CacheConfig(
        steps=10, order=1, full_steps=FULL, predictor="table", table=ForecastTable.from_weights(weights)
    )
    return ScheduleFile(model="flux-tiny", cache=cache, calibration={"requests": [["a", 0]]}, measured={"gain_db": 1.5})


def written(folder: pathlib.Path, content: Any) -> pathlib.Path:
    path = folder / "schedule.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_what_is_written_is_read_again(tuned: ScheduleFile, tmp_path: pathlib.Path) -> None:
    path = written(tmp_path, tuned.to_json())
    assert load_schedule(path) == tuned
    assert load_schedule(str(path)).cache.weights() == tuned.cache.weights()


def test_people_read_steps_and_budget(tuned: ScheduleFile) -> None:
    mapping = tuned.to_json()
    assert (mapping["model"], mapping["steps"], mapping["budget"]) == ("flux-tiny", 10, 4)
    assert mapping["measured"] == {"gain_db": 1.5}


def test_another_model(tuned: ScheduleFile) -> None:
    tuned.check_model("flux-tiny", "tuned.json")
    with pytest.raises(ScheduleError, match=r"tuned\.json was tuned for flux-tiny, and this is dit-tiny: run"):
        tuned.check_model("dit-tiny", "tuned.json")


def test_a_schedule_that_could_not_run() -> None:
    with pytest.raises(ScheduleError, match="8 steps or fewer"):
        ScheduleFile(model="flux-tiny", cache=CacheConfig(steps=8))


def changed(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda mapping: mapping | fields


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda mapping: [mapping], r'is no schedule file to use: it has no "format": "taylorseer schedule"; give'),
        (changed(format="onnx"), r'it has no "format": "taylorseer schedule"'),
        (changed(format_version=2), r"format version 2, this taylorseer reads 1; tune again, or use the version"),
        (changed(model=None), r"its 'model' is None; give a file that `taylorseer tune` wrote"),
        (changed(budget=True), r"its 'budget' is True"),
        (changed(cache="flux"), r"its 'cache' is 'flux'"),
        (changed(steps=50), r"it says 4 of 50 steps are full, and its cache has 4 of 10; tune again"),
        (changed(budget=5), r"it says 5 of 10 steps are full, and its cache has 4"),
        (lambda mapping: changed(cache=mapping["cache"] | {"pace": 2})(mapping), r"no cache config field 'pace'"),
        (lambda mapping: changed(cache=mapping["cache"] | {"table": None})(mapping), r"needs a table of weights"),
        (lambda mapping: changed(cache=mapping["cache"] | {"full_steps": [0, 4]})(mapping), r"The table has no row"),
    ],
)
def test_files_of_another_content(
    tuned: ScheduleFile, tmp_path: pathlib.Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = written(tmp_path, damage(tuned.to_json()))
    with pytest.raises(ScheduleError, match=message) as refused:
        load_schedule(path)
    assert str(path) in str(refused.value) and ".." not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ScheduleError, match=r"nowhere\.json cannot be read: No such file"):
        load_schedule(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_holds_no_json(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ScheduleError, match="is no schedule file: it holds no JSON"):
        load_schedule(tmp_path / "file")
