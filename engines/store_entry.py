"""One entry of the store, read and judged: ``recipe.json`` says what the plan beside it is and has to contain."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from taylorseer.engines.fingerprint import document_fingerprint

__all__ = ["PLAN_FILE", "RECIPE_FILE", "StoreEntry", "read_entry"]

PLAN_FILE, RECIPE_FILE = "plan", "recipe.json"

_RECIPE_LIMIT = 2**20
"""Bytes; no honest record comes near this, and what is longer is malformed."""


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
    """Fields of :class:`~taylorseer.engines.fingerprint.PlanRecipe` as JSON, of whichever version built the plan; {} if
    the record is damaged."""
    damage: str
    """What is wrong with the entry; '' if nothing is."""


def read_entry(path: pathlib.Path, *, check_digest: bool) -> StoreEntry | None:
    """Judge the entry in the folder ``path``, which is named by its fingerprint; None if there is none.

    It is judged in the folder that was opened, for another process may put a new one in its place meanwhile.

    Args:
        path: the entry's folder.
        check_digest: read the plan too.
    """
    while True:
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _entry(path.name, {}, 0, 0.0, f"it is no folder that can be read: {error.strerror}")
        try:
            entry = _judge(folder, path.name, check_digest=check_digest)
            if not entry.damage or _is_at(folder, path):
                return entry
        finally:
            os.close(folder)


def _judge(folder: int, name: str, *, check_digest: bool) -> StoreEntry:
    """Judge the entry whose folder is open as the descriptor ``folder``."""
    record: Mapping[str, Any] = {}
    size, used, damage = 0, os.fstat(folder).st_mtime, ""
    with contextlib.suppress(OSError):
        size = os.stat(PLAN_FILE, dir_fd=folder, follow_symlinks=False).st_size
    try:
        with _open_in(folder, RECIPE_FILE) as file:
            used, record = os.fstat(file.fileno()).st_mtime, _parse(file.read(_RECIPE_LIMIT), name)
        with _open_in(folder, PLAN_FILE) as file:
            if not record:
                damage = f"its {RECIPE_FILE} is malformed or of another plan"
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
