"""Kill builds at random moments, and let the disk fill up under them: what they leave is absent or whole.

    python -m tools.kill_builds --kills 200 --full-disks 50

Every build writes a bundle with plans, by way of a store.  After each the bundle is absent or opens with every digest
right, every plan of the store is sound, and the next build succeeds and leaves nothing beside them.  Builds are forks
of this process, which has traced the model before, for that writes nothing; and plans are stand-ins of random bytes,
for TensorRT builds them in a process of its own.  The exit code is 0 if nothing bad was found.
"""

import argparse
import collections
import contextlib
import ctypes
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from taylorseer.bundle import open_bundle
from taylorseer.cli import main as taylorseer
from taylorseer.engines.store import EngineStore
from taylorseer.errors import BundleError

__all__ = ["Builder", "fill_disks", "kill_builds", "main"]

_NEW_MOUNTS, _PRIVATE, _REMOUNT = 0x00020000, 0x00040000 | 0x4000, 0x20
"""CLONE_NEWNS, MS_PRIVATE | MS_REC and MS_REMOUNT of Linux."""

_PLAN_SECONDS = 0.01
_PAGE = 4096


class Builder:
    """Builds one tiny bundle again and again, in forks."""

    def __init__(self, model: str = "dit-tiny") -> None:
        """Trace the model once."""
        import taylorseer.engines.tensorrt_builder as tensorrt_builder
        import taylorseer.exporter.workflow as workflow

        self._model = model
        traced = workflow.traced_model
        self._traced: Any = None

        def once(request: Any) -> Any:
            self._traced = self._traced or traced(request)
            return self._traced

        workflow.traced_model = once
        vars(tensorrt_builder)["build_plan_apart"] = _stand_in
        with tempfile.TemporaryDirectory() as folder:
            # A model that was traced is changed by the split: trace here, and split in the forks alone.
            split, workflow._split = workflow._split, _stop
            with contextlib.suppress(_StopError):
                self._build(pathlib.Path(folder))
            workflow._split = split

    def start(self, place: pathlib.Path, limit: Callable[[], object] = lambda: None) -> int:
        """Begin to build ``place/bundle`` with the store ``place/store``; return the process's id.

        Its exit code is that of the command, or 99 where an error is not typed; ``place/../log`` has what it said.
        """
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                with open(place.parent / "log", "w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
                    try:
                        limit()
                        code = self._build(place)
                    except BaseException:
                        traceback.print_exc()
            finally:
                os._exit(code)
        return pid

    def run(self, place: pathlib.Path, limit: Callable[[], object] = lambda: None) -> int:
        """Build, and return the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(place, limit), 0)[1])

    def _build(self, place: pathlib.Path) -> int:
        os.environ["XDG_STATE_HOME"] = str(place / "state")
        arguments = ["build", "--model", self._model, "--random-weights", "--overwrite", "--json"]
        arguments += ["--backend", "tensorrt-rtx", "--precision", "bf16", "--compute-capability", "8.9"]
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return taylorseer([*arguments, "--store", str(place / "store"), "--output", str(place / "bundle")])


class _StopError(Exception):
    """The trace is done."""


def _stop(*arguments: Any, **options: Any) -> Any:
    raise _StopError


def _stand_in(library: Any, graph: pathlib.Path, *arguments: Any) -> bytes:
    time.sleep(_PLAN_SECONDS)
    return random.Random(graph.name).randbytes(200_000)


def faults_of(place: pathlib.Path) -> tuple[str, list[str]]:
    """Return whether there is a bundle, ``absent`` or ``whole``, and what is wrong there."""
    wrong = [f"store: {entry.damage}" for entry in EngineStore(place / "store").verify() if entry.damage]
    if not (place / "bundle").exists():
        return "absent", wrong
    try:
        open_bundle(place / "bundle")
    except BundleError as error:
        wrong.append(str(error))
    return "whole", wrong


def leftovers(place: pathlib.Path) -> list[str]:
    """Return what lies beside a bundle and a store that nobody works on."""
    found = [path.name for path in place.iterdir() if path.name not in ("bundle", "store", "state")]
    return found + [path.name for path in (place / "store").glob(".*.partial")]


def next_build(builder: Builder, place: pathlib.Path) -> list[str]:
    """Build, and return what is wrong afterwards."""
    code = builder.run(place)
    state, wrong = faults_of(place)
    if code or state != "whole":
        wrong.append(f"the next build ended with {code}: {(place.parent / 'log').read_text()[-500:]}")
    return wrong + [f"left over: {name}" for name in leftovers(place)]


def kill_builds(builder: Builder, count: int, *, seed: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Yield for each kill what it left and what was wrong: half of the builds replace a bundle that is there."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder, "place")
        longest = _duration(builder, place)
        for number in range(count):
            if number % 2:
                shutil.rmtree(place / "bundle")
            if number % 3 == 0:
                shutil.rmtree(place / "store")
            pid = builder.start(place)
            time.sleep(moments.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            state, wrong = faults_of(place)
            yield f"{state}{'' if killed else ', done before'}", wrong + next_build(builder, place)


def _duration(builder: Builder, place: pathlib.Path) -> float:
    """Return the seconds of a build, the median of three."""
    seconds = []
    for _ in range(3):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        start = time.monotonic()
        if builder.run(place):
            raise SystemExit((place.parent / "log").read_text())
        seconds.append(time.monotonic() - start)
    return sorted(seconds)[1]


def fill_disks(builder: Builder, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield for each disk, of evenly growing sizes, what a build left on it and what was wrong.

    A disk is a file system in memory, mounted for one process alone; where that is not permitted, a limit on the size
    of a file stands for it.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder, "place")
        _duration(builder, place)
        sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file() and path.stat().st_nlink == 1]
        plans = [path.stat().st_size for path in (place / "store").glob("*/plan")]
        need, largest = sum(-(-size // _PAGE) * _PAGE for size in (*sizes, *plans)), max((*sizes, *plans))
        shutil.rmtree(place)
        place.mkdir()
        for number in range(count):
            part = (number + 0.5) / count
            yield _apart(builder, place, max(_PAGE, round(need * part)), max(1, round(largest * part)))


def _apart(builder: Builder, place: pathlib.Path, size: int, longest: int) -> tuple[str, list[str]]:
    """Run one disk in a process of its own, whose mounts end with it."""
    result = place.parent / "result"
    pid = os.fork()
    if pid == 0:
        try:
            result.write_text(repr(_one_disk(builder, place, size, longest)))
        except BaseException:
            result.write_text(repr(("none", [traceback.format_exc()])))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    import ast

    state, wrong = ast.literal_eval(result.read_text())
    return state, wrong


def _one_disk(builder: Builder, place: pathlib.Path, size: int, longest: int) -> tuple[str, list[str]]:
    mounted = _mount(place, size)
    limit = (lambda: None) if mounted else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest)))
    code = builder.run(place, limit)
    said = (place.parent / "log").read_text()
    state, wrong = faults_of(place)
    if code not in (0, 1) or (code and "The disk is full" not in said):
        wrong.append(f"the build ended with {code}: {said[-500:]}")
    if code:
        wrong += [f"left over: {name}" for name in leftovers(place)]
    if mounted:
        _mount(place, 2**28, again=True)
    else:
        shutil.rmtree(place / "store", ignore_errors=True)
    wrong += next_build(builder, place)
    if not mounted:
        for path in place.iterdir():
            shutil.rmtree(path)
    how = "full disk" if mounted else "limited file"
    return f"{how}: {'refused' if code else 'built'}, {state}", wrong


def _mount(place: pathlib.Path, size: int, *, again: bool = False) -> bool:
    """Mount a file system of so many bytes for this process alone, or change its size; return whether it may."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not again:
        if libc.unshare(_NEW_MOUNTS):
            return False
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None)
    flags = ctypes.c_ulong(_REMOUNT if again else 0)
    return not libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags, f"size={size}".encode())


def main() -> int:
    """Run both campaigns and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kill -9 at so many moments (default 200)")
    parser.add_argument("--full-disks", type=int, default=50, help="disks of so many sizes (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    builder, start = Builder(), time.monotonic()
    bad = _report("kills", kill_builds(builder, options.kills, seed=options.seed))
    bad += _report("full disks", fill_disks(builder, options.full_disks))
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if bad else 0


def _report(what: str, results: Iterator[tuple[str, list[str]]]) -> int:
    states: collections.Counter[str] = collections.Counter()
    bad = 0
    for number, (state, wrong) in enumerate(results):
        states[state] += 1
        bad += bool(wrong)
        for line in wrong:
            print(f"BAD {what} {number}: {line}", flush=True)
    counts = "; ".join(f"{state} {count}" for state, count in sorted(states.items()))
    print(f"{states.total()} {what}: {counts}; {bad} with something wrong", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
