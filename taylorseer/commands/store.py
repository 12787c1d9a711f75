"""``taylorseer store``: what lies in the store of TensorRT plans, whether it is sound, and how to make it smaller."""

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taylorseer.commands.options import add_json_option
from taylorseer.errors import DependencyError, StoreError

if TYPE_CHECKING:
    from taylorseer.engines.store import EngineStore
    from taylorseer.engines.store_entry import StoreEntry

__all__ = ["add_options", "run"]

SUMMARY = "list, verify or prune the stored TensorRT plans"

_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, does in (
        ("list", "every plan, what it was built for and when it was last used"),
        ("verify", "read every plan and check its digest; exit code 1 if one is damaged"),
        ("prune", "remove damaged plans, and those that the limits leave no room for"),
    ):
        action = actions.add_parser(name, help=does, description=does)
        action.add_argument("--store", metavar="DIR", help="default: $TAYLORSEER_STORE, else the user's cache")
        if name == "prune":
            action.add_argument(
                "--max-bytes", metavar="N", type=_size, help="keep the last used plans up to this size: 500M, 20G, ..."
            )
            action.add_argument(
                "--unused-days", metavar="N", type=_days, help="remove plans that nobody used for so long"
            )
        add_json_option(action)


def run(options: argparse.Namespace) -> int:
    """List, verify or prune; exit code 1 if verifying found damage."""
    store = _open_store(options.store)
    if options.action == "list":
        entries = store.entries()
    elif options.action == "verify":
        entries = store.verify()
    else:
        entries = store.prune(max_bytes=options.max_bytes, unused_days=options.unused_days)
    if options.json:
        what = "removed" if options.action == "prune" else "plans"
        json.dump({"store": str(store.folder), what: [_facts(entry) for entry in entries]}, sys.stdout, indent=1)
        print()
    else:
        _print(store, entries, options.action)
    return 1 if options.action == "verify" and any(entry.damage for entry in entries) else 0


def _open_store(folder: str | None) -> "EngineStore":
    try:
        from taylorseer.engines.store import EngineStore
    except ImportError as error:
        raise DependencyError(f"The store needs {error.name}: `pip install 'taylorseer-trt[tensorrt-rtx]'`.") from error
    store = EngineStore(folder or None)
    if folder is not None and not store.folder.is_dir():
        raise StoreError(f"There is no store in {folder!r}: give --store the folder that engines were built with.")
    return store


def _size(text: str) -> int:
    """Parse a number of bytes, with or without a unit."""
    unit = _UNITS.get(text[-1:], 1)
    return int(_not_negative(text[:-1] if unit > 1 else text) * unit)


def _days(text: str) -> float:
    return _not_negative(text)


def _not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return number


def _facts(entry: "StoreEntry") -> dict[str, Any]:
    return {**dataclasses.asdict(entry), "used": _time(entry)}


def _time(entry: "StoreEntry") -> str:
    """Return when the entry was last used, as its date of creation is written."""
    return datetime.datetime.fromtimestamp(entry.used, datetime.UTC).isoformat(timespec="seconds")


def _print(store: "EngineStore", entries: "Sequence[StoreEntry]", action: str) -> None:
    size = sum(entry.bytes for entry in entries)
    plans = "1 plan" if len(entries) == 1 else f"{len(entries)} plans"
    print(f"{store.folder}: {plans}{' removed' if action == 'prune' else ''}, {size / 1e6:.1f} MB")
    for entry in entries:
        print(f"  {entry.fingerprint}  {entry.bytes / 1e6:10.1f} MB  used {_time(entry)[:16]}  {_purpose(entry)}")
        if entry.damage:
            print(f"    DAMAGED: {entry.damage}")
    if action == "verify" and entries:
        damaged = sum(bool(entry.damage) for entry in entries)
        print(f"{damaged} damaged: `taylorseer store prune` removes them" if damaged else "every digest is right")


def _purpose(entry: "StoreEntry") -> str:
    """Return what the plan was built for, as far as its record still tells."""
    recipe = entry.recipe
    words = [recipe.get(name) for name in ("flavor", "tensorrt_version")]
    words += [f"sm {recipe['compute_capability']}" if "compute_capability" in recipe else None, recipe.get("precision")]
    return " ".join(str(word) for word in words if word)
