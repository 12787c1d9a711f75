"""A build that is stopped, by a signal or by a full disk, in a process of its own: nothing half-written stays."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.bundle import open_bundle

Run = Callable[..., Any]

PATIENCE = 120.0
"""Seconds until a build must have begun to write, on however busy a machine."""


def start(target: pathlib.Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "taylorseer", "build", "--model", "dit-tiny", "--random-weights"]
    return subprocess.Popen(
        [*command, "--output", str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for_draft(process: subprocess.Popen[str], target: pathlib.Path) -> pathlib.Path:
    """Return the hidden folder that the build writes to, once it is there."""
    draft = target.with_name(f".{target.name}.partial-{process.pid}")
    deadline = time.monotonic() + PATIENCE
    while not draft.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return draft


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_cleans_up(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    target = tmp_path / "x"
    process = start(target)
    wait_for_draft(process, target)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert err.endswith("error: Interrupted; nothing was written. Run the same command to start again.\n")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_build_after_a_killed_one_succeeds_and_cleans_up(run: Run, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "x"
    process = start(target)
    draft = wait_for_draft(process, target)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert draft.exists() and not target.exists()
    assert run("inspect", target).refused("There is no bundle in")
    assert run("build", "--model", "dit-tiny", "--random-weights", "--output", target).code == 0
    assert list(tmp_path.iterdir()) == [target]
    open_bundle(target)


def test_a_full_disk(tmp_path: pathlib.Path) -> None:
    """No file may grow beyond 100 kB here, and the weights are 356 kB: writing them fails as on a full disk."""
    target = tmp_path / "x"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(target, preexec_fn=limit, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert err.rpartition("error: ")[2].startswith("The disk is full") and "nothing was kept" in err
    assert "Free some space, or give an --output on another disk" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
