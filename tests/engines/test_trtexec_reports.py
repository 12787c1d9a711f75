"""The files that trtexec exports: read as it writes them, written as it would, and damaged."""

import json
import pathlib
from typing import Any

import pytest

from taylorseer.engines.engine_times import EngineRun, EngineTimes, LayerTime
from taylorseer.engines.trtexec_reports import read_layers, read_times, write_layers, write_times
from taylorseer.errors import BackendError, OutputError

TIMES = """[
  { "startEnqMs" : 0.25, "endEnqMs" : 0.5, "startH2dMs" : 1, "endH2dMs" : 1.5, "startComputeMs" : 1.5, \
"endComputeMs" : 4, "startD2hMs" : 4, "endD2hMs" : 4.25, "h2dMs" : 0.5, "computeMs" : 2.501, "d2hMs" : 0.25, \
"latencyMs" : 3.251, "endToEndMs" : 9 }
, { "startEnqMs" : 4, "endEnqMs" : 5, "startH2dMs" : 6, "endH2dMs" : 6, "startComputeMs" : 6, \
"endComputeMs" : 1e1, "startD2hMs" : 10, "endD2hMs" : 10, "h2dMs" : 0, "computeMs" : 4, "d2hMs" : 0, "latencyMs" : 4 }
]
"""

LAYERS = """[
  { "count" : 4 }
, { "name" : "node_linear_5 + node_silu\x1f[2]", "timeMs" : 6, "averageMs" : 1.5, "medianMs" : 1.25, "percentage" : 75 }
, { "name" : "Reformat", "timeMs" : 2, "averageMs" : 0.5, "medianMs" : 0.5, "percentage" : 25 }
]
"""


def written(folder: pathlib.Path, text: str) -> pathlib.Path:
    path = folder / "report.json"
    path.write_text(text, "utf-8")
    return path


def damaged(folder: pathlib.Path, key: str, value: Any) -> pathlib.Path:
    entries = json.loads(TIMES)
    entries[1][key] = value
    return written(folder, json.dumps(entries))


def test_the_times_of_trtexec(tmp_path: pathlib.Path) -> None:
    first, second = read_times(written(tmp_path, TIMES)).runs
    assert first == EngineRun(
        compute_start_ms=1.5,
        compute_end_ms=4,
        compute_ms=2.501,  # as written, not the difference of the rounded clock
        enqueue_start_ms=0.25,
        enqueue_end_ms=0.5,
        h2d_ms=0.5,
        d2h_ms=0.25,
    )
    assert (second.compute_ms, second.compute_end_ms) == (4, 10)


def test_the_layers_of_trtexec(tmp_path: pathlib.Path) -> None:
    linear, reformat = read_layers(written(tmp_path, LAYERS))
    assert linear == LayerTime(
        name="node_linear_5 + node_silu\x1f[2]", total_ms=6, average_ms=1.5, median_ms=1.25, percent=75
    )
    assert reformat.name == "Reformat"


def test_what_is_written_has_the_keys_of_trtexec(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "times.json"
    times = read_times(written(tmp_path, TIMES))
    write_times(path, times)
    ours, theirs = json.loads(path.read_text("utf-8")), json.loads(TIMES)
    del theirs[0]["endToEndMs"]
    assert [list(entry) for entry in ours] == [list(entry) for entry in theirs]  # in its order too
    assert ours == [pytest.approx(entry) for entry in theirs]
    assert read_times(path) == times


def test_our_own_timers_write_the_same_schema(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "times.json"
    write_times(path, EngineTimes.from_durations([1.5, 2.5]))
    assert list(read_times(path).compute_ms) == [1.5, 2.5]


def test_layers_are_written_as_trtexec_does(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "layers.json"
    layers = read_layers(written(tmp_path, LAYERS))
    write_layers(path, layers, runs=4)
    assert json.loads(path.read_text("utf-8")) == json.loads(LAYERS, strict=False)
    assert read_layers(path) == layers


def test_a_report_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"cannot be read: No such file.*writes with --exportTimes=FILE"):
        read_times(tmp_path / "gone.json")


@pytest.mark.parametrize("text", [TIMES[:100], "", '[{"computeMs": -nan}]'])
def test_a_report_that_was_cut_short(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(
        BackendError, match=r"is no --exportTimes file of trtexec, or was cut short: .*Run trtexec again"
    ):
        read_times(written(tmp_path, text))


@pytest.mark.parametrize("text", ["{}", "[1, 2]", '"text"'])
def test_json_of_another_kind(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(BackendError, match="a list of objects was expected"):
        read_times(written(tmp_path, text))


def test_a_report_without_runs(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match="holds no run: give trtexec more --iterations"):
        read_times(written(tmp_path, "[]"))


@pytest.mark.parametrize(
    "key", ["startEnqMs", "endEnqMs", "startComputeMs", "endComputeMs", "h2dMs", "computeMs", "d2hMs"]
)
@pytest.mark.parametrize("value", [None, "4", True, float("nan"), float("inf")])
def test_a_time_that_is_no_number(tmp_path: pathlib.Path, key: str, value: Any) -> None:
    with pytest.raises(BackendError, match=f"Entry 1 of .* has .* for '{key}' where a finite number was expected"):
        read_times(damaged(tmp_path, key, value))


def test_times_given_for_layers(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match="no --exportProfile file of trtexec: it does not begin with"):
        read_layers(written(tmp_path, TIMES))


def test_a_layer_without_a_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"Entry 1 of .* names no layer"):
        read_layers(written(tmp_path, '[{"count": 1}, {"timeMs": 1}]'))


def test_a_layer_without_a_time(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"Entry 1 of .* has None for 'timeMs'"):
        read_layers(written(tmp_path, '[{"count": 1}, {"name": "a"}]'))


def test_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: No such file.*Check that its folder exists"):
        write_times(tmp_path / "gone" / "times.json", EngineTimes.from_durations([1.0]))
