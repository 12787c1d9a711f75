"""A published model at its published size on this machine's GPU: the whole loop, every step full and with forecasting.

    build-engines --model flux --graphs-only --precision bf16 --output bundles/flux-graphs
    python -m tools.benchmark_full_size bundles/flux-graphs --plans out/flux-plans

gives the graphs random weights, builds their plans (once: they stay in the folder), reserves a session and runs the
loops.  Prints one JSON object: times, eta, and the most memory that was in use.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import mmap
import pathlib
import shutil
import sys
import time
from typing import Any

import numpy as np
import onnx_ir as ir

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.cuda import load_cuda
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.plan_process import build_plan_apart
from taylorseer.engines.profiles import batch_profile
from taylorseer.manifest import EngineSpec
from taylorseer.runtime.session import LoadedModel
from taylorseer.runtime.tensorrt_backend import TensorRTBackend, TensorRTEngine
from taylorseer.tensorrt_library import load_tensorrt
from tools.benchmark_gpu import counted, measure

_BLOCK = 1 << 25
"""Random numbers that are drawn; the weights repeat them, which no engine notices and which takes seconds."""

_DEVIATION = 0.02
"""Of a weight: about 1 / sqrt(3072), so that a product of a normed row has a deviation of one."""


def main() -> int:
    """Build what is missing; measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="made with --graphs-only")
    parser.add_argument("--plans", type=pathlib.Path, required=True, metavar="FOLDER", help="where the plans are kept")
    parser.add_argument("--backend", default="tensorrt-rtx")
    parser.add_argument("--build-only", action="store_true")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    build(bundle, options.plans, options.backend)
    if not options.build_only:
        print(json.dumps(run(bundle, options.plans, options.backend), indent=1))
    return 0


def build(bundle: Bundle, plans: pathlib.Path, flavor: str) -> None:
    """Put a plan of every graph into ``plans``, those that are missing; the weights are there meanwhile."""
    missing = [kind for kind in bundle.manifest.graphs if not (plans / f"{kind}.plan").exists()]
    if not missing:
        return
    plans.mkdir(parents=True, exist_ok=True)
    graphs = plans / "graphs"
    shutil.copytree(bundle.path("graphs/full.onnx").parent, graphs, dirs_exist_ok=True)
    start = time.perf_counter()
    size = write_random_weights(graphs)
    print(f"# {size / 1e9:.1f} GB of weights: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for line in pool.map(lambda kind: build_one(bundle, plans, graphs, flavor, kind), missing):
            print(line, file=sys.stderr, flush=True)
    shutil.rmtree(graphs)


def build_one(bundle: Bundle, plans: pathlib.Path, graphs: pathlib.Path, flavor: str, kind: str) -> str:
    """Build one plan; return a line that tells how long it took."""
    start, spec, rows = time.perf_counter(), bundle.manifest.graphs[kind], bundle.manifest.rows_per_image
    profile = batch_profile(spec, smallest=rows, best=rows, largest=rows, step_rows=bundle.manifest.prepare_rows)
    file, capability = graphs / pathlib.Path(spec.file).name, load_cuda().device().compute_capability
    plan = build_plan_apart(load_tensorrt(flavor), file, profile, TensorRTOptions(), capability)
    part = plans / f"{kind}.part"
    part.write_bytes(plan)
    part.rename(plans / f"{kind}.plan")
    return f"# {kind} plan, {len(plan) / 1e9:.2f} GB: {time.perf_counter() - start:.0f} s"


def write_random_weights(graphs: pathlib.Path) -> int:
    """Write the files that the graphs' initializers refer to; return their bytes."""
    sizes: dict[str, int] = {}
    for path in graphs.glob("*.onnx"):
        for value in ir.load(path).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                end = (tensor.offset or 0) + (tensor.length or 0)
                sizes[str(tensor.location)] = max(sizes.get(str(tensor.location), 0), end)
    numbers = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(_DEVIATION)
    block = numbers.astype(ir.DataType.BFLOAT16.numpy()).tobytes()
    for name, size in sizes.items():
        with open(graphs / name, "wb") as file:
            for start in range(0, size, len(block)):
                file.write(block[: min(len(block), size - start)])
    return sum(sizes.values())


class _PlansInAFolder(TensorRTBackend):
    """The TensorRT backend on plans that no bundle has."""

    def __init__(self, bundle: Bundle, plans: pathlib.Path) -> None:
        super().__init__(bundle)
        self._plans = plans

    def load(self, kind: str) -> TensorRTEngine:
        with open(self._plans / f"{kind}.plan", "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._engines[kind] = self.engine_of(kind, content, self._bundle.manifest.graphs[kind])
        return self._engines[kind]


def run(bundle: Bundle, plans: pathlib.Path, flavor: str) -> dict[str, Any]:
    """Return what :func:`tools.benchmark_gpu.measure` does, and the memory of engines and session together."""
    engine = EngineSpec(backend=flavor, version=load_tensorrt(flavor).version)
    manifest = dataclasses.replace(bundle.manifest, engine=engine)
    with counted() as counting:
        backend = _PlansInAFolder(dataclasses.replace(bundle, manifest=manifest), plans)
        before = backend.cuda.free_bytes()
        row = measure(LoadedModel(manifest, backend), backend, before, counting)
    row["peak_with_engines_bytes"] = row["engine_bytes"] + row["peak_bytes"]
    return row


if __name__ == "__main__":
    sys.exit(main())
