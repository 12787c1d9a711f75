"""Builds one plan in a process of its own, so that equal inputs give equal bytes, and a crash is an error.

TensorRT orders the outputs of a plan by hashes of memory addresses.  A process that does nothing else, at addresses
that are not randomized, lays out its memory the same way every time.  Where the system forbids fixed addresses, as some
containers do, the plan is built all the same: as good, but its outputs may be stored in another order.
"""

import contextlib
import ctypes
import dataclasses
import mmap
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import taylorseer
from taylorseer import errors
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.profiles import ShapeRange
from taylorseer.tensorrt_library import TensorRT

__all__ = ["build_plan_apart", "main"]

_FIXED_ADDRESSES = 0x0040000
"""``ADDR_NO_RANDOMIZE`` of Linux's personality(2)."""

_INHERITED = ("CUDA_", "LD_", "NVIDIA_", "TENSORRT_")
"""Names of environment variables that matter to TensorRT; the others would only move its memory about."""

_READ_ONLY = 0xFFFFFFFF
"""Makes personality(2) return the present value and change nothing."""

_REFUSED = 3
"""Exit code of a child that wrote an error in place of a plan."""


def build_plan_apart(
    library: TensorRT,
    graph: pathlib.Path,
    profile: Sequence[ShapeRange],
    options: TensorRTOptions,
    capability: str,
) -> mmap.mmap | bytes:
    """Return the serialized plan of one ONNX file, built as :func:`build_plan` does, in a child process.

    The plan lies in an unnamed file beside the graph, until what is returned is dropped.

    Raises:
        BackendError: the parser or the builder refuses the graph, or the child ends without an answer.
        DependencyError: the child lacks a library.
    """
    if options.timing_cache is not None:  # the child has another working folder
        options = dataclasses.replace(options, timing_cache=os.path.abspath(options.timing_cache))
    with _opened(graph.parent) as folder, tempfile.TemporaryFile(dir=graph.parent) as answer:
        file = f"/proc/self/fd/{folder}/{graph.name}"  # as long for every folder
        code = _run(pickle.dumps((library.flavor, file, tuple(profile), options, capability)), folder, answer.fileno())
        answer.seek(0)
        if code == _REFUSED:
            kind, message = pickle.load(answer)
            raise getattr(errors, kind)(message)
        if code:
            raise errors.BackendError(
                f"{library.flavor} {library.version} {_ending(code)} while it built {graph.name} for compute "
                f"capability {capability}; what it printed is above. Try again with --verbosity verbose."
            )
        size = os.fstat(answer.fileno()).st_size
        return mmap.mmap(answer.fileno(), size, access=mmap.ACCESS_READ) if size else b""


def _run(request: bytes, folder: int, answer: int) -> int:
    """Run the child with both descriptors open; return its exit code."""
    environment = {"PYTHONHASHSEED": "0", "PYTHONPATH": _python_path()}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
    command = [sys.executable, "-P", "-W", "ignore", "-m", "taylorseer.engines.plan_process", str(answer)]
    with _fixed_addresses():
        return subprocess.run(
            command,
            input=request,
            stdout=sys.__stderr__.fileno() if sys.__stderr__ else None,  # standard output is the command's own
            cwd="/",
            env=environment,
            pass_fds=[folder, answer],
            check=False,
        ).returncode


def main() -> int:
    """Build the plan that standard input asks for; write it, or the refusal, to the file descriptor in argv."""
    from taylorseer.engines.tensorrt_builder import build_plan
    from taylorseer.tensorrt_library import load_tensorrt

    flavor, file, profile, options, capability = pickle.load(sys.stdin.buffer)
    with os.fdopen(int(sys.argv[1]), "wb") as answer:
        try:
            plan = build_plan(load_tensorrt(flavor), pathlib.Path(file), profile, options, capability)
        except errors.TaylorSeerError as error:
            pickle.dump((type(error).__name__, str(error)), answer)
            return _REFUSED
        answer.write(plan)
    return 0


def _python_path() -> str:
    """Return where the child finds this package, also in a bare checkout."""
    package = str(pathlib.Path(taylorseer.__file__).absolute().parent.parent)
    return os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Let what this thread starts run without address randomization, as far as the system allows it."""
    libc = ctypes.CDLL(None)
    before = libc.personality(ctypes.c_ulong(_READ_ONLY))
    if before != -1:
        libc.personality(ctypes.c_ulong(before | _FIXED_ADDRESSES))
    try:
        yield
    finally:
        if before != -1:
            libc.personality(ctypes.c_ulong(before))


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


if __name__ == "__main__":
    sys.exit(main())
