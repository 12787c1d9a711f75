"""Results on disk: a file appears complete or not at all, and replaces an older one."""

import errno
import os
import secrets
from pathlib import Path

from taylorseer.errors import OutputError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` beside ``path`` and rename, so that no reader and no crash ever sees a part of the file.

    Missing folders are created.

    Raises:
        OutputError: the file cannot be written; an older one is still whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, content)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Free some space" if full else "Check that the folder exists and may be written"
        reason = error.strerror or error
        raise OutputError(f"{path} cannot be written: {reason}. {advice}, or give another --output.") from error


def _write_beside(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
