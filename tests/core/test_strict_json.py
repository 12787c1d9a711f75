"""JSON of strangers: what json.loads accepts and a manifest cannot be."""

import json

import pytest

from taylorseer.strict_json import DEEPEST, LARGEST_NUMBER, LONGEST_TEXT, MOST_VALUES, parse_json


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, "Ä and 漢", [], {}, {"a": [1, {"b": "]}{["}]}, '\\"', LARGEST_NUMBER, "x" * LONGEST_TEXT],
)
def test_ordinary_json_is_read_as_ever(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text) == value


def test_the_deepest_and_one_level_more() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    with pytest.raises(ValueError, match=f"deeper than {DEEPEST} levels"):
        parse_json("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))


def test_too_many_values_are_refused_before_they_are_made() -> None:
    with pytest.raises(ValueError, match=f"more than {MOST_VALUES} values"):
        parse_json("[" + "0," * MOST_VALUES)  # which is not even whole


REFUSED = {
    "a key twice": ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice"),
    "a key twice, deep": ('[{"x": {"a": 1, "a": 1}}]', "the key 'a' stands twice"),
    "not a number": ("[NaN]", "NaN is no number of JSON"),
    "infinity": ("[-Infinity]", "-Infinity is no number"),
    "overflow": ("[1e999]", "the number 1e999 is too large"),
    "an integer too large": (f"[{LARGEST_NUMBER + 1}]", "is too large"),
    "thousands of digits": ("9" * 100_000, "the number 99999999999999999999 is too large"),
    "half a surrogate": ('["\\ud800"]', "signs that cannot be printed"),
    "a terminal's escape": ('["\\u001b[2J"]', "signs that cannot be printed"),
    "a direction": ('{"a\\u202e": 1}', "signs that cannot be printed"),
    "a long text": (json.dumps("x" * (LONGEST_TEXT + 1)), "too long"),
    "no JSON": ("{'a': 1}", "Expecting property name"),
    "more than one value": ("{} {}", "Extra data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        parse_json(text)
