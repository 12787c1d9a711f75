"""One base error for users' mistakes; each kind is one that some line of the product raises."""

import ast
import pathlib

import pytest

import taylorseer
from taylorseer import errors
from taylorseer.errors import BundleError, InputError, TaylorSeerError

KINDS = [name for name in errors.__all__ if name != "TaylorSeerError"]


def raised_names() -> set[str]:
    """Names of all classes that are called in the product's sources outside errors.py."""
    names: set[str] = set()
    package = pathlib.Path(taylorseer.__file__).parent
    for folder in (package, *(package / stage for stage in ("exporter", "engines", "runtime"))):
        for path in folder.resolve().rglob("*.py"):
            if path.name != "errors.py":
                calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
                names |= {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    return names


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_derives_from_the_base_and_is_raised_somewhere(name: str) -> None:
    assert issubclass(getattr(errors, name), TaylorSeerError)
    assert name in raised_names()


def test_the_base_itself_is_never_raised() -> None:
    assert "TaylorSeerError" not in raised_names()


def test_a_mistake_is_no_builtin_error() -> None:
    # Whoever catches ValueError for a bug must not swallow a user's mistake, nor the other way round.
    assert not issubclass(TaylorSeerError, ValueError | OSError | RuntimeError | TypeError | KeyError)


def test_kinds_that_are_cases_of_another() -> None:
    assert issubclass(errors.VersionError, BundleError)
    assert all(issubclass(kind, InputError) for kind in (errors.ShapeError, errors.PromptError, errors.NonFiniteError))
