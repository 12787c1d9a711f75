"""Which files an ONNX graph reads its weights from, told from its bytes alone: no ONNX library sees them before.

An ONNX file is a protobuf message; a tensor in it may say that its data lies in another file.  A loader opens whatever
name stands there.  This reads just enough of the message to find every such name, with bounds: field numbers are those
of ``onnx.proto``.
"""

import mmap
import pathlib
from collections.abc import Iterator

from taylorseer.errors import BundleError

__all__ = ["external_locations"]

_DEEPEST = 64
"""Messages in messages; protobuf's own readers stop at 100."""

_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message: the fields that hold messages with tensors in them.  Everything else is skipped by its length."""

_KEY, _VALUE = 1, 2
"""Fields of an entry of a tensor's ``external_data``."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_KNOWN = (b"location", b"offset", b"length", b"checksum")


class _MalformedError(Exception):
    """The bytes are no protobuf message."""


def external_locations(path: pathlib.Path) -> frozenset[str]:
    """Return every place outside the ONNX file ``path`` that its tensors say their data is in.

    Raises:
        BundleError: the file is no ONNX graph, or says something of external data that no exporter writes.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return frozenset(_locations(content, 0, len(content), "model", 0))
    except (_MalformedError, UnicodeDecodeError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path.name!r} is no ONNX graph ({error}): build the bundle again.") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error


def _locations(content: mmap.mmap, start: int, stop: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise _MalformedError(f"it is nested deeper than {_DEEPEST} messages")
    for number, first, last in _length_fields(content, start, stop):
        inner = _FIELDS[message].get(number)
        if inner == "entry":
            yield from _entry(content, first, last)
        elif inner is not None:
            yield from _locations(content, first, last, inner, depth + 1)


def _entry(content: mmap.mmap, start: int, stop: int) -> Iterator[str]:
    """Yield the place that an entry names.  A key or a value that stands twice would be read in two ways."""
    found = [(number, content[first:last]) for number, first, last in _length_fields(content, start, stop)]
    if sorted(number for number, _ in found) != [_KEY, _VALUE] or dict(found)[_KEY] not in _KNOWN:
        raise _MalformedError("an entry of external data is not one known key and one value")
    if dict(found)[_KEY] == b"location":
        yield dict(found)[_VALUE].decode("utf-8")


def _length_fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, start, stop) of the fields with a length; skip the others."""
    at = start
    while at < stop:
        tag, at = _varint(content, at, stop)
        number, kind = tag >> 3, tag & 7
        size = 0
        if kind == _VARINT:
            _, at = _varint(content, at, stop)
        elif kind == _LENGTH:
            size, at = _varint(content, at, stop)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise _MalformedError(f"a field of the unknown kind {kind}")
        if number == 0 or at + size > stop:
            raise _MalformedError("a field without a number, or one that is longer than what holds it")
        if kind == _LENGTH:
            yield number, at, at + size
        at += size


def _varint(content: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """Return the number that begins at ``at`` and where the next thing does."""
    value = shift = 0
    while at < stop and shift < 70:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise _MalformedError("it is cut off")
