"""TensorRT plans on disk under the fingerprint of their recipe: built once, and checked before every use.

::

    <fingerprint>/recipe.json, plan    an entry; both files appear, and disappear, in one rename of their folder
    .<fingerprint>.partial/            an entry on its way in or out; of a killed process, the next build removes it
    .<fingerprint>.lock                held while the entry is built, replaced or removed; stays, empty

So an entry is absent or complete whenever a process is killed.  What happens to a complete one later, its digest tells.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import filelock

from taylorseer.engines.fingerprint import PlanRecipe, document_fingerprint, recipe_document
from taylorseer.errors import BackendError, OutputError, StoreError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["EngineStore", "StoreEntry", "StoredPlan", "default_store"]

_PLAN, _RECIPE = "plan", "recipe.json"
_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)
_RECIPE_LIMIT = 2**20
_BLOCK = 16 * 2**20
_READ_ONLY = 0o444
"""A plan may be hard-linked into bundles; nobody shall change it there by writing to it here."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


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
        with self._reading(), open(self.path, "rb") as plan, _writing(target):
            try:
                os.link(self.path, target)
            except OSError as error:
                if error.errno not in _NO_LINK and self.path.exists():
                    raise
                self._copy(plan, target)  # the open plan can be read even if it was removed just now
            _sync(target.parent)

    def _copy(self, plan: BinaryIO, target: pathlib.Path) -> None:
        partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        try:
            if _write(partial, iter(lambda: plan.read(_BLOCK), b"")) != self.sha256:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreEntry:
    """What the store knows about one plan, whether it is sound or not."""

    fingerprint: str
    """Of its recipe, and the name of its folder."""
    bytes: int
    """Of the plan as it is on disk."""
    sha256: str
    """As recorded when the plan was built."""
    created: str
    """UTC, ISO 8601."""
    used: float
    """Seconds since the epoch."""
    recipe: Mapping[str, Any]
    """Fields of :class:`PlanRecipe` as JSON, of whichever version built the plan; {} if the record is damaged."""
    damage: str
    """What is wrong with the entry; '' if nothing is."""


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
            with _writing(self.folder):
                if entry is not None:
                    self._take_away(key)
                self._sweep(besides=key)
                _remove(self._partial(key))
                self._partial(key).mkdir()  # before the long work: a folder that cannot be written is refused now
            try:
                return self._add(key, document, build())
            finally:
                with contextlib.suppress(OSError):
                    _remove(self._partial(key))

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
        return self._inspect_all(check_digests=False)

    def verify(self) -> tuple[StoreEntry, ...]:
        """Return every entry as :meth:`entries` does, with the digest of each plan checked.

        Raises:
            StoreError: the store cannot be read.
        """
        return self._inspect_all(check_digests=True)

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
        with _writing(self.folder):
            self._sweep()
        return tuple(removed)

    def _add(self, key: str, document: Mapping[str, Any], plan: "Buffer") -> StoredPlan:
        """Write both files where nobody looks for them, and move them to their place together."""
        content = memoryview(plan).cast("B")
        if not content:
            raise BackendError("The builder gave an empty plan: its own messages say why.")
        partial = self._partial(key)
        with _writing(self.folder, lost=f"; the plan of {len(content)} bytes was built and is lost"):
            sha256 = _write(partial / _PLAN, (content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)))
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record = {**document, "sha256": sha256, "bytes": len(content), "created": created}
            _write(partial / _RECIPE, [json.dumps(record, indent=1).encode("ascii")])
            _sync(partial)
            os.rename(partial, self.folder / key)
            _sync(self.folder)
        path = self.folder / key / _PLAN
        return StoredPlan(path=path, fingerprint=key, sha256=sha256, bytes=len(content), built=True)

    def _stored(self, entry: StoreEntry) -> StoredPlan:
        path = self.folder / entry.fingerprint / _PLAN
        return StoredPlan(path=path, fingerprint=entry.fingerprint, sha256=entry.sha256, bytes=entry.bytes, built=False)

    def _use(self, key: str) -> StoreEntry | None:
        """Touch the entry first, so that a prune spares it, and check it."""
        with contextlib.suppress(OSError):  # absent, or a store that this user may only read
            os.utime(self.folder / key / _RECIPE, follow_symlinks=False)
        return self._inspect(key, check_digest=True)

    def _inspect_all(self, *, check_digests: bool) -> tuple[StoreEntry, ...]:
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"The store {str(self.folder)!r} cannot be read: {error}. Give another folder.") from error
        found = [self._inspect(name, check_digest=check_digests) for name in names if _NAME.fullmatch(name)]
        return tuple(entry for entry in found if entry is not None)

    def _inspect(self, name: str, *, check_digest: bool) -> StoreEntry | None:
        """Check one entry, in the folder that was opened: another process may put a new one in its place meanwhile."""
        path = self.folder / name
        while True:
            try:
                folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            except OSError as error:
                return _entry(name, {}, 0, 0.0, f"it is no folder that can be read: {error.strerror}")
            try:
                entry = _read_entry(folder, name, check_digest=check_digest)
                if not entry.damage or _is_at(folder, path):
                    return entry
            finally:
                os.close(folder)

    def _lock(self, key: str) -> filelock.BaseFileLock:
        """Return the key's lock: the kernel's, which a killed process gives back.  Where there is none, OSError."""
        return filelock.FileLock(self.folder / f".{key}.lock", fallback_to_soft=False)

    @contextlib.contextmanager
    def _locked(self, key: str, report: Callable[[str], None]) -> Iterator[None]:
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._lock(key)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(blocking=False)
        if not lock.is_locked:
            report(f"Another process is building the plan {key[:12]}: waiting for it.")
            with _writing(self.folder):
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
                    _remove(partial)

    def _take_away(self, key: str) -> None:
        """Remove an entry whose lock is held: at once for whoever looks, then file by file."""
        _remove(self._partial(key))
        os.rename(self.folder / key, self._partial(key))
        _remove(self._partial(key))

    def _remove_unless_in_use(self, entry: StoreEntry) -> bool:
        try:
            with _writing(self.folder), self._lock(entry.fingerprint).acquire(blocking=False):
                current = self._inspect(entry.fingerprint, check_digest=False)
                if current is None or current.used != entry.used:
                    return False
                self._take_away(entry.fingerprint)
                return True
        except filelock.Timeout:
            return False


def _read_entry(folder: int, name: str, *, check_digest: bool) -> StoreEntry:
    """Check the entry whose folder is open as the descriptor ``folder``."""
    record: Mapping[str, Any] = {}
    size, used, damage = 0, os.fstat(folder).st_mtime, ""
    with contextlib.suppress(OSError):
        size = os.stat(_PLAN, dir_fd=folder, follow_symlinks=False).st_size
    try:
        with _open_in(folder, _RECIPE) as file:
            used, record = os.fstat(file.fileno()).st_mtime, _parse(file.read(_RECIPE_LIMIT), name)
        with _open_in(folder, _PLAN) as file:
            if not record:
                damage = f"its {_RECIPE} is malformed or of another plan"
            elif size != record["bytes"]:
                damage = f"it has {size} bytes instead of {record['bytes']}"
            elif check_digest and hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                damage = "its content does not match its digest"
    except OSError as error:
        damage = f"its {error.filename or 'content'} cannot be read: {error.strerror}"
    return _entry(name, record, size, used, damage)


def _parse(content: bytes, name: str) -> Mapping[str, Any]:
    """Return the content of a recipe.json; {} if it is malformed or not of the plan ``name``."""
    try:
        record: dict[str, Any] = json.loads(content)
        document = {field: record[field] for field in ("format", "recipe")}
        types = {"recipe": dict, "bytes": int, "sha256": str, "created": str}
        sound = document_fingerprint(document) == name and all(type(record[k]) is kind for k, kind in types.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if sound else {}


def _entry(name: str, record: Mapping[str, Any], size: int, used: float, damage: str) -> StoreEntry:
    return StoreEntry(
        fingerprint=name,
        bytes=size,
        sha256=record.get("sha256", ""),
        created=record.get("created", ""),
        used=used,
        recipe=record.get("recipe", {}),
        damage=damage,
    )


def _open_in(folder: int, name: str) -> io.BufferedReader:
    """Open a file of an entry for reading, and no link to a file elsewhere."""
    return open(name, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, dir_fd=folder))


def _is_at(folder: int, path: pathlib.Path) -> bool:
    """Whether the open ``folder`` is still what lies at ``path``."""
    try:
        return os.path.samestat(os.fstat(folder), os.lstat(path))
    except FileNotFoundError:
        return False


def _write(path: pathlib.Path, blocks: Iterable["Buffer"]) -> str:
    """Write a new file through to the disk; return its digest."""
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for block in blocks:
            file.write(block)
            digest.update(block)
        file.flush()
        os.fchmod(file.fileno(), _READ_ONLY)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _sync(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def _writing(path: pathlib.Path, lost: str = "") -> Iterator[None]:
    """Turn what the system refuses into an error for the user; ``lost`` says what is gone with it."""
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
