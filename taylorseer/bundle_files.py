"""The files of a bundle as names and as entries of a folder: what may be named, and what is never followed.

A name is refused wherever any system would read it in another way than this one does: a bundle that is copied to
another disk has to stay the bundle that it was.
"""

import os
import pathlib
import re
import stat
from collections.abc import Iterable

from taylorseer.errors import BundleError

__all__ = ["check_names", "find_regular", "read_regular"]

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
"""Part of a name.  No sign outside ASCII: such a name has several spellings, and file systems normalize them.  No
colon (drive letters, streams), no backslash, no control character, no space, and no hidden file."""

_MOST_PARTS = 8

_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin|conout|clock)", re.ASCII | re.IGNORECASE)
"""Devices of Windows, whatever follows the first dot."""


def check_names(names: Iterable[str]) -> None:
    """Refuse names that could lead out of the bundle, or that mean another file on another system.

    Raises:
        BundleError: a name is refused, stands for a file and a folder, or equals another, if only but for its case.
    """
    folded: dict[str, str] = {}
    for name in names:
        if reason := _refusal(name):
            raise BundleError(f"The manifest names the file {name!r:.120}, {reason}: do not use this bundle.")
        if name.lower() in folded:
            raise BundleError(
                f"{folded[name.lower()]!r:.120} and {name!r:.120} are one file where case makes no difference: do not "
                "use this bundle."
            )
        folded[name.lower()] = name
    for name in folded:
        for parent in list(pathlib.PurePosixPath(name).parents)[:-1]:
            if str(parent) in folded:
                raise BundleError(f"The manifest names {str(parent)!r:.120} as file and as folder: do not use it.")


def _refusal(name: str) -> str:
    """Say why ``name`` cannot be a bundle's file; '' where it can."""
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or name.startswith("~"):
        return "outside the bundle"
    if len(parts) > _MOST_PARTS:
        return f"below more than {_MOST_PARTS - 1} folders"
    for part in parts:
        if not _PART.fullmatch(part) or part.endswith("."):
            return "which is no plain name of A-Z, a-z, 0-9, '.', '_' and '-'"
        if _RESERVED.fullmatch(part.partition(".")[0]):
            return "which is a device on some systems"
    return ""


def find_regular(folder: pathlib.Path, name: str) -> os.stat_result:
    """Return what the system knows of the bundle's file ``name``, having followed no link below ``folder``.

    Raises:
        BundleError: there is no such file, or it or a folder on the way to it is a link or something else.
    """
    *above, _ = parts = name.split("/")
    try:
        for count in range(1, len(above) + 1):
            _require(stat.S_ISDIR, os.lstat(folder.joinpath(*parts[:count])), name, "a folder")
        status = os.lstat(folder / name)
        _require(stat.S_ISREG, status, name, "a file")
    except (OSError, ValueError) as error:
        raise BundleError(
            f"The bundle's file {name!r} is missing in {str(folder)!r}: {error}; build the bundle again."
        ) from error
    return status


def _require(is_kind: object, status: os.stat_result, name: str, kind: str) -> None:
    assert callable(is_kind)
    if stat.S_ISLNK(status.st_mode):
        raise OSError("a link is in its place, and links are not followed")
    if not is_kind(status.st_mode):
        raise OSError(f"what is in its place is not {kind}")


def read_regular(path: pathlib.Path, limit: int) -> bytes:
    """Return the content of a file of a few bytes, without waiting for a pipe and without reading a device.

    Raises:
        OSError: it cannot be read, or is a link or no file.
        OverflowError: it has more than ``limit`` bytes, whatever size the system gives for it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OverflowError(f"more than {limit} bytes")
    return content
