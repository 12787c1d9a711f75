"""What the benchmark measures: the memory of a stage with all it starts, its time, its failure."""

import os
import resource
import subprocess
import sys

import pytest

from tools.benchmark_dit_xl import measure, resident_bytes

MIB = 2**20

HOLD = "held = bytearray(b'x' * {size}); import time; time.sleep(0.5)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_memory_is_that_of_a_child_and_its_children_together() -> None:
    child = HOLD.format(size=100 * MIB)
    run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    both = f"held = bytearray(b'x' * {80 * MIB}); {run}"
    cost = measure(python(both))
    # The kernel counts what this process had when it forked, too.
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 180 * MIB < cost.memory < max(400 * MIB, ours + 1 * MIB)
    assert cost.seconds > 0.5


def test_a_stage_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match=r"ended with exit code 7"):
        measure(python("raise SystemExit(7)"))


def test_a_process_that_is_gone_has_no_memory() -> None:
    gone = subprocess.Popen(python("pass"))
    gone.wait()
    assert resident_bytes(gone.pid) == 0 < resident_bytes(os.getpid())
