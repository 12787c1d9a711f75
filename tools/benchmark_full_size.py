"""A published model at its published size on this machine's GPU: the whole loop, every step full and with forecasting.

    build-engines --model flux --graphs-only --precision bf16 --backend tensorrt-rtx --output bundles/flux-graphs
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

_NUMBERS = 1 << 29
"""Random numbers that are drawn, 1 GiB in bfloat16."""

_PAGE = 4096
"""Bytes on whose multiples tensors begin."""

_DEVIATION = 0.02
"""Of a weight: about 1 / sqrt(3072), so that a product of a normed row has a deviation of one."""


def main() -> int:
    """Build what is missing; measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="made with --graphs-only")
    parser.add_argument("--plans", type=pathlib.Path, required=True, metavar="FOLDER", help="where the plans are kept")
    parser.add_argument("--backend", default="tensorrt-rtx")
    parser.add_argument("--build-only", nargs="*", metavar="KIND", help="measure nothing; these plans alone, or all")
    parser.add_argument("--compute-capability", help="build for it, without a GPU")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    build(bundle, options.plans, options.backend, options.build_only or list(bundle.manifest.graphs), options)
    if options.build_only is None:
        print(json.dumps(run(bundle, options.plans, options.backend), indent=1))
    return 0


def build(bundle: Bundle, plans: pathlib.Path, flavor: str, kinds: list[str], options: argparse.Namespace) -> None:
    """Put the plans of ``kinds`` into ``plans``, those that are missing; the weights are there meanwhile."""
    missing = [kind for kind in kinds if not (plans / f"{kind}.plan").exists()]
    capability = options.compute_capability or load_cuda().device().compute_capability
    if not missing:
        return
    plans.mkdir(parents=True, exist_ok=True)
    graphs = plans / "graphs"
    graphs.mkdir(exist_ok=True)
    size = give_random_weights(bundle, graphs)
    print(f"# {size / 1e9:.1f} GB of weights", file=sys.stderr, flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for line in pool.map(lambda kind: build_one(bundle, plans, flavor, kind, capability), missing):
            print(line, file=sys.stderr, flush=True)
    shutil.rmtree(graphs)


def build_one(bundle: Bundle, plans: pathlib.Path, flavor: str, kind: str, capability: str) -> str:
    """Build one plan; return a line that tells its size and how long it took."""
    start, spec, rows = time.perf_counter(), bundle.manifest.graphs[kind], bundle.manifest.rows_per_image
    profile = batch_profile(spec, smallest=rows, best=rows, largest=rows, step_rows=bundle.manifest.prepare_rows)
    file = plans / "graphs" / pathlib.Path(spec.file).name
    choice = TensorRTOptions(compute_capability=(capability,)) if capability in _ahead(flavor) else TensorRTOptions()
    plan = build_plan_apart(load_tensorrt(flavor), file, profile, choice, capability)
    part = plans / f"{kind}.part"
    part.write_bytes(plan)
    part.rename(plans / f"{kind}.plan")
    return f"# {kind} plan, {len(plan) / 1e6:.2f} MB: {time.perf_counter() - start:.0f} s"


def _ahead(flavor: str) -> tuple[str, ...]:
    return tuple(load_tensorrt(flavor).ahead_of_time)


def give_random_weights(bundle: Bundle, graphs: pathlib.Path) -> int:
    """Write the graphs with weights out of one file of random numbers; return the bytes of all weights together.

    Each tensor begins at another place of the file, so that no two are equal, and the file is smaller than they are.
    """
    numbers = np.random.default_rng(0).standard_normal(_NUMBERS, np.float32) * np.float32(_DEVIATION)
    numbers.astype(ir.DataType.BFLOAT16.numpy()).tofile(graphs / "random.data")
    pages = iter(np.random.default_rng(1).permutation(2 * _NUMBERS // _PAGE))
    sizes: dict[str, int] = {}
    for spec in bundle.manifest.graphs.values():
        model = ir.load(bundle.path(spec.file))
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                sizes[name] = tensor.nbytes
                place = next(int(page) * _PAGE for page in pages if page * _PAGE + tensor.nbytes <= 2 * _NUMBERS)
                value.const_value = ir.ExternalTensor(
                    "random.data", place, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
                )
        ir.save(model, graphs / pathlib.Path(spec.file).name)
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
    return row


if __name__ == "__main__":
    sys.exit(main())
