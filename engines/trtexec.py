"""NVIDIA's own timing tool: its exact command line for one plan, and running it.

TensorRT's tool is ``trtexec``, TensorRT-RTX's is ``tensorrt_rtx``; they take the same options but for CUDA graphs.
A command is a list of arguments and never passes through a shell.  What the tool writes is read by
:mod:`taylorseer.engines.trtexec_reports`.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Literal

from taylorseer.errors import BackendError

__all__ = ["TOOLS", "Flavor", "find_trtexec", "require_trtexec", "run_trtexec", "shell_line", "trtexec_command"]

Flavor = Literal["tensorrt", "tensorrt-rtx"]

TOOLS: Mapping[Flavor, str] = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
"""The tool's name by backend; neither can load the other's plans."""

_SOURCES: Mapping[Flavor, str] = {
    "tensorrt": "the TensorRT tar or Debian package (`libnvinfer-bin`) at https://developer.nvidia.com/tensorrt, or "
    "samples/trtexec of https://github.com/NVIDIA/TensorRT",
    "tensorrt-rtx": "bin/ of the TensorRT-RTX archive at https://developer.nvidia.com/tensorrt-rtx",
}
"""No wheel carries the tools."""

_CUDA_GRAPH: Mapping[Flavor, str] = {
    "tensorrt": "--useCudaGraph",
    "tensorrt-rtx": "--rtxCudaGraphStrategy=wholeGraph",
}

_LAST_LINES = 12
"""Enough of a failed run to hold the tool's error; its options and versions fill the hundred lines before."""

_PLAIN_NAME = re.compile(r"[^,'*\s]+")
"""Tensor names that the tool's ``name:value,name:value`` lists can carry; it has no escape for the others."""


def find_trtexec(flavor: Flavor) -> pathlib.Path | None:
    """Return the tool of this backend from ``$TRTEXEC`` or else from the PATH, None where there is none.

    Raises:
        BackendError: ``$TRTEXEC`` is set, but names no program.
    """
    named = os.environ.get("TRTEXEC")
    found = shutil.which(named or TOOLS[flavor])
    if named and not found:
        raise BackendError(f"$TRTEXEC is {named!r}, which is no program: correct it, or unset it to search the PATH.")
    return pathlib.Path(found) if found else None


def require_trtexec(flavor: Flavor) -> pathlib.Path:
    """Return the tool of this backend.

    Raises:
        BackendError: it is nowhere; the message says where to get it.
    """
    found = find_trtexec(flavor)
    if found is None:
        raise BackendError(
            f"trtexec missing: there is no {TOOLS[flavor]!r} on the PATH. Get it from {_SOURCES[flavor]}, and put it "
            "on the PATH or set $TRTEXEC to it; without it the engines are timed by our own timers alone."
        )
    return found


def trtexec_command(
    tool: pathlib.Path | None,
    plan: pathlib.Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    flavor: Flavor,
    times: pathlib.Path,
    layers: pathlib.Path,
    iterations: int = 100,
    warm_up_ms: int = 500,
    values: Mapping[str, pathlib.Path] | None = None,
) -> list[str]:
    """Return the arguments that time the engine of ``plan`` as the session runs it: from a CUDA graph, on the device.

    The layers are profiled in a run of their own, without the CUDA graph, because asking for them slows a run down.

    Args:
        tool: what :func:`find_trtexec` gave; None: its bare name, for showing the line.
        plan: the serialized engine.
        shapes: of every input, batch substituted.
        flavor: which tool it is.
        times: where it writes the time of every run.
        layers: where it writes the time of every layer.
        iterations: runs that are timed, after the warm-up.
        warm_up_ms: how long it runs before the first of them.
        values: raw little-endian files for inputs that must not be random, such as indices into a table.

    Raises:
        BackendError: an input's name that the tool's option lists cannot carry.
    """
    return [
        str(tool or TOOLS[flavor]),
        f"--loadEngine={plan}",
        *_option("--shapes", {name: _sizes(shape) for name, shape in shapes.items()}),
        *_option("--loadInputs", {name: str(path) for name, path in (values or {}).items()}),
        f"--iterations={iterations}",
        "--duration=0",  # the tool's default of 3 s would make the number of iterations a lower bound
        f"--warmUp={warm_up_ms}",
        _CUDA_GRAPH[flavor],
        "--noDataTransfers",
        "--separateProfileRun",
        "--dumpProfile",
        f"--exportTimes={times}",
        f"--exportProfile={layers}",
    ]


def shell_line(command: Sequence[str]) -> str:
    """Return the command as a line to paste into a shell."""
    return shlex.join(command)


def run_trtexec(command: Sequence[str]) -> str:
    """Run the tool and return all it printed.

    Raises:
        BackendError: the tool cannot be started, or fails; with its last lines.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise BackendError(
            f"{command[0]} cannot be started: {error.strerror or error}. Set $TRTEXEC to a trtexec that runs here."
        ) from error
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        last = "\n  ".join(output.strip().splitlines()[-_LAST_LINES:]) or "(it printed nothing)"
        raise BackendError(
            f"{command[0]} {_ending(done.returncode)}; its last lines:\n  {last}\nThe tool must be of the version that "
            f"built the plan. To see it all: {shell_line(command)}"
        )
    return output


def _option(option: str, values: Mapping[str, str]) -> list[str]:
    for name in values:
        if not _PLAIN_NAME.fullmatch(name):
            raise BackendError(
                f"trtexec cannot be told about an input named {name!r}: its option lists have no escape for commas, "
                "quotes, asterisks and blanks. Rename the input, or use our own timers."
            )
    return [f"{option}={','.join(f'{name}:{value}' for name, value in values.items())}"] if values else []


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
