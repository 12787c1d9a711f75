"""Runs commands in this process, and gives bundles to damage."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from taylorseer.bundle import MANIFEST_NAME, Bundle
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
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs ``taylorseer ARGUMENTS``; an exception that is no user's mistake goes through."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Outcome(code, *capsys.readouterr())

    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, handler)
        yield command


@pytest.fixture
def copied(bundles: Callable[..., Bundle], tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Copies a shared tiny bundle, for damaging it."""

    def copy(name: str) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(bundles(name).folder, tmp_path / name))

    return copy


@pytest.fixture
def digest_again() -> Callable[[pathlib.Path], None]:
    """Writes the true sizes and digests into a damaged bundle's manifest, as an honest builder would have."""

    def digest(folder: pathlib.Path) -> None:
        manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / MANIFEST_NAME).write_text(json.dumps(manifest), "utf-8")

    return digest
