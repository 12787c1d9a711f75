"""TensorRT plans on disk under the fingerprint of their recipe: built once, and checked before every use.

::

    <fingerprint>/recipe.json, plan    an entry; both files appear, and disappear, in one rename of their folder
    .<fingerprint>.partial/            an entry on its way in or out; of a killed process, the next build removes it
    .<fingerprint>.lock                held while the entry is built, replaced or removed; stays, empty

So an entry is absent or complete whenever a process is killed.  What happens to a complete one later, its digest tells.
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import filelock

from taylorseer.engines.durable_files import BLOCK, remove, sync_folder, write_durably, writing
from taylorseer.engines.fingerprint import PlanRecipe, document_fingerprint, recipe_document
from taylorseer.engines.store_entry import PLAN_FILE, RECIPE_FILE, StoreEntry, read_entry
from taylorseer.engines.stored_plan import StoredPlan
from taylorseer.errors import BackendError, StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["EngineStore", "default_store"]

_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)


def default_store() -> pathlib.Path:
    """Return ``$TAYLORSEER_STORE``, else ``taylorseer/engines`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        StoreError: no variable is set and the user has no home folder.
    """
    try:
        if given := os.environ.get("TAYLORSEER_STORE"):
            return pathlib.Path(given).expanduser()
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (cache if cache.is_absolute() else pathlib.Path.home() / ".cache") / "taylorseer" / "engines"
    except RuntimeError as error:
        raise StoreError("There is no home folder to keep engines in: set TAYLORSEER_STORE to a folder.") from error


class EngineStore:
    """A folder of plans that any number of processes may use at once."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Name the store's ``folder`` (default: :func:`default_store`); it is made when the first plan is built."""
        self.folder = pathlib.Path(os.path.abspath(default_store() if folder is None else folder))

    def get_or_build(
        self,
        recipe: PlanRecipe,
        build: Callable[[], "Buffer"],
        *,
        report: Callable[[str], None] = lambda message: None,
    ) -> StoredPlan:
        """Return the recipe's plan; call ``build`` only if no process has built it yet.

        Args:
            recipe: what the plan depends on.
            build: gives the plan's content, such as bytes or TensorRT's IHostMemory; its exceptions pass through.
            report: told when another process's build is awaited, and when a damaged plan is replaced.

        Raises:
            OutputError: the store cannot be made or written, or the disk is full; nothing half-written stays.
            BackendError: ``build`` gave an empty plan.
        """
        document = recipe_document(recipe)
        key = document_fingerprint(document)
        entry = self._use(key)
        if entry is not None and not entry.damage:
            return self._stored(entry)
        with self._locked(key, report):
            entry = self._use(key)
            if entry is not None and not entry.damage:
                return self._stored(entry)
            if entry is not None:
                report(f"The stored plan {key[:12]} is damaged ({entry.damage}): it is removed and built again.")
            with writing(self.folder):
                if entry is not None:
                    self._take_away(key)
                self._sweep(besides=key)
                remove(self._partial(key))
                self._partial(key).mkdir()  # before the long work: a folder that cannot be written is refused now
            try:
                return self._add(key, document, build())
            finally:
                with contextlib.suppress(OSError):
                    remove(self._partial(key))

    def load(self, fingerprint: str) -> StoredPlan:
        """Return the plan that was built under ``fingerprint``.

        Raises:
            StoreError: it is not there, or is damaged.
        """
        if not _NAME.fullmatch(fingerprint):
            raise StoreError(
                f"{fingerprint!r} is no fingerprint: those are 64 digits 0-9a-f, see `taylorseer store list`."
            )
        entry = self._use(fingerprint)
        if entry is None:
            raise StoreError(f"There is no plan {fingerprint} in {str(self.folder)!r}: build the engines again.")
        if entry.damage:
            raise StoreError(
                f"The plan {fingerprint} in {str(self.folder)!r} is damaged ({entry.damage}) and is not loaded: "
                "build the engines again, or remove it with `taylorseer store prune`."
            )
        return self._stored(entry)

    def entries(self) -> tuple[StoreEntry, ...]:
        """Return every entry, by fingerprint; plans are not read, so that only damage to records and sizes shows.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._read_all(check_digests=False)

    def verify(self) -> tuple[StoreEntry, ...]:
        """Return every entry as :meth:`entries` does, with the digest of each plan checked.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._read_all(check_digests=True)

    def prune(self, *, max_bytes: int | None = None, unused_days: float | None = None) -> tuple[StoreEntry, ...]:
        """Remove damaged entries, those unused for so long, and the least recently used beyond so many bytes.

        An entry that another process is building or has used meanwhile stays.

        Returns:
            What was removed.

        Raises:
            StoreError: the store cannot be read.
            OutputError: it cannot be written.
        """
        entries = sorted(self.verify(), key=lambda entry: (not entry.damage, entry.used))
        total, removed = sum(entry.bytes for entry in entries), []
        oldest = None if unused_days is None else time.time() - unused_days * 86400
        for entry in entries:
            unused = oldest is not None and entry.used < oldest
            beyond = max_bytes is not None and total > max_bytes
            if (entry.damage or unused or beyond) and self._remove_unless_in_use(entry):
                removed.append(entry)
                total -= entry.bytes
        with writing(self.folder):
            self._sweep()
        return tuple(removed)

    def _add(self, key: str, document: Mapping[str, Any], plan: "Buffer") -> StoredPlan:
        """Write both files where nobody looks for them, and move them to their place together."""
        content = memoryview(plan).cast("B")
        if not content:
            raise BackendError("The builder gave an empty plan: its own messages say why.")
        partial = self._partial(key)
        with writing(self.folder, lost=f"; the plan of {len(content)} bytes was built and is lost"):
            blocks = (content[at : at + BLOCK] for at in range(0, len(content), BLOCK))
            sha256 = write_durably(partial / PLAN_FILE, blocks)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record = {**document, "sha256": sha256, "bytes": len(content), "created": created}
            write_durably(partial / RECIPE_FILE, [json.dumps(record, indent=1).encode("ascii")])
            sync_folder(partial)
            os.rename(partial, self.folder / key)
            sync_folder(self.folder)
        path = self.folder / key / PLAN_FILE
        return StoredPlan(path=path, fingerprint=key, sha256=sha256, bytes=len(content), built=True)

    def _stored(self, entry: StoreEntry) -> StoredPlan:
        path = self.folder / entry.fingerprint / PLAN_FILE
        return StoredPlan(path=path, fingerprint=entry.fingerprint, sha256=entry.sha256, bytes=entry.bytes, built=False)

    def _use(self, key: str) -> StoreEntry | None:
        """Touch the entry first, so that a prune spares it, and check it."""
        with contextlib.suppress(OSError):  # absent, or a store that this user may only read
            os.utime(self.folder / key / RECIPE_FILE, follow_symlinks=False)
        return read_entry(self.folder / key, check_digest=True)

    def _read_all(self, *, check_digests: bool) -> tuple[StoreEntry, ...]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"The store {str(self.folder)!r} cannot be read: {error}. Give another folder.") from error
        paths = [self.folder / name for name in names if _NAME.fullmatch(name)]
        found = (read_entry(path, check_digest=check_digests) for path in paths)
        return tuple(entry for entry in found if entry is not None)

    def _lock(self, key: str) -> filelock.BaseFileLock:
        """Return the key's lock: the kernel's, which a killed process gives back.  Where there is none, OSError."""
        return filelock.FileLock(self.folder / f".{key}.lock", fallback_to_soft=False)

    @contextlib.contextmanager
    def _locked(self, key: str, report: Callable[[str], None]) -> Iterator[None]:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._lock(key)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(blocking=False)
        if not lock.is_locked:
            report(f"Another process is building the plan {key[:12]}: waiting for it.")
            with writing(self.folder):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _partial(self, key: str) -> pathlib.Path:
        return self.folder / f".{key}.partial"

    def _sweep(self, besides: str = "") -> None:
        """Remove what killed processes left: a partial entry whose lock nobody holds, ``besides`` this process."""
        for partial in self.folder.glob(".*.partial"):
            key = partial.name[1 : -len(".partial")]
            if _NAME.fullmatch(key) and key != besides:
                with contextlib.suppress(filelock.Timeout), self._lock(key).acquire(blocking=False):
                    remove(partial)

    def _take_away(self, key: str) -> None:
        """Remove an entry whose lock is held: at once for whoever looks, then file by file."""
        remove(self._partial(key))
        os.rename(self.folder / key, self._partial(key))
        remove(self._partial(key))

    def _remove_unless_in_use(self, entry: StoreEntry) -> bool:
        try:
            with writing(self.folder), self._lock(entry.fingerprint).acquire(blocking=False):
                current = read_entry(self.folder / entry.fingerprint, check_digest=False)
                if current is None or current.used != entry.used:
                    return False
                self._take_away(entry.fingerprint)
                return True
        except filelock.Timeout:
            return False
