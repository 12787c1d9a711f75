"""A plan that the store has handed out: read again with its digest checked, or put into a bundle whole."""

import contextlib
import dataclasses
import errno
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from taylorseer.engines.durable_files import BLOCK, sync_folder, write_durably, writing
from taylorseer.errors import StoreError

__all__ = ["StoredPlan"]

_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Why a hard link is refused where a copy may be allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredPlan:
    """A plan whose digest was right when it was handed out."""

    path: pathlib.Path
    """In the store; a prune may remove it."""
    fingerprint: str
    """Of its recipe."""
    sha256: str
    """Of its content."""
    bytes: int
    """Of its content."""
    built: bool
    """Whether this call built it."""

    def read(self) -> bytearray:
        """Return the plan's content; what is returned has the digest ``sha256``.

        Raises:
            StoreError: the plan was removed or damaged since.
        """
        with self._reading():
            content = bytearray(self.path.read_bytes())
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise self._damaged()
        return content

    def export(self, target: pathlib.Path) -> None:
        """Hard-link the plan to ``target``, or copy it where the file systems differ; afterwards it is whole or absent.

        Raises:
            StoreError: the plan was removed since, or is damaged.
            OutputError: ``target`` exists, cannot be written, or the disk is full.
        """
        with self._reading(), open(self.path, "rb") as plan, writing(target):
            try:
                os.link(self.path, target)
            except OSError as error:
                if error.errno not in _NO_LINK and self.path.exists():
                    raise
                self._copy(plan, target)  # the open plan can be read even if it was removed just now
            sync_folder(target.parent)

    def _copy(self, plan: BinaryIO, target: pathlib.Path) -> None:
        partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        try:
            if write_durably(partial, iter(lambda: plan.read(BLOCK), b"")) != self.sha256:
                raise self._damaged()
            os.rename(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"The plan {str(self.path)!r} cannot be read any more: {error}. "
                "The store was pruned or moved meanwhile; run the same command to build the plan again."
            ) from error

    def _damaged(self) -> StoreError:
        return StoreError(
            f"The plan {str(self.path)!r} was damaged since it was checked; run the same command to build it again."
        )
