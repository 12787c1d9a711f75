"""JSON of unknown origin, read with bounds on its depth, its count of values, its numbers and its text."""

import json
import math
import re
from typing import Any, NoReturn

__all__ = ["parse_json"]

DEEPEST = 16
"""Levels of lists and objects; the manifest has six, and a model's config may add a few."""

MOST_VALUES = 1_000_000
"""Values in all.  The manifest of a published model has some ten thousand."""

LONGEST_TEXT = 4096
"""Characters of a string or a key."""

LARGEST_NUMBER = 2**53
"""Magnitude of an integer: beyond it other JSON readers round, and no size, offset or count comes near."""

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def parse_json(text: str) -> Any:
    """Return the value that ``text`` holds.

    More is refused than by :func:`json.loads`: a key that stands twice in one object, where readers differ in which
    they take; NaN and infinity; control characters and half surrogates in text, which would reach a terminal with the
    next message; and whatever exceeds the bounds of this module.

    Raises:
        ValueError: it is not JSON, or is refused; the text says why.
    """
    _check_structure(text)
    value = json.loads(
        text,
        object_pairs_hook=_object,
        parse_constant=_constant,
        parse_float=_float,
        parse_int=_int,
    )
    _check_text(value)
    return value


def _check_structure(text: str) -> None:
    """Refuse too deep and too many values before they are made: each costs some hundred bytes of memory."""
    depth = count = 0
    for token in _TOKENS.finditer(text):
        sign = token.group()
        if sign in ("[", "{"):
            depth += 1
        elif sign in ("]", "}"):
            depth -= 1
        count += sign in ("[", "{", ",")
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        if count > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice!r:.80} stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text:.20} is too large")
    return number


def _int(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > LARGEST_NUMBER:
        raise ValueError(f"the number {text:.20} is too large")
    return int(text)


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT or not value.isprintable():
            raise ValueError(f"the text {value!r:.80} is too long or has signs that cannot be printed")
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
