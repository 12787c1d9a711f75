"""The commands ``taylorseer`` and ``build-engines``: parse, dispatch, and print users' mistakes without traceback."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import taylorseer
from taylorseer.errors import TaylorSeerError

__all__ = ["build_engines_main", "main"]

_COMMANDS = ("build", "plan", "generate", "compare", "tune", "inspect", "verify", "profile", "store", "doctor")


class _Parser(argparse.ArgumentParser):
    """Bad options end with exit code 1, like every mistake of a user."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(1, f"error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``taylorseer``; return the exit code: 0 done, 1 a mistake that the message explains."""
    parser = _Parser(prog="taylorseer", description="TaylorSeer as engines: full and forecast steps.")
    parser.add_argument("--version", action="version", version=f"taylorseer-trt {taylorseer.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name in _COMMANDS:
        module = importlib.import_module(f"taylorseer.commands.{name}")
        command = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_options(command)
        command.set_defaults(run=module.run)
    return _run(parser, arguments)


def build_engines_main(arguments: Sequence[str] | None = None) -> int:
    """Run ``build-engines``, the same as ``taylorseer build``."""
    from taylorseer.commands import build

    parser = _Parser(prog="build-engines", description=build.SUMMARY)
    build.add_options(parser)
    parser.set_defaults(run=build.run)
    return _run(parser, arguments)


class _InterruptedError(BaseException):
    """Ctrl-C or a termination signal.

    Not KeyboardInterrupt: if one of those passes through ``exec``, as torch uses it, the interpreter ends itself by
    the signal at exit, whatever the exit code was.
    """


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    options = parser.parse_args(arguments)
    handlers = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return int(options.run(options))
    except TaylorSeerError as error:
        print(f"error: {error}", file=sys.stderr)
    except (_InterruptedError, KeyboardInterrupt):
        print("error: Interrupted; nothing was written. Run the same command to start again.", file=sys.stderr)
    except BrokenPipeError:
        sys.stderr.close()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 1


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise _InterruptedError


if __name__ == "__main__":
    sys.exit(main())
