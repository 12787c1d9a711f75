"""The short form: some kills and full disks, in a process that has loaded no ONNX Runtime before it forks."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import json
from tools.kill_builds import Builder, fill_disks, kill_builds
builder = Builder()
print(json.dumps({"kills": list(kill_builds(builder, 8)), "disks": list(fill_disks(builder, 5))}))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, list[tuple[str, list[str]]]]:
    pytest.importorskip("tensorrt_rtx")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results: dict[str, list[tuple[str, list[str]]]] = json.loads(done.stdout)
    return results


def test_a_killed_build_leaves_bundle_and_store_absent_or_whole_and_the_next_succeeds(
    seen: dict[str, list[tuple[str, list[str]]]],
) -> None:
    assert [wrong for _, wrong in seen["kills"] if wrong] == []
    assert len(seen["kills"]) == 8


def test_a_full_disk_is_said_and_leaves_nothing_and_the_next_build_succeeds(
    seen: dict[str, list[tuple[str, list[str]]]],
) -> None:
    assert [wrong for _, wrong in seen["disks"] if wrong] == []
    assert sum("refused" in state for state, _ in seen["disks"]) >= 4  # the disks were too small indeed


def test_the_check_would_notice(tmp_path: pathlib.Path) -> None:
    from tools.kill_builds import faults_of, leftovers

    (tmp_path / "bundle").mkdir()
    (tmp_path / ".bundle.partial-1").mkdir()
    (tmp_path / "store" / ("a" * 64)).mkdir(parents=True)
    state, wrong = faults_of(tmp_path)
    assert state == "whole" and len(wrong) == 2
    assert leftovers(tmp_path) == [".bundle.partial-1"]
