"""Measure what splitting an exported 24 GB model costs: time, memory and bytes written.

    python -m tools.benchmark_split

Makes FLUX.1-dev at 1024x1024 in bf16 as one ONNX file with 23.8 GB of weights beside it, a sparse file of zeros, and
runs `build-engines --model flux --onnx FILE --precision bf16 --backend none` on it in a process of its own. Prints
one table and ends with exit code 1 when a limit is passed. Time is mostly that of hashing the weights, which a
bundle needs; the line `hashing alone` gives the speed of this machine at it, reading as the build does.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from taylorseer.digest import file_digest

__all__ = ["LIMITS", "Cost", "allocated_bytes", "main", "make_model", "measure"]

PRECISION = "bf16"

FILE, DATA = "flux.onnx", "flux.onnx.data"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one process took."""

    seconds: float
    """wall time, start of Python and its imports included"""
    memory: int
    """bytes, largest resident set"""
    written: int
    """bytes that the file system allocated to new files; a second name of an old file takes none"""


LIMITS = Cost(seconds=60.0, memory=2_000_000_000, written=50_000_000)
"""A split that reads no weights stays far below the size of the model, and within a minute with their digest."""


def make_model(folder: pathlib.Path) -> None:
    """Write the traced, unsplit transformer of FLUX.1-dev to `folder`, its weights a sparse file."""
    # Imported here: the process that measures stays small, for a child counts its parent's memory at the fork.
    import onnx_ir as ir

    from taylorseer.exporter.families import FAMILIES, load_model
    from taylorseer.exporter.tracing import trace

    model = load_model("flux")
    family = FAMILIES[model.family]
    inputs = family.inputs(model.config, model, model.sizes)
    constants = family.constants(model.config, model, model.sizes)
    traced, offset = trace(family, model.config, inputs, constants, PRECISION), 0
    for name, value in traced.graph.initializers.items():
        if value.const_value is None:
            assert value.shape is not None and value.dtype is not None
            tensor = ir.ExternalTensor(DATA, offset, None, value.dtype, shape=value.shape, name=name)
            value.const_value = ir.ExternalTensor(
                DATA, offset, tensor.nbytes, value.dtype, shape=value.shape, name=name
            )
            offset += tensor.nbytes
    ir.save(traced, folder / FILE)
    (folder / DATA).touch()
    os.truncate(folder / DATA, offset)


def measure(command: list[str], output: pathlib.Path, before: set[int]) -> Cost:
    """Run `command` and return its cost; what it wrote lies in `output`, less the inodes in `before`."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"The command ended with exit code {process.returncode}: {' '.join(command)}")
    return Cost(seconds=seconds, memory=usage.ru_maxrss * 1024, written=allocated_bytes(output, before))


def allocated_bytes(folder: pathlib.Path, before: set[int]) -> int:
    """Return what the files of `folder` take on disk, each inode once, without those in `before`."""
    found = {path.stat().st_ino: path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()}
    return sum(size for inode, size in found.items() if inode not in before)


def main() -> int:
    """Measure and print; return 1 when a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, help="where the model is made (default: a temporary folder)")
    parser.add_argument("--make", type=pathlib.Path, metavar="FOLDER", help="only make the model there")
    options = parser.parse_args()
    if options.make is not None:
        make_model(options.make)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = pathlib.Path(name)
        subprocess.run([sys.executable, "-m", "tools.benchmark_split", "--make", name], check=True)
        arguments = ["--model", "flux", "--onnx", f"{folder / FILE}", "--precision", PRECISION, "--backend", "none"]
        command = [sys.executable, "-m", "taylorseer", "build", *arguments, "--output", f"{folder / 'bundle'}"]
        before = {path.stat().st_ino for path in folder.iterdir()}
        cost = measure(command, folder / "bundle", before)
        size, hashing = (folder / DATA).stat().st_size, _hash_seconds(folder / DATA)
    return _report(cost, size, hashing, f"build-engines {' '.join(arguments)}".replace(f"{folder}/", ""))


def _hash_seconds(path: pathlib.Path) -> float:
    """Return how long the digest takes as the build reads the weights: past the page cache where that is possible."""
    start = time.perf_counter()
    file_digest(path, read_again=False)
    return time.perf_counter() - start


def _report(cost: Cost, size: int, hashing: float, command: str) -> int:
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnx-ir", "onnxscript"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"command   {command}")
    print("model     FLUX.1-dev, 1024x1024, 512 text tokens, bf16, schedule of 50 steps, --state auto")
    print(f"machine   {_processor()}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB memory, {platform.system()}")
    print(f"versions  Python {platform.python_version()}, {libraries}")
    print(f"{'':24}{'measured':>12}{'limit':>12}")
    rows = [
        ("weights, GB", size / 1e9, None),
        ("hashing alone, s", hashing, None),
        ("wall time, s", cost.seconds, LIMITS.seconds),
        ("largest memory, GB", cost.memory / 1e9, LIMITS.memory / 1e9),
        ("written, MB", cost.written / 1e6, LIMITS.written / 1e6),
    ]
    for name, value, limit in rows:
        print(f"{name:24}{value:12.2f}{'' if limit is None else f'{limit:12.2f}'}")
    passed = [name for name, value, limit in rows if limit is not None and value > limit]
    print(f"over the limit: {', '.join(passed)}" if passed else "within every limit")
    return 1 if passed else 0


def _processor() -> str:
    """Return the processor's name as Linux gives it."""
    lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
