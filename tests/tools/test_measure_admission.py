"""The memory of sessions on the CPU is what a pool counts for them; measured in a process of its own."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

from taylorseer.bundle import Bundle

ROOT = pathlib.Path(__file__).parents[2]


def test_sessions_take_what_is_counted_for_them(bundles: Callable[..., Bundle]) -> None:
    folder = str(bundles("flux-emoji", "folded").folder)
    command = [sys.executable, "-m", "tools.measure_admission", folder, "--sessions", "4", "--batch", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["counted_bytes"] > 50e6 and abs(found["difference"]) <= found["allowed"] == 0.05
