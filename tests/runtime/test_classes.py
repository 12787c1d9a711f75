"""Classes by number and by name, and every list of names that is none."""

import json
import pathlib

import pytest

from taylorseer.errors import BundleError, PromptError
from taylorseer.runtime.classes import Classes

NAMES = ("Animals & Nature", "cat-face", "drink")


@pytest.fixture
def named() -> Classes:
    return Classes(model="dit", count=3, names=NAMES)


def test_a_class_has_a_name_and_a_number(named: Classes) -> None:
    for label, name in enumerate(NAMES):
        assert named.label(name) == named.label(str(label)) == named.label(f"0{label}") == label
    assert named.label("animals & nature ") == 0


def test_without_names_there_are_numbers() -> None:
    plain = Classes(model="dit", count=3)
    assert plain.label("2") == 2
    for prompt in ("3", "-1", "drink", "", "1.0", "²", " 1", "9" * 5000):
        with pytest.raises(PromptError, match="dit takes a class number from 0 to 2, not"):
            plain.label(prompt)


def test_an_unknown_name_is_refused_with_close_ones(named: Classes) -> None:
    with pytest.raises(PromptError, match=r"by name or by number from 0 to 2, not 'animal nature' \(close: 'Animals &"):
        named.label("animal nature")
    for prompt in ("3", "", "xylophone"):
        with pytest.raises(PromptError, match=r"\(nothing close\)\. The names are in the bundle's classes\.json"):
            named.label(prompt)


def test_names_are_read_from_a_file(tmp_path: pathlib.Path, named: Classes) -> None:
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(NAMES))
    assert Classes.load(path, model="dit", count=3) == named


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "must hold a JSON list of names, one for each class"),
        (b"[]", "must hold a JSON list of names"),
        (b'["a", "b", 3]', "must hold a JSON list of names"),
        (b'["a", "b"]', "has 2 names, but dit has 3 classes"),
        (b'["a", "b", "A "]', "must name each class differently, and none with a number alone; found 'a', 'A '"),
        (b'["a", "b", "7"]', "must name each class differently, and none with a number alone; found '7'"),
        (b'["a", "b", ""]', "must name each class differently, and none with a number alone; found ''"),
    ],
)
def test_malformed_names_are_the_bundles_fault(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    path = tmp_path / "classes.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Classes.load(path, model="dit", count=3)


def test_a_missing_file_is_the_bundles_fault(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BundleError, match=r"classes\.json cannot be read: .*Fetch the checkpoint again"):
        Classes.load(tmp_path / "classes.json", model="dit", count=3)
