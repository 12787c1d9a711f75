"""How long an engine and its layers took, however they were timed: by trtexec or by our own timers."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import BackendError

__all__ = ["EngineRun", "EngineTimes", "LayerTime", "TimesSummary", "layer_times"]

Durations = Sequence[float] | NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRun:
    """One run of an engine; all values in ms, starts and ends on one clock."""

    compute_start_ms: float
    compute_end_ms: float
    compute_ms: float
    """The engine's time on the device.  Not (end - start): trtexec prints six digits, too few late on the clock."""
    enqueue_start_ms: float
    enqueue_end_ms: float
    """When the host started and was done enqueueing."""
    h2d_ms: float = 0.0
    d2h_ms: float = 0.0
    """Transfers between host and device, 0 where inputs and outputs stay on the device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimesSummary:
    """Quantiles over the runs of one engine."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineTimes:
    """The runs of one engine after warm-up, at least one, in order."""

    runs: tuple[EngineRun, ...]

    @classmethod
    def from_durations(cls, compute_ms: Durations, enqueue_ms: Durations | None = None) -> "EngineTimes":
        """Return the times of runs whose durations alone are known, as CUDA events give them, laid end to end.

        Args:
            compute_ms: the engine's time on the device, per run.
            enqueue_ms: the host's time to enqueue it, per run; None: not measured, written as 0.
        """
        computes = [float(value) for value in compute_ms]
        hosts = [0.0] * len(computes) if enqueue_ms is None else [float(value) for value in enqueue_ms]
        starts = list(accumulate(computes, initial=0.0))[:-1]
        return cls(
            runs=tuple(
                EngineRun(
                    compute_start_ms=start,
                    compute_end_ms=start + compute,
                    compute_ms=compute,
                    enqueue_start_ms=start,
                    enqueue_end_ms=start + host,
                )
                for start, compute, host in zip(starts, computes, hosts, strict=True)
            )
        )

    @property
    def compute_ms(self) -> NDArray[np.float64]:
        """[runs] the engine's time on the device."""
        return np.array([run.compute_ms for run in self.runs])

    def summary(self) -> TimesSummary:
        """Return median, 10th and 90th percentile of the time on the device."""
        p10, median, p90 = np.percentile(self.compute_ms, [10, 50, 90])
        return TimesSummary(median_ms=float(median), p10_ms=float(p10), p90_ms=float(p90), runs=len(self.runs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTime:
    """The time of one layer of an engine over all profiled runs."""

    name: str
    total_ms: float
    average_ms: float
    median_ms: float
    percent: float
    """Share of the sum over all layers."""


def layer_times(reports: Iterable[tuple[str, float]], runs: int) -> tuple[LayerTime, ...]:
    """Return the layers' times from what TensorRT's ``IProfiler.report_layer_time`` was told over ``runs`` runs.

    Args:
        reports: (layer's name, ms) in the order of the calls.  Layers that share a name count as one.
        runs: profiled runs.

    Raises:
        BackendError: a layer was not reported equally often in every run.
    """
    reported: dict[str, list[float]] = defaultdict(list)
    for name, milliseconds in reports:
        reported[name].append(milliseconds)
    for name, values in reported.items():
        if runs < 1 or len(values) % runs:
            raise BackendError(
                f"The profiler reported layer {name!r} {len(values)} times in {runs} runs: run it again."
            )
    total = sum(map(sum, reported.values()))
    return tuple(
        LayerTime(
            name=name,
            total_ms=sum(values),
            average_ms=sum(values) / runs,
            median_ms=float(np.median(np.reshape(values, (runs, -1)).sum(axis=1))),
            percent=100 * sum(values) / total if total else 0.0,
        )
        for name, values in reported.items()
    )
