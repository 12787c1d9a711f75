"""The command line in broken environments; each case is described where the tool is."""

import os
import pathlib
import re
from collections.abc import Callable

import pytest

from taylorseer.bundle import Bundle
from tools.environment_matrix import CASES, run_case

ROOT = pathlib.Path(__file__).parents[2]

SLOW = pytest.mark.skipif("TAYLORSEER_SLOW_TESTS" not in os.environ, reason="seconds; set TAYLORSEER_SLOW_TESTS=1")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[SLOW] * case.slow) for name, case in CASES.items()])
def test_it_ends_as_documented(bundles: Callable[..., Bundle], tmp_path: pathlib.Path, name: str) -> None:
    ending = run_case(CASES[name], bundles("dit-tiny").folder, tmp_path)
    assert ending.wrong(CASES[name]) == ""


def test_there_are_a_dozen_and_more() -> None:
    assert len(CASES) >= 12


def test_the_documented_table_is_that_of_the_cases() -> None:
    page = (ROOT / "docs/exit-codes.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| (\d)", page, flags=re.MULTILINE))
    assert {name: int(code) for name, code in rows.items() if name in CASES} == {
        name: case.code for name, case in CASES.items()
    }
