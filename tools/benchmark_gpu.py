"""The GPU's table of docs/performance.md: parity, times beside their floors, memory against its plan, the host's part.

    python -m tools.benchmark_gpu --model flux-emoji:bf16 --model flux-slice:bf16 --output out/gpu

builds each model for the GPU of this machine (random weights where the repository has none), verifies and profiles it,
and measures what the commands do not print.  Exit code 1 when a check fails.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from taylorseer.bundle import open_bundle
from taylorseer.config import CacheConfig
from taylorseer.cuda import load_cuda
from taylorseer.exporter.checkpoints import demo_checkpoint
from taylorseer.runtime.footprint import footprint
from taylorseer.runtime.generation import random_conditions, sampler_for
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.session import LoadedModel, Session

_LOOPS = 5

_ALLOCATING = ("cudaMalloc", "cudaMallocAsync", "cudaHostAlloc", "cudaFree", "cudaFreeAsync")
_WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def main() -> int:
    """Run everything; print the table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME:PRECISION", help="build and measure")
    parser.add_argument("--bundle", action="append", default=[], type=pathlib.Path, help="measure a bundle as it is")
    parser.add_argument("--backend", default="tensorrt-rtx")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("out/gpu"))
    parser.add_argument("--skip-verify", action="store_true")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    failed = False
    bundles = list(options.bundle)
    for entry in options.model:
        name, _, precision = entry.partition(":")
        bundles.append(options.output / f"{name}-{precision}")
        failed |= not build(name, precision, bundles[-1], options)
    for bundle in bundles:
        failed |= not all(list(check(bundle, options)))  # every one, whatever fails
        rows.append(measure_bundle(bundle))
        print(json.dumps(rows[-1], indent=1), flush=True)
    (options.output / "benchmark.json").write_text(json.dumps(rows, indent=1))
    print_table(rows)
    return int(failed)


def build(name: str, precision: str, bundle: pathlib.Path, options: argparse.Namespace) -> bool:
    """Build a bundle for this machine's GPU."""
    weights = [] if demo_checkpoint(name).is_dir() else ["--random-weights"]
    store = ["--store", str(options.output / "store")]
    arguments = ["build", "--model", name, "--precision", precision, "--backend", options.backend, "--overwrite"]
    return command([*arguments, *weights, *store, "--output", str(bundle)])


def check(bundle: pathlib.Path, options: argparse.Namespace) -> Iterator[bool]:
    """Verify and profile with the product's own commands; their output is the log."""
    if not options.skip_verify:
        yield command(["verify", str(bundle)])
    report = options.output / f"{bundle.name}-profile"
    yield command(["profile", str(bundle), "--output", str(report)])


def command(arguments: list[str]) -> bool:
    """Run one command in a process of its own, and say how long it took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "taylorseer", *arguments], check=False)
    print(
        f"# taylorseer {' '.join(arguments[:2])}: exit {done.returncode}, {time.perf_counter() - start:.1f} s",
        flush=True,
    )
    return done.returncode == 0


class Counting:
    """The CUDA runtime, with a count of every function that is called."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._runtime, name)
        if not name.startswith("cuda") or not callable(function) or isinstance(function, type):
            return function

        def counted(*arguments: Any) -> Any:
            self.counts[name] += 1
            return function(*arguments)

        return counted


@contextlib.contextmanager
def counted() -> Iterator["Counting"]:
    """Let every CUDA call of a backend that is opened meanwhile be counted."""
    cuda = load_cuda()
    runtime = cuda.runtime
    counting = cuda.runtime = Counting(runtime)
    try:
        yield counting
    finally:
        cuda.runtime = runtime


def measure_bundle(folder: pathlib.Path) -> dict[str, Any]:
    """Return what a bundle's loop costs."""
    bundle = open_bundle(folder)
    with counted() as counting:
        backend = open_backend(bundle)
        before = load_cuda().free_bytes()
        return measure(LoadedModel(bundle.manifest, backend), backend, before, counting)


def measure(model: LoadedModel, backend: Any, before_engines: int, counting: "Counting") -> dict[str, Any]:
    """Return what a loop costs: on the device, on the host, in memory.

    Args:
        model: loaded.
        backend: of the model.
        before_engines: bytes that were free before it was loaded.
        counting: of the backend's CUDA calls.
    """
    manifest, cuda = model.manifest, load_cuda()
    before_session = cuda.free_bytes()
    with model.session() as session:
        ready = cuda.free_bytes()
        config = CacheConfig.from_json(manifest.cache)
        loops = {full: [one_loop(session, config, full, counting) for _ in range(_LOOPS)] for full in (True, False)}
        lowest = min(entry["free"] for runs in loops.values() for entry in runs)
        engines = before_engines - before_session  # known before a session is opened, so part of the plan
        planned, peak = engines + footprint(session.memory_plan.total_bytes), before_engines - lowest
        every, forecast = (sorted(runs, key=lambda r: r["loop_ms"])[_LOOPS // 2] for runs in loops.values())
        speedup = every["loop_ms"] / forecast["loop_ms"]
        schedule = config.schedule()
        return {
            "model": manifest.model,
            "precision": manifest.precision,
            "state": f"{manifest.layout}, order {manifest.order}",
            "device": backend.device.name,
            "engine": f"{manifest.engine.backend} {manifest.engine.version}",
            "every_step_full": every,
            "forecasting": forecast,
            "speedup": speedup,
            "eta": speedup / schedule.ideal_speedup,
            "planned_bytes": planned,
            "bytes_by_use": session.memory_plan.bytes_by_use(),
            "allocated_bytes": before_session - ready,
            "peak_bytes": peak,
            "peak_over_plan": peak / planned - 1,
            "engine_bytes": engines,
            "session_peak_over_plan": (peak - engines) / (planned - engines) - 1,
        }


def one_loop(session: Session, config: CacheConfig, every_step_full: bool, counting: Counting) -> dict[str, Any]:
    """Run one loop; count CUDA calls and the host's time between the first and the last enqueue."""
    clock, asked = session._clock, [0.0, 0.0]
    start, seconds = clock.start, clock.seconds

    def starting() -> None:
        counting.counts.clear()
        asked[0] = time.perf_counter()
        start()

    def ending() -> Any:
        asked[1] = time.perf_counter()
        loop_counts.update(counting.counts)
        return seconds()

    loop_counts: Counter[str] = Counter()
    clock.start, clock.seconds = starting, ending  # type: ignore[method-assign]
    try:
        result = session.denoise(
            initial_noise(session.latent_shape, 0),
            random_conditions(session.manifest, 0),
            sampler=sampler_for(session, config.steps),
            cache=config,
            guidance=session.manifest.pipeline.guidance,
            every_step_full=every_step_full,
        )
    finally:
        clock.start, clock.seconds = start, seconds  # type: ignore[method-assign]
    step_ms, full = result.step_seconds * 1e3, result.full_steps
    return {
        "loop_ms": float(step_ms.sum()),
        "full_ms": float(np.median(step_ms[full])),
        "forecast_ms": None if full.all() else float(np.median(step_ms[~full])),
        "host_us_per_step": (asked[1] - asked[0]) / len(full) * 1e6,
        "allocations": sum(loop_counts[name] for name in _ALLOCATING),
        "synchronizations": sum(loop_counts[name] for name in _WAITING),
        "launches": loop_counts["cudaGraphLaunch"],
        "copies": loop_counts["cudaMemcpyAsync"],
        "free": load_cuda().free_bytes(),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows of docs/performance.md."""
    print("| model | full step | forecast step | loop, all full | loop | speed-up | eta | memory (plan) | host |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        every, loop = row["every_step_full"], row["forecasting"]
        memory = f"{row['peak_bytes'] / 1e6:.0f} MB ({row['peak_over_plan']:+.1%})"
        times = f"{loop['full_ms']:.3f} ms | {loop['forecast_ms']:.3f} ms | {every['loop_ms']:.1f} ms"
        print(
            f"| {row['model']} {row['precision']}, {row['state']} | {times} | "
            f"{loop['loop_ms']:.1f} ms | {row['speedup']:.2f}x | {row['eta']:.3f} | {memory} | "
            f"{loop['host_us_per_step']:.0f} us, {loop['allocations']} allocations, {loop['synchronizations']} waits |"
        )


if __name__ == "__main__":
    sys.exit(main())
