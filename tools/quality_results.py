"""Results that survive an interrupt: one JSON object a line, each under a digest of all that determines it.

A line is written when its cell is finished.  What a killed run left of a last line is dropped when the file is opened
again, so a result is whole or not there.
"""

import fcntl
import hashlib
import json
import pathlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO, Self

from taylorseer.errors import InputError, OutputError

__all__ = ["Record", "Results", "key_of", "read_records"]

Record = dict[str, Any]
"""``kind``, ``key``, and what was measured."""


def key_of(**what: object) -> str:
    """Return a digest of ``what`` determines a result: values that ``json.dumps`` accepts."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def read_records(path: pathlib.Path) -> list[Record]:
    """Return the records in ``path`` in their order, without a half-written last line; none if there is no file.

    Raises InputError for a line in between that is no record: then something else wrote into the file.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is half a line, or nothing
    return [_record(line, number, path) for number, line in enumerate(lines, 1)]


class Results:
    """The records of one file, which nobody else writes meanwhile.  A ``with`` block closes it."""

    def __init__(self, path: pathlib.Path, *, read_only: bool = False) -> None:
        """Open or create ``path``.

        Args:
            path: the file.
            read_only: take what is there, also while a study is writing to it.

        Raises:
            OutputError: another study is writing to it.
            InputError: it holds something else than records.
        """
        self._file = None if read_only else _locked(path)
        self._records = {record["key"]: record for record in read_records(path)}
        if self._file is not None:
            self._file.truncate(path.read_bytes().rfind(b"\n") + 1)  # half a line, if there is one

    def add(self, record: Record) -> None:
        """Write one record; of two with the same key the later one counts."""
        if self._file is None:
            raise ValueError("these results were opened to be read")
        self._records[record["key"]] = record
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __contains__(self, key: str) -> bool:
        """Whether there is a record of ``key``."""
        return key in self._records

    def of_kind(self, kind: str) -> Iterator[Record]:
        """Yield the records of one kind."""
        return (record for record in self._records.values() if record["kind"] == kind)

    def __enter__(self) -> Self:
        """Return the results themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _locked(path: pathlib.Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OutputError(f"Another study writes to {path}: wait for it, or give another --output.") from error
    return file


def _record(line: bytes, number: int, path: pathlib.Path) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"Line {number} of {path} is no JSON ({error}): remove that line, or give another --output."
        ) from error
    if not isinstance(record, dict) or not {"kind", "key"} <= record.keys():
        raise InputError(f"Line {number} of {path} is no result of a study: remove it, or give another --output.")
    return record
