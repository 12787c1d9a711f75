"""Measure what compiling DiT-XL/2 at its published size costs without a GPU: time and memory, stage by stage.

    python -m tools.benchmark_dit_xl

Exports `dit` with random weights in bf16, splits it and builds TensorRT-RTX plans of its three graphs for one compute
capability, as one `build-engines` in a process of its own; then onnx.checker goes through every graph in another.
Prints one table and ends with exit code 1 when a limit is passed. Memory is the sum over the stage's processes, pages
that they share counted more than once. The weights' values have no effect on time or memory.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

__all__ = ["LIMIT_BYTES", "LIMIT_SECONDS", "Cost", "check_graphs", "main", "measure", "resident_bytes"]

MODEL = ("--model", "dit", "--random-weights", "--precision", "bf16", "--backend", "tensorrt-rtx")

LIMIT_SECONDS = 180.0
"""of all stages together"""

LIMIT_BYTES = 10_000_000_000
"""of the largest stage"""

LIBRARIES = ("torch", "diffusers", "onnx", "onnx-ir", "tensorrt-rtx-cu13", "polygraphy")

_PAUSE = 0.05
"""seconds between two looks at the memory: short against how long a process holds its largest"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one stage took."""

    seconds: float
    """wall time, start of Python and its imports included"""
    memory: int
    """bytes, largest sum of resident sets"""


def measure(command: list[str]) -> Cost:
    """Run `command` to its end and return its cost, that of the processes it starts included."""
    start, largest, ended = time.perf_counter(), [0], threading.Event()
    process = subprocess.Popen(command)

    def watch() -> None:
        while not ended.wait(_PAUSE):
            largest[0] = max(largest[0], resident_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"The stage ended with exit code {process.returncode}: {' '.join(command)}")
    return Cost(seconds=seconds, memory=max(largest[0], usage.ru_maxrss * 1024))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants; what has ended meanwhile counts as nothing."""
    total, found = 0, [pid]
    while found:
        folder = pathlib.Path("/proc", str(found.pop()))
        try:
            total += int((folder / "statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (folder / "task").iterdir():
                found += map(int, (task / "children").read_text("ascii").split())
        except OSError:
            continue
    return total


def check_graphs(bundle: pathlib.Path) -> None:
    """Let onnx.checker go through every graph of the bundle where it lies, its weights beside it."""
    import onnx

    from taylorseer.bundle import open_bundle

    for graph in open_bundle(bundle, check_digests=False).manifest.graphs.values():
        # Not full_check: its type inference refuses a Conv of bfloat16 in every opset before 22.
        onnx.checker.check_model(str(bundle / graph.file))


def main() -> int:
    """Measure and print; return 1 when a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute-capability", default="8.9", help="what the plans are for (default 8.9)")
    parser.add_argument("--folder", type=pathlib.Path, help="where the bundle is made (default: a temporary folder)")
    parser.add_argument("--check", type=pathlib.Path, metavar="BUNDLE", help="only check the graphs of a bundle")
    options = parser.parse_args()
    if options.check is not None:
        check_graphs(options.check)
        return 0
    arguments = [*MODEL, "--compute-capability", options.compute_capability]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        bundle = pathlib.Path(name, "bundle")
        places = ["--output", str(bundle), "--store", f"{name}/store"]
        build = measure([sys.executable, "-m", "taylorseer", "build", *arguments, *places])
        check = measure([sys.executable, "-m", "tools.benchmark_dit_xl", "--check", str(bundle)])
        sizes = {path.name: path.stat().st_size for path in sorted(bundle.rglob("*")) if path.is_file()}
    return _report(
        {"export, split, plans": build, "onnx.checker": check}, sizes, f"build-engines {' '.join(arguments)}"
    )


def _report(stages: dict[str, Cost], sizes: dict[str, int], command: str) -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"command   {command}")
    print("model     DiT-XL/2, 256x256, random weights, bf16, batches 2 to 16")
    print(f"machine   {_processor()}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB memory, {platform.system()}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    print(f"versions  Python {platform.python_version()}, {versions}")
    print(f"files     {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in sizes.items())}")
    total = Cost(
        seconds=sum(cost.seconds for cost in stages.values()), memory=max(cost.memory for cost in stages.values())
    )
    limits = Cost(seconds=LIMIT_SECONDS, memory=LIMIT_BYTES)
    print(f"{'':24}{'wall, s':>12}{'memory, GB':>12}")
    for name, cost in {**stages, "together": total, "limit": limits}.items():
        print(f"{name:24}{cost.seconds:12.1f}{cost.memory / 1e9:12.2f}")
    over = total.seconds > limits.seconds or total.memory > limits.memory
    print("over the limit" if over else "within both limits")
    return int(over)


def _processor() -> str:
    """Return the processor's name as Linux gives it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
