"""Which TensorRT plans are loaded: those that were built here, that a key vouches for, or that the user says to trust.

A plan is machine code: a version-compatible one even brings a library that runs on the host.  A digest says that a
plan is the one its bundle names, and nothing about who made both.  So a build leaves a record of every plan on the
machine, an empty file named by the plan's digest, for this user; a plan from elsewhere has no such record.
"""

import os
import pathlib

from taylorseer.bundle import Bundle
from taylorseer.errors import UntrustedPlanError

__all__ = ["is_built_here", "record_plan", "records_folder", "require_trusted_plan"]


def records_folder() -> pathlib.Path | None:
    """Return ``taylorseer/plans`` in ``$XDG_STATE_HOME`` or ``~/.local/state``; None where the user has no home."""
    try:
        state = pathlib.Path(os.environ.get("XDG_STATE_HOME", ""))
        return (state if state.is_absolute() else pathlib.Path.home() / ".local/state") / "taylorseer" / "plans"
    except RuntimeError:
        return None


def record_plan(sha256: str) -> bool:
    """Remember that the plan with this digest was built here; return whether that could be written.

    A build does not fail for it: where there is no home folder, the plan has to be signed or trusted by hand.
    """
    folder = records_folder()
    if folder is None:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / sha256).touch()
    except OSError:
        return False
    return True


def is_built_here(sha256: str) -> bool:
    """Whether this user built the plan with this digest on this machine."""
    folder = records_folder()
    try:
        return folder is not None and (folder / sha256).is_file()
    except OSError:
        return False


def require_trusted_plan(bundle: Bundle, name: str) -> pathlib.Path:
    """Return the path of the bundle's plan ``name``, whose digest was checked and which may be loaded.

    Raises:
        BundleError: it is none of the bundle's files, or was altered.
        UntrustedPlanError: it was built elsewhere, the bundle was opened without a key that signed it, and the user
            did not say that its plans are trusted.
    """
    path = bundle.checked_path(name)
    if not bundle.plans_trusted and not is_built_here(bundle.manifest.files[name].sha256):
        raise UntrustedPlanError(
            f"The plan {name!r} was not built by this user on this machine, and a plan is code that runs as it is: "
            "build the bundle here, give the key of whoever signed it (--verify-key), or trust it (--trust-plans)."
        )
    return path
