"""Mutations of a manifest by its grammar: JSON as a rule, and a manifest as seldom as luck will have it."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["mutated", "mutated_text"]

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("inf"), float("nan")),
    *(
        "",
        "x",
        "x" * 5000,
        "batch",
        "step_batch",
        "float32",
        "bfloat16",
        "folded",
        "history",
        "0" * 64,
        "\0",
        "\x1b[2J",
    ),
    *("../secret", "/etc/hostname", "\ud800", "latent", "prediction", "__class__", "${HOME}", "tensorrt-rtx"),
    *([], {}, [[]], {"": {}}, [1, 2, 3], ["batch", 4, 2]),
)

_TEXTS = ("\ufeff", "\0", "//", ",", "{", "}", "[", "]", '"', "\\u0000", "NaN", "1e999", "-", "[" * 200, " ", "\n")

_Place = tuple[Any, Any]
"""A list or an object, and an index or a key in it."""


def mutated(manifest: dict[str, Any], numbers: random.Random) -> dict[str, Any]:
    """Return a copy of the manifest's JSON object with one to three mutations."""
    tree = copy.deepcopy(manifest)
    for _ in range(numbers.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return tree
        numbers.choice(_MUTATIONS)(numbers, places)
    return tree


def mutated_text(manifest: dict[str, Any], numbers: random.Random) -> bytes:
    """Return the text of a manifest that was mutated as a tree, as a text, or both."""
    tree = mutated(manifest, numbers) if numbers.random() < 0.8 else manifest
    text = json.dumps(tree, indent=numbers.choice((None, 1)))
    if numbers.random() < 0.3:
        text = _in_text(text, numbers)
    return text.encode("utf-8", "surrogatepass")


def _in_text(text: str, numbers: random.Random) -> str:
    at = numbers.randrange(len(text))
    if numbers.random() < 0.5:
        return text[:at] + numbers.choice(_TEXTS) + text[at:]
    start = text.rfind("\n", 0, at)
    stop = text.find("\n", at)
    line = text[start:stop] if 0 <= start < stop else '"order": 1,'
    return text[:at] + line + text[at:]


def _places(tree: Any) -> Iterator[_Place]:
    """Yield every place in a tree; few of a long list, whose items are alike."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _replace(numbers: random.Random, places: list[_Place]) -> None:
    owner, key = numbers.choice(places)
    owner[key] = numbers.choice(_VALUES)


def _delete(numbers: random.Random, places: list[_Place]) -> None:
    owner, key = numbers.choice(places)
    del owner[key]


def _rename(numbers: random.Random, places: list[_Place]) -> None:
    owner, key = numbers.choice(places)
    if isinstance(owner, dict):
        owner[numbers.choice(("x", "", key.upper(), f"{key} ", "../secret"))] = owner.pop(key)


def _nudge(numbers: random.Random, places: list[_Place]) -> None:
    """Change a number or a text by little: the mutation that looks most like a manifest."""
    owner, key = numbers.choice(places)
    value = owner[key]
    if isinstance(value, int | float):
        owner[key] = numbers.choice((value + 1, value - 1, -value, value * 2, value / 2, value * 10))
    elif isinstance(value, str) and value:
        at = numbers.randrange(len(value))
        owner[key] = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]


def _exchange(numbers: random.Random, places: list[_Place]) -> None:
    (one, key), (other, index) = numbers.choice(places), numbers.choice(places)
    mine, its = copy.deepcopy(one[key]), copy.deepcopy(other[index])
    one[key] = its
    other[index] = mine


def _repeat(numbers: random.Random, places: list[_Place]) -> None:
    lists = [owner[key] for owner, key in places if isinstance(owner[key], list) and owner[key]]
    if lists:
        chosen = numbers.choice(lists)
        chosen.extend(copy.deepcopy(numbers.choice(chosen)) for _ in range(numbers.choice((1, 2, 300))))


def _bury(numbers: random.Random, places: list[_Place]) -> None:
    owner, key = numbers.choice(places)
    for _ in range(numbers.choice((1, 20, 200))):
        owner[key] = [owner[key]]


_MUTATIONS: tuple[Callable[[random.Random, list[_Place]], None], ...] = (
    *(_replace, _replace, _nudge, _nudge, _delete, _rename, _exchange, _repeat, _bury),
)
