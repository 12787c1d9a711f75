"""The TensorRT builder: one plan for each graph and compute capability, taken from the engine store where it is there.

One code path for TensorRT 10.13 and newer, TensorRT 11 and TensorRT-RTX: strongly typed networks, whose types are those
of the ONNX graph.  The parser is called directly, because its errors name the node.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import taylorseer
from taylorseer.cuda import load_cuda
from taylorseer.engines.builder_config import builder_config, check_timing_cache, keep_timing_cache
from taylorseer.engines.fingerprint import PlanRecipe, graph_digest, weights_digest
from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.plan_process import build_plan_apart
from taylorseer.engines.profiles import ShapeRange, batch_profile
from taylorseer.engines.store import EngineStore
from taylorseer.errors import BackendError, DependencyError, DeviceError
from taylorseer.manifest import EngineSpec, Manifest, PlanSpec
from taylorseer.tensorrt_library import Messages, TensorRT, without_collector

__all__ = ["build_plan", "build_tensorrt", "target_capabilities"]

_LOWEST_CAPABILITY = {"bf16": (8, 0), "fp16": (7, 0), "fp32": (0, 0)}
"""Below these a GPU has no instructions for the precision."""

Progress = Callable[[str, float], None]


def build_tensorrt(
    folder: pathlib.Path,
    manifest: Manifest,
    library: TensorRT,
    options: TensorRTOptions,
    store: EngineStore,
    progress: Progress = lambda what, fraction: None,
) -> EngineSpec:
    """Put a plan of every graph of the bundle in ``folder`` into ``folder/plans``; return what the manifest says of it.

    Args:
        folder: where the graphs lie.
        manifest: what the exporter wrote.
        library: TensorRT.
        options: build choices.
        store: where plans are kept; an equal one is not built again.
        progress: called with what is being done and the fraction (0..1) that is behind.

    Raises:
        BackendError: TensorRT refuses a graph, a precision or an option; the message names the node.
        DeviceError: no compute capability was given, and there is no GPU to ask.
        StoreError, OutputError: the store cannot be used, or the disk is full.
    """
    capabilities = target_capabilities(library, options, manifest.precision)
    check_timing_cache(options)
    (folder / "plans").mkdir(exist_ok=True)
    kinds = sorted(manifest.graphs)
    plans: list[PlanSpec] = []
    for capability in capabilities:
        for kind in kinds:
            progress(f"building the {kind} engine for {capability}", len(plans) / (len(kinds) * len(capabilities)))
            plans.append(_stored_plan(folder, manifest, library, options, store, kind, capability))
    return EngineSpec(
        backend=library.flavor, version=library.version, plans=tuple(plans), options=options.that_change_a_plan()
    )


def target_capabilities(library: TensorRT, options: TensorRTOptions, precision: str) -> tuple[str, ...]:
    """Return the compute capabilities to build for: those asked for, or that of the GPU here.

    Raises:
        BackendError: this TensorRT does not build for one, or the precision does not exist there.
        DeviceError: none was asked for, and there is no GPU here.
    """
    ahead = library.ahead_of_time
    for capability in options.compute_capability:
        if capability not in ahead:
            known = f"it builds for {', '.join(ahead)}" if ahead else "it builds for the GPU of this machine alone"
            raise BackendError(
                f"{library.flavor} {library.version} cannot build for compute capability {capability} ahead of time: "
                f"{known}. Leave out --compute-capability on a machine with that GPU."
            )
    capabilities = options.compute_capability or (_present_capability(ahead),)
    for capability in capabilities:
        lowest = _LOWEST_CAPABILITY[precision]
        if tuple(map(int, capability.split("."))) < lowest:
            raise BackendError(
                f"GPUs of compute capability {capability} have no {precision}, which begins at "
                f"{lowest[0]}.{lowest[1]}: use --precision fp16, or another --compute-capability."
            )
    return capabilities


def _present_capability(ahead: Sequence[str]) -> str:
    try:
        return load_cuda().device().compute_capability
    except (DeviceError, DependencyError) as error:
        advice = f"--compute-capability {ahead[-1]} (one of {', '.join(ahead)})" if ahead else "a machine with one"
        raise DeviceError(
            f"Plans are built for the GPU of this machine, and there is none to ask: {error} To build "
            f"without a GPU give {advice}."
        ) from error


def _stored_plan(
    folder: pathlib.Path,
    manifest: Manifest,
    library: TensorRT,
    options: TensorRTOptions,
    store: EngineStore,
    kind: str,
    capability: str,
) -> PlanSpec:
    graph, largest = manifest.graphs[kind], manifest.sizes["max_batch"]
    rows = min(manifest.rows_per_image, largest)
    profile = batch_profile(graph, smallest=rows, best=rows, largest=largest, step_rows=manifest.prepare_rows)
    file = folder / graph.file
    recipe = PlanRecipe(
        graph_sha256=graph_digest(file),
        weights_sha256=weights_digest(file),
        profiles=tuple(dataclasses.astuple(entry) for entry in profile),
        precision=manifest.precision,
        options=options.that_change_a_plan(),
        flavor=library.flavor,
        tensorrt_version=library.version,
        compute_capability=capability,
        tool_version=taylorseer.__version__,
    )
    stored = store.get_or_build(recipe, lambda: build_plan_apart(library, file, profile, options, capability))
    name = f"plans/{kind}-{capability}.plan"
    stored.export(folder / name)
    return PlanSpec(kind=kind, file=name, compute_capability=capability, fingerprint=stored.fingerprint)


def build_plan(
    library: TensorRT,
    graph: pathlib.Path,
    profile: Sequence[ShapeRange],
    options: TensorRTOptions,
    capability: str,
) -> Any:
    """Return the serialized plan of one ONNX file, an object with the buffer protocol.

    Args:
        library: TensorRT.
        graph: the ONNX file; its weights lie beside it.
        profile: the shapes to serve.
        options: build choices.
        capability: one that the library builds for ahead of time, or that of the GPU here.

    Raises:
        BackendError: the parser or the builder refuses the graph; the message has their reasons.
    """
    trt, messages = library.module, library.messages()
    messages.verbosity = options.verbosity
    with without_collector():
        builder = trt.Builder(messages)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        _parse(library, network, graph, messages)
        config = builder_config(library, builder, network, profile, options, capability)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(
            f"{library.flavor} {library.version} cannot build {graph.name} for compute capability {capability}: "
            f"{messages.reason()} -- try another --precision, or leave out builder options."
        )
    keep_timing_cache(options, config)
    return plan


def _parse(library: TensorRT, network: Any, graph: pathlib.Path, messages: Messages) -> None:
    parser = library.module.OnnxParser(network, messages)
    if parser.parse_from_file(str(graph)):
        return
    reasons = [_parser_reason(parser.get_error(index)) for index in range(parser.num_errors)]
    raise BackendError(
        f"{library.flavor} {library.version} cannot parse {graph.name}: {'; '.join(reasons) or messages.reason()}"
    )


def _parser_reason(error: Any) -> str:
    """Return one line: the node, if it is about one, the kind of error, and what the parser says of it."""
    lines = [line for line in error.desc().splitlines() if "catchCudaError" not in line]  # of probing for a GPU
    reason = f"{error.code().name}: {' '.join(lines)}"
    return f"node {error.node_name()!r} ({error.node_operator()}): {reason}" if error.node_operator() else reason
