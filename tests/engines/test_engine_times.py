"""Times of engines and layers: quantiles, runs laid end to end, and what a profiler reports."""

import numpy as np
import pytest

from taylorseer.engines.engine_times import EngineTimes, layer_times
from taylorseer.errors import BackendError


def test_the_quantiles_are_over_the_time_on_the_device() -> None:
    summary = EngineTimes.from_durations(range(1, 102), [50.0] * 101).summary()
    assert (summary.median_ms, summary.p10_ms, summary.p90_ms, summary.runs) == (51, 11, 91, 101)


def test_durations_are_laid_end_to_end() -> None:
    first, second = EngineTimes.from_durations(np.array([2, 3], np.float32), np.array([0.5, 0.25])).runs
    assert (first.compute_start_ms, first.compute_end_ms, first.enqueue_end_ms) == (0, 2, 0.5)
    assert (second.compute_start_ms, second.compute_end_ms, second.compute_ms) == (2, 5, 3)
    assert (second.enqueue_start_ms, second.enqueue_end_ms) == (2, 2.25)
    assert type(second.compute_ms) is float


def test_one_enqueue_time_for_each_run() -> None:
    with pytest.raises(ValueError, match="shorter"):
        EngineTimes.from_durations([1.0, 2.0], [0.5])


def test_layers_are_summed_over_the_runs_of_a_profiler() -> None:
    reports = [("gemm", 3.0), ("norm", 1.0), ("gemm", 5.0), ("norm", 1.0), ("gemm", 9.0), ("norm", 1.0)]
    gemm, norm = layer_times(reports, runs=3)
    assert (gemm.name, gemm.total_ms, gemm.median_ms, gemm.percent) == ("gemm", 17, 5, 85)
    assert gemm.average_ms == pytest.approx(17 / 3)
    assert (norm.name, norm.total_ms, norm.percent) == ("norm", 3, 15)


def test_layers_that_share_a_name_count_as_one() -> None:
    (copy,) = layer_times([("copy", 1.0), ("copy", 2.0), ("copy", 3.0), ("copy", 4.0)], runs=2)
    assert (copy.total_ms, copy.average_ms, copy.median_ms) == (10, 5, 5)


def test_layers_without_time_have_no_share() -> None:
    (wait,) = layer_times([("wait", 0.0)], runs=1)
    assert wait.percent == 0


def test_a_profiler_that_missed_a_run() -> None:
    with pytest.raises(BackendError, match="reported layer 'gemm' 3 times in 2 runs: run it again"):
        layer_times([("gemm", 1.0)] * 3, runs=2)
