"""What trtexec exports, read and written: the time of every run and of every layer.

The schema is that of ``exportJSONTrace`` and ``exportJSONProfile`` in NVIDIA/TensorRT's
``samples/common/sampleReporting.cpp`` since TensorRT 8.4, so that our own timers and trtexec leave files for the same
readers.  Keys beyond it are passed over, such as the ``endToEndMs`` of TensorRT 8.2.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from taylorseer.engines.engine_times import EngineRun, EngineTimes, LayerTime
from taylorseer.errors import BackendError, OutputError

__all__ = ["read_layers", "read_times", "write_layers", "write_times"]


def read_times(path: pathlib.Path) -> EngineTimes:
    """Return the runs of an ``--exportTimes`` file.

    Raises:
        BackendError: the file is missing, malformed, or holds no run.
    """
    entries = _entries(path, "--exportTimes")
    if not entries:
        raise BackendError(f"{path} holds no run: give trtexec more --iterations.")
    return EngineTimes(runs=tuple(_run(path, index, entry) for index, entry in enumerate(entries)))


def write_times(path: pathlib.Path, times: EngineTimes) -> None:
    """Write an ``--exportTimes`` file.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, [_run_json(run) for run in times.runs])


def read_layers(path: pathlib.Path) -> tuple[LayerTime, ...]:
    """Return the layers of an ``--exportProfile`` file, in the engine's order.

    Raises:
        BackendError: the file is missing or malformed.
    """
    entries = _entries(path, "--exportProfile")
    if not entries or "count" not in entries[0]:
        raise BackendError(f'{path} is no --exportProfile file of trtexec: it does not begin with {{"count": runs}}.')
    return tuple(_layer(path, index, entry) for index, entry in enumerate(entries[1:], 1))


def write_layers(path: pathlib.Path, layers: Sequence[LayerTime], *, runs: int) -> None:
    """Write an ``--exportProfile`` file of ``runs`` profiled runs.

    Raises:
        OutputError: the file cannot be written.
    """
    entries: list[dict[str, Any]] = [{"count": runs}]
    for layer in layers:
        entries.append(
            {
                "name": layer.name,
                "timeMs": layer.total_ms,
                "averageMs": layer.average_ms,
                "medianMs": layer.median_ms,
                "percentage": layer.percent,
            }
        )
    _write(path, entries)


def _entries(path: pathlib.Path, option: str) -> list[dict[str, Any]]:
    try:
        # trtexec escapes nothing: control characters of a layer's name stand in the file as they are
        entries = json.loads(path.read_text("utf-8"), strict=False)
    except OSError as error:
        raise BackendError(
            f"{path} cannot be read: {error.strerror or error}. It is what trtexec writes with {option}=FILE."
        ) from error
    except ValueError as error:  # JSON and UTF-8 alike
        raise BackendError(
            f"{path} is no {option} file of trtexec, or was cut short: {error}. Run trtexec again."
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BackendError(f"{path} is no {option} file of trtexec: a list of objects was expected.")
    return entries


def _number(path: pathlib.Path, index: int, entry: dict[str, Any], key: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BackendError(
            f"Entry {index} of {path} has {value!r} for {key!r} where a finite number was expected: the file was "
            "not written by trtexec, or by a version with another schema."
        )
    return float(value)


def _run(path: pathlib.Path, index: int, entry: dict[str, Any]) -> EngineRun:
    return EngineRun(
        compute_start_ms=_number(path, index, entry, "startComputeMs"),
        compute_end_ms=_number(path, index, entry, "endComputeMs"),
        compute_ms=_number(path, index, entry, "computeMs"),
        enqueue_start_ms=_number(path, index, entry, "startEnqMs"),
        enqueue_end_ms=_number(path, index, entry, "endEnqMs"),
        h2d_ms=_number(path, index, entry, "h2dMs"),
        d2h_ms=_number(path, index, entry, "d2hMs"),
    )


def _run_json(run: EngineRun) -> dict[str, float]:
    return {
        "startEnqMs": run.enqueue_start_ms,
        "endEnqMs": run.enqueue_end_ms,
        "startH2dMs": run.compute_start_ms - run.h2d_ms,
        "endH2dMs": run.compute_start_ms,
        "startComputeMs": run.compute_start_ms,
        "endComputeMs": run.compute_end_ms,
        "startD2hMs": run.compute_end_ms,
        "endD2hMs": run.compute_end_ms + run.d2h_ms,
        "h2dMs": run.h2d_ms,
        "computeMs": run.compute_ms,
        "d2hMs": run.d2h_ms,
        "latencyMs": run.h2d_ms + run.compute_ms + run.d2h_ms,
    }


def _layer(path: pathlib.Path, index: int, entry: dict[str, Any]) -> LayerTime:
    name = entry.get("name")
    if not isinstance(name, str):
        raise BackendError(f"Entry {index} of {path} names no layer: it is no --exportProfile file of trtexec.")
    return LayerTime(
        name=name,
        total_ms=_number(path, index, entry, "timeMs"),
        average_ms=_number(path, index, entry, "averageMs"),
        median_ms=_number(path, index, entry, "medianMs"),
        percent=_number(path, index, entry, "percentage"),
    )


def _write(path: pathlib.Path, entries: Sequence[dict[str, Any]]) -> None:
    lines = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in entries)
    try:
        path.write_text(f"[\n  {lines}\n]\n", "utf-8")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Check that its folder exists and may be written."
        ) from error
