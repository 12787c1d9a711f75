"""New files that reach the disk before their name does, and the system's refusals in words for the user."""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import filelock

from taylorseer.errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["BLOCK", "remove", "sync_folder", "write_durably", "writing"]

BLOCK = 16 * 2**20
"""Bytes that one call writes: a build can be interrupted between two of them."""

_READ_ONLY = 0o444
"""A plan may be hard-linked into bundles; nobody shall change it there by writing to it here."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_durably(path: pathlib.Path, blocks: Iterable["Buffer"]) -> str:
    """Write a new file, for reading alone, through to the disk; return the SHA-256 digest of its content.

    The name itself is safe after :func:`sync_folder`.

    Raises:
        OSError: the file exists or cannot be written; of its content any part may be there.
    """
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for block in blocks:
            file.write(block)
            digest.update(block)
        file.flush()
        os.fchmod(file.fileno(), _READ_ONLY)
        os.fsync(file.fileno())
    return digest.hexdigest()


def sync_folder(folder: pathlib.Path) -> None:
    """Write the names in ``folder`` through to the disk.

    Raises:
        OSError: it cannot be opened or written.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: pathlib.Path) -> None:
    """Remove a folder with all that is in it, a file or a link, if it is there.

    Raises:
        OSError: it cannot be removed; a part of it may be gone.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def writing(path: pathlib.Path, lost: str = "") -> Iterator[None]:
    """Turn what the system refuses inside the block into an error for the user.

    Args:
        path: what is written; the message names it.
        lost: what is gone with a failure, appended to the message.

    Raises:
        OutputError: ``path`` cannot be written, or the disk is full.
        filelock.Timeout: as it was raised; it is an OSError, but one about another process.
    """
    try:
        yield
    except filelock.Timeout:
        raise
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise OutputError(
                f"The disk is full ({error.strerror}); nothing was kept of {str(path)!r}{lost}. "
                "Free some space, also with `taylorseer store prune`, or give a folder on another disk."
            ) from error
        raise OutputError(f"{str(path)!r} cannot be written: {error}{lost}. Give another folder.") from error
