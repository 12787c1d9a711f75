"""Every command of the README runs, and every file that it links to exists."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")

DOCUMENTS = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]

INSTALLING = ("make", "git", "pip")
"""Commands that fetch things or run this very test suite: a fresh clone runs them, not a test."""


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(INSTALLING)]


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 6


def test_the_readme_commands_run_in_their_order(tmp_path: pathlib.Path) -> None:
    scripts = pathlib.Path(sys.executable).parent
    environment = os.environ | {"TAYLORSEER_STORE": str(tmp_path / "store")}
    for command in commands():
        name, *arguments = shlex.split(command)
        done = subprocess.run(
            [str(scripts / name), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{command} said nothing"


def test_what_is_shown_of_folding_is_what_the_commands_print(tmp_path: pathlib.Path) -> None:
    """Lines of ``console`` blocks in docs/folding.md: each stands in the output of the command above it."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs/folding.md").read_text("utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len([line for line in lines if line.startswith("$ ")]) >= 6
    printed: list[str] = []
    for line in lines:
        if line.startswith("$ "):
            name, *arguments = shlex.split(line[2:])
            command = [str(pathlib.Path(sys.executable).parent / name), *arguments]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            printed = done.stdout.splitlines()
        else:
            assert line in printed, f"not printed: {line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_figure_is_left_open(document: str) -> None:
    assert not re.findall(r"\b(?:[A-Z]+_ROW|TODO|TBD|XXX)\b", (ROOT / document).read_text("utf-8"))
