"""The command line itself: mistakes print one message and end with 1, bugs keep their traceback."""

import argparse
from collections.abc import Callable
from typing import Any

import pytest

import taylorseer
from taylorseer import errors
from taylorseer.cli import build_engines_main, main
from taylorseer.commands import doctor

COMMANDS = ("build", "plan", "generate", "compare", "tune", "inspect", "verify", "profile", "store", "doctor")
KINDS = [getattr(errors, name) for name in errors.__all__]


def raises(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_is_one_message_without_traceback(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    monkeypatch.setattr(doctor, "run", raises(kind("What was asked: do this.")))
    outcome = run("doctor")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "error: What was asked: do this.\n")


def test_a_bug_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "run", raises(KeyError("ours")))
    with pytest.raises(KeyError, match="ours"):
        main(["doctor"])


def test_an_interruption_says_that_nothing_was_written(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "run", raises(KeyboardInterrupt()))
    assert run("doctor").refused("Interrupted; nothing was written", "Run the same command")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("bild",), "invalid choice: 'bild'"),
        (("plan", "--steps", "many"), "argument --steps: invalid int value: 'many'"),
        (("plan", "--colour"), "unrecognized arguments: --colour"),
        (("generate",), "the following arguments are required: bundle"),
        (("build",), "the following arguments are required: --model"),
        (("build", "--model", "dit-tiny", "--random-weights", "--graphs-only"), "not allowed with argument"),
        (("build", "--model", "dit-tiny", "--precision", "int4"), "invalid choice: 'int4'"),
    ],
)
def test_bad_options_end_with_1_and_point_to_the_help(
    run: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    outcome = run(*arguments)
    assert outcome.refused(message, "--help`)")
    assert outcome.err.startswith("usage: taylorseer")


def test_help_of_everything(run: Callable[..., Any]) -> None:
    outcome = run("--help")
    assert outcome.code == 0 and all(command in outcome.out for command in COMMANDS)
    for command in COMMANDS:
        outcome = run(command, "--help")
        assert outcome.code == 0 and outcome.out.startswith(f"usage: taylorseer {command}")


def test_the_version(run: Callable[..., Any]) -> None:
    assert run("--version").out == f"taylorseer-trt {taylorseer.__version__}\n"


def test_build_engines_is_build(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_engines_main(["--model", "fluks"]) == 1
    assert "There is no model 'fluks'. Did you mean 'flux'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        build_engines_main(["--help"])
    assert caught.value.code == 0
    assert "usage: build-engines" in capsys.readouterr().out
