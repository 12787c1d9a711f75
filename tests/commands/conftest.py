"""Runs commands in this process, and gives bundles to damage."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from taylorseer.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON on standard output, which holds nothing else."""
        return json.loads(self.out)

    def refused(self, *parts: str) -> bool:
        """Whether it ended with exit code 1, one message with all ``parts``, and no traceback."""
        message = self.err.rpartition("error: ")[2]
        fits = self.code == 1 and "Traceback" not in self.err and all(part in message for part in parts)
        assert fits, self
        return fits


Run = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> None:
    """Models this small gain nothing from threads, which the processes of a test run would fight over."""
    torch.set_num_threads(1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``taylorseer ARGUMENTS``; an exception that is no user's mistake goes through."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Outcome(code, *capsys.readouterr())

    return command
