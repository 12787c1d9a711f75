"""Build choices: a value that no build could use is refused when it is given; which ones make a plan another."""

import dataclasses
from typing import Any

import pytest

from taylorseer.engines.options import TensorRTOptions
from taylorseer.errors import BackendError


@pytest.mark.parametrize("level", [-1, 6, 9])
def test_an_optimization_level_that_does_not_exist(level: int) -> None:
    with pytest.raises(BackendError, match=rf"^--builder-optimization-level is {level}: give 0 to 5\.$"):
        TensorRTOptions(builder_optimization_level=level)


@pytest.mark.parametrize("level", [0, 5])
def test_the_lowest_and_the_highest_optimization_level(level: int) -> None:
    assert TensorRTOptions(builder_optimization_level=level).builder_optimization_level == level


@pytest.mark.parametrize("size", [0, -5])
def test_a_workspace_of_nothing(size: int) -> None:
    with pytest.raises(BackendError, match=rf"^--workspace is {size} bytes: give 1 or more, or leave it out\.$"):
        TensorRTOptions(workspace=size)


def test_an_unknown_verbosity() -> None:
    with pytest.raises(BackendError, match=r"^--verbosity is 'loud': give one of error, warning, info, verbose\.$"):
        TensorRTOptions(verbosity="loud")


@pytest.mark.parametrize("capability", ["", "8", "89", "sm89", "8.", ".9", "8.x", "8.9.0", "-8.9", "8,9"])
def test_a_malformed_compute_capability(capability: str) -> None:
    with pytest.raises(BackendError) as refused:
        TensorRTOptions(compute_capability=("12.0", capability))
    assert str(refused.value) == f"--compute-capability is {capability!r}: give MAJOR.MINOR, such as 8.9."


def test_a_compute_capability_given_twice() -> None:
    with pytest.raises(BackendError, match=r"^--compute-capability names one twice: 8\.9, 12\.0, 8\.9\.$"):
        TensorRTOptions(compute_capability=("8.9", "12.0", "8.9"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("builder_optimization_level", 1),
        ("workspace", 2**20),
        ("refit", True),
        ("weight_streaming", True),
        ("version_compatible", True),
    ],
)
def test_options_that_make_a_plan_another(name: str, value: Any) -> None:
    changed = dataclasses.replace(TensorRTOptions(), **{name: value}).that_change_a_plan()
    assert changed == TensorRTOptions().that_change_a_plan() | {name: value}
    assert changed != TensorRTOptions().that_change_a_plan()


@pytest.mark.parametrize(
    ("name", "value"), [("compute_capability", ("8.9",)), ("timing_cache", "times"), ("verbosity", "info")]
)
def test_options_that_do_not(name: str, value: Any) -> None:
    """The compute capability is in the recipe under its own name, for each plan the one that it was built for."""
    options = dataclasses.replace(TensorRTOptions(), **{name: value})
    assert options.that_change_a_plan() == TensorRTOptions().that_change_a_plan()


def test_every_option_is_in_one_of_both_lists() -> None:
    """An option added later has to be thought about: forgotten, it would hand out a plan built without it."""
    counted = set(TensorRTOptions().that_change_a_plan())
    fields = {field.name for field in dataclasses.fields(TensorRTOptions)}
    assert fields - counted == {"compute_capability", "timing_cache", "verbosity"}
