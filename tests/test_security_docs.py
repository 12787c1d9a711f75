"""Every command of docs/security.md and docs/exit-codes.md runs; long campaigns run in their short form."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

SHORTER = {"--faults 10000": "--faults 20", "--fuzz-minutes 10": "--fuzz-minutes 0.05", "--kills 200": "--kills 2"} | {
    "--full-disks 50": "--full-disks 1",
    "environment_matrix bundles/dit-tiny": "environment_matrix bundles/dit-tiny --only 'no GPU'",
}
"""What a test has no time for: what it runs instead."""


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), flags=re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", ["security.md", "exit-codes.md"])
def test_the_commands_run_in_their_order(tmp_path: pathlib.Path, page: str) -> None:
    pytest.importorskip("cryptography")
    pytest.importorskip("tensorrt_rtx")
    assert len(commands(page)) >= 2
    for command in commands(page):
        for long, short in SHORTER.items():
            command = command.replace(long, short)
        name, *arguments = shlex.split(command)
        program = [sys.executable] if name == "python" else [str(pathlib.Path(sys.executable).parent / name)]
        done = subprocess.run(
            [*program, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} said nothing"


def test_every_long_command_has_its_short_form() -> None:
    text = "\n".join(commands("security.md") + commands("exit-codes.md"))
    assert all(long in text for long in SHORTER)
