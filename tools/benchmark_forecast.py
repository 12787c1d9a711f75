"""A forecast step of a published model on this machine's GPU, without the weights that a forecast does not read.

    build-engines --model flux --graphs-only --precision bf16 --backend tensorrt-rtx --output bundles/flux-graphs
    python -m tools.benchmark_forecast bundles/flux-graphs

builds the forecast and the update plan with random weights, reserves a session's whole memory as its plan says, fills
the state with random numbers, and times the step as the session runs it: one row of the step table copied, one CUDA
graph launched.  Prints the bytes that must move, the time, and their ratio beside the measured copy bandwidth.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.profiles import batch_profile
from taylorseer.engines.tensorrt_builder import build_plan
from taylorseer.engines.work import graph_work
from taylorseer.manifest import EngineSpec, Manifest
from taylorseer.runtime.bindings import bind, prove_disjoint
from taylorseer.runtime.device_memory import DeviceMemory
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.roofline import device_copy
from taylorseer.runtime.step_plan import BuiltState
from taylorseer.runtime.tensorrt_backend import TensorRTBackend, TensorRTEngine
from taylorseer.tensorrt_library import load_tensorrt

_RUNS = 50


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="made with --graphs-only")
    parser.add_argument("--backend", default="tensorrt-rtx")
    options = parser.parse_args()
    print(json.dumps(measure(open_bundle(options.bundle), options.backend), indent=1))
    return 0


def measure(bundle: Bundle, flavor: str) -> dict[str, object]:
    """Return the times and bytes of one forecast step."""
    manifest = bundle.manifest
    spec = EngineSpec(backend=flavor, version=load_tensorrt(flavor).version)
    backend = TensorRTBackend(dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, engine=spec)))
    copy = device_copy(backend)
    engines = {kind: engine_of(bundle, backend, kind) for kind in ("forecast", "update")}
    scratch = max(engine.scratch_bytes for engine in engines.values())
    plan = plan_memory(manifest, rows=manifest.rows_per_image, steps=50, scratch_bytes=scratch)
    plan.require_fits(backend.cuda.free_bytes())
    memory = DeviceMemory(backend.cuda, plan)
    try:
        fill(memory)
        seconds = time_step(manifest, backend, engines, memory)
    finally:
        memory.close()
    must = graph_work(bundle.path(manifest.graphs["forecast"].file), batch=manifest.rows_per_image).total_bytes
    return {
        "device": backend.device.name,
        "engine": f"{flavor} {backend.library.version}",
        "model": manifest.model,
        "state": f"{manifest.layout}, order {manifest.order}",
        "state_bytes": plan.bytes_by_use()["state"],
        "session_bytes": plan.total_bytes,
        "bytes_that_must_move": must,
        "step_ms": float(np.median(seconds)) * 1e3,
        "gb_per_second": must / float(np.median(seconds)) / 1e9,
        "copy_gb_per_second": copy,
        "share_of_copy": must / float(np.median(seconds)) / 1e9 / copy,
    }


def engine_of(bundle: Bundle, backend: TensorRTBackend, kind: str) -> TensorRTEngine:
    """Build one engine; the weights that its graph refers to become random, in memory."""
    manifest, graph = bundle.manifest, bundle.manifest.graphs[kind]
    model, random = ir.load(bundle.path(graph.file)), np.random.default_rng(0)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            shape = [int(size) for size in value.const_value.shape]
            numbers = random.standard_normal(shape, np.float32) / np.sqrt(shape[-1])
            value.const_value = ir.tensor(numbers.astype(value.const_value.dtype.numpy()), name=value.name)
    rows = manifest.rows_per_image
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "graph.onnx"
        ir.save(model, path)
        profile = batch_profile(graph, smallest=rows, best=rows, largest=rows)
        plan = build_plan(backend.library, path, profile, TensorRTOptions(), backend.device.compute_capability)
    return backend.engine_of(kind, bytes(plan), graph)


def fill(memory: DeviceMemory) -> None:
    """Random numbers everywhere: zeros are faster than what a model has."""
    random = np.random.default_rng(1)
    for name, tensor in memory.plan.tensors.items():
        if tensor.use in ("state", "carry", "step", "latent"):
            count = min(tensor.nbytes // 2, 1 << 20)
            # The upper half of a float32 in (-2, 2) is a bfloat16.
            block = (random.uniform(-1, 1, count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            whole = np.resize(block, tensor.nbytes // 2)
            memory[name].write(whole.view(tensor.numpy_dtype) if tensor.nbytes % 4 == 0 else whole)


def time_step(
    manifest: Manifest, backend: TensorRTBackend, engines: dict[str, TensorRTEngine], memory: DeviceMemory
) -> NDArray[np.float64]:
    """Return the seconds of each of several forecast steps, run as a session runs them, on all state that there is."""
    variants = BuiltState.of_bundle(manifest).variants()["forecast"]
    steps = []
    for number in range(2 * variants):
        calls = []
        for kind, engine in engines.items():
            names = bind(manifest, kind, variant=number // 2, turn=number % 2)
            prove_disjoint(manifest.graphs[kind], names, memory.plan)
            calls.append(engine.bind({name: memory[tensor] for name, tensor in names.items()}))
        steps.append(backend.sequence(calls))
    inputs, clock = memory.step_inputs(), memory.clock(_RUNS + 1)
    for _ in range(2):  # the first time to warm up
        clock.start()
        for run in range(_RUNS):
            inputs.select(run % memory.plan.steps, full=False)
            steps[run % len(steps)].run()
            clock.mark()
        seconds = clock.seconds()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
