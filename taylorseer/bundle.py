"""A bundle on disk: opened and checked, or written so that it is either absent or whole.

A bundle is a folder with ``manifest.json``, ONNX graphs, the weights beside them and, per backend, plans.
"""

import contextlib
import dataclasses
import errno
import fcntl
import glob
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from taylorseer.digest import file_digest
from taylorseer.errors import BundleError, OutputError
from taylorseer.manifest import FileSpec, Manifest
from taylorseer.manifest_json import manifest_from_json, manifest_to_json

__all__ = ["MANIFEST_NAME", "Bundle", "BundleDraft", "check_target", "draft_bundle", "open_bundle", "require_space"]

MANIFEST_NAME = "manifest.json"

_MANIFEST_LIMIT = 64 * 2**20
"""No honest manifest comes near this; a larger file is not read into memory."""

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A checked bundle: every file is there, with the size and the digest that the manifest names."""

    folder: pathlib.Path
    manifest: Manifest

    def path(self, name: str) -> pathlib.Path:
        """Return the path of the bundle's file ``name``."""
        return self.folder / name


def open_bundle(folder: str | os.PathLike[str], *, check_digests: bool = True) -> Bundle:
    """Open the bundle in ``folder``.

    Args:
        folder: the bundle.
        check_digests: hash every file.  Without it only existence and size are checked; nothing that loads an
            engine may ask for that.

    Raises:
        BundleError: there is no bundle, a file is missing, truncated or altered, or the manifest is malformed.
        VersionError: the manifest is of a newer format.
    """
    folder = pathlib.Path(folder)
    manifest = manifest_from_json(_read_manifest(folder))
    for name, spec in manifest.files.items():
        _check_file(folder, name, spec, check_digests=check_digests)
    used = {f"{kind} graph": graph.file for kind, graph in manifest.graphs.items()}
    used |= {f"{plan.kind} plan for {plan.compute_capability}": plan.file for plan in manifest.engine.plans}
    for what, name in used.items():
        if name not in manifest.files:
            raise BundleError(f"The {what} {name!r} is not among the bundle's files; build it again.")
    return Bundle(folder, manifest)


def _read_manifest(folder: pathlib.Path) -> str:
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > _MANIFEST_LIMIT:
            raise BundleError(f"{path} is larger than {_MANIFEST_LIMIT} bytes: it is no manifest.")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"There is no bundle in {str(folder)!r} (no {MANIFEST_NAME}): build one with "
            f"`build-engines --model NAME --output {folder}`."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error


def _check_file(folder: pathlib.Path, name: str, spec: FileSpec, *, check_digests: bool) -> None:
    pure = pathlib.PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
        raise BundleError(f"The manifest names the file {name!r}, outside the bundle: do not use this bundle.")
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"The bundle's file {name!r} is missing in {str(folder)!r}: build the bundle again.")
    size = path.stat().st_size
    if size != spec.bytes:
        raise BundleError(
            f"{name!r} has {size} bytes, the manifest says {spec.bytes}: it was truncated or replaced. "
            "Copy it again, or build the bundle again."
        )
    if check_digests and _sha256(path, read_again=True) != spec.sha256:
        raise BundleError(
            f"{name!r} does not match its digest: its content was altered. Copy it again, or build the bundle again."
        )


def _sha256(path: pathlib.Path, *, read_again: bool) -> str:
    try:
        return file_digest(path, read_again=read_again)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from error


class BundleDraft:
    """A bundle that is being written, in a hidden folder beside its final place."""

    def __init__(self, folder: pathlib.Path, target: pathlib.Path, *, overwrite: bool) -> None:
        self.folder = folder
        self._target = target
        self._overwrite = overwrite

    def path(self, name: str) -> pathlib.Path:
        """Return where the file ``name`` is to be written; its parent folder exists afterwards."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, manifest: Manifest) -> Bundle:
        """Hash every file, write the manifest last and move the folder to its place in one rename.

        Raises:
            OutputError: something was put at the target since the draft was begun.
        """
        files = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(self.folder).as_posix()
                sha256 = _sha256(path, read_again=False)
                files[name] = FileSpec(bytes=path.stat().st_size, sha256=sha256)
                _sync(path)
        manifest = dataclasses.replace(manifest, files=files)
        (self.folder / MANIFEST_NAME).write_text(manifest_to_json(manifest), encoding="utf-8")
        _sync(self.folder / MANIFEST_NAME)
        _sync(self.folder)
        check_target(self._target, overwrite=self._overwrite)
        _replace_folder(self.folder, self._target)
        return Bundle(self._target, manifest)


def check_target(target: str | os.PathLike[str], *, overwrite: bool = False) -> pathlib.Path:
    """Return ``target`` as an absolute path where a bundle may be put.

    Raises:
        OutputError: ``target`` exists and ``overwrite`` was not asked, or it is no bundle.
    """
    path = pathlib.Path(os.path.abspath(target))
    if path.exists() and not overwrite:
        raise OutputError(f"The output folder {str(path)!r} exists: give another --output, or --overwrite.")
    if path.exists() and not _is_bundle(path):
        raise OutputError(f"{str(path)!r} exists and is no bundle, so it is not overwritten: give another --output.")
    return path


@contextlib.contextmanager
def draft_bundle(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BundleDraft]:
    """Yield a draft for the bundle ``target``; without a commit nothing remains of it.

    Raises:
        OutputError: ``target`` exists (and ``overwrite`` was not asked), cannot be written, or the disk is full.
    """
    _recover_replaced(pathlib.Path(os.path.abspath(target)))
    target = check_target(target, overwrite=overwrite)
    folder = target.parent / f".{target.name}.partial-{os.getpid()}"
    lock = None
    try:
        _remove_abandoned(target)
        folder.mkdir(parents=True)
        lock = _lock(folder)
        yield BundleDraft(folder, target, overwrite=overwrite)
    except OSError as error:
        if error.errno not in _FULL_DISK and not _concerns(error, target.parent):
            raise
        raise _output_error(error, target) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def require_space(folder: str | os.PathLike[str], size: int) -> None:
    """Refuse before the first byte when fewer than ``size`` bytes are free where ``folder`` lies.

    Raises:
        OutputError: too little space.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(
            f"The disk is full: {size / 1e9:.2f} GB are needed in {str(folder)!r} and {free / 1e9:.2f} GB are free. "
            "Free some space, or give an --output on another disk."
        )


def _output_error(error: OSError, target: pathlib.Path) -> OutputError:
    if error.errno in _FULL_DISK:
        return OutputError(
            f"The disk is full ({error.strerror}); nothing was kept of {str(target)!r}. "
            "Free some space, or give an --output on another disk."
        )
    return OutputError(f"{str(target)!r} cannot be written: {error}. Give another --output.")


def _concerns(error: OSError, folder: pathlib.Path) -> bool:
    """Whether ``error`` is about a file in ``folder``, or about one that it does not name."""
    return not isinstance(error.filename, str) or pathlib.Path(error.filename).is_relative_to(folder)


def _recover_replaced(target: pathlib.Path) -> None:
    """Put back a bundle whose replacement was killed between taking the old one away and moving the new one in."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.partial-*.old"):
        if not target.exists() and _is_bundle(path):
            os.rename(path, target)


def _remove_abandoned(target: pathlib.Path) -> None:
    """Delete drafts of ``target`` that no process holds any more (killed builds)."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(folder: pathlib.Path) -> int | None:
    """Hold ``folder`` until the descriptor is closed or the process ends; None when another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_bundle(folder: pathlib.Path) -> bool:
    """Whether ``folder`` holds a bundle, of whatever format; other programs' folders have a manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and "format_version" in manifest


def _replace_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    retired = source.with_name(source.name + ".old")
    if target.exists():
        os.rename(target, retired)
    try:
        os.rename(source, target)
    except BaseException:  # an interruption too
        if retired.exists() and not target.exists():
            os.rename(retired, target)
        raise
    shutil.rmtree(retired, ignore_errors=True)
    _sync(target.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
