"""``export()``: from a model's name to the two graphs of a bundle, as one flat function."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

import taylorseer
from taylorseer.accumulators import accumulators_of
from taylorseer.bundle import BundleDraft, require_space
from taylorseer.config import CacheConfig
from taylorseer.exporter.checkpoints import Checkpoint
from taylorseer.exporter.data_files import place_weights
from taylorseer.exporter.families import FAMILIES, ModelInput, NamedModel, Sizes
from taylorseer.exporter.features import Feature, find_features
from taylorseer.exporter.folded_state import FoldOptions
from taylorseer.exporter.graph_specs import graph_spec
from taylorseer.exporter.imported import ImportedModel, import_model, require_precision
from taylorseer.exporter.passes.cleaning import clean
from taylorseer.exporter.passes.exact_timesteps import keep_timesteps_exact
from taylorseer.exporter.passes.modulated_projection import modulate_weights
from taylorseer.exporter.passes.wide_products import sum_products_wide
from taylorseer.exporter.passes.wide_residual import widen_residual
from taylorseer.exporter.prepare import STEP_BATCH
from taylorseer.exporter.stages import LiveFeature, Stages, split_stages
from taylorseer.exporter.tracing import TORCH_DTYPES, trace
from taylorseer.exporter.update import update_graph
from taylorseer.exporter.weights import RandomWeights, WeightSource, attach_weights, store_weights
from taylorseer.manifest import (
    FORMAT_VERSION,
    EngineSpec,
    FeatureSpec,
    FoldForm,
    GraphSpec,
    Layout,
    Manifest,
    PipelineSpec,
)

__all__ = ["ExportRequest", "export", "imported_model", "split_model", "traced_model"]

_MOST_PREPARE_ROWS = 64
"""Rows that prepare takes at once: the 50 steps of most requests, and a batch that keeps any device busy."""

_PREPARE_BYTES = 64 * 2**20
"""Inputs that prepare takes at once; HunyuanVideo's text comes once for each timestep."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction (0..1) of the export that is behind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is to be exported."""

    model: NamedModel
    sizes: Sizes
    precision: str = "fp32"
    """``fp32``, ``fp16`` or ``bf16``."""
    residual: Literal["model", "fp32"] = "model"
    """Dtype of the residual stream: the precision's, or float32, which costs traffic and keeps bits."""
    layout: Layout | Literal["auto"] = "history"
    """What is remembered; ``auto``: folded where that is proven, otherwise history."""
    accumulators: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the folded state's accumulators."""
    flush_group: int | None = None
    """Features that the folded state sums at once; None: as many as fit 2 GiB, 12 at the most."""
    fold_form: FoldForm = "channels"
    """How the full graph folds: ``chains`` for TensorRT, ``channels`` for ONNX Runtime; some products are written for
    the one or the other as well."""
    cache: CacheConfig
    """The bundle's default; its order is the largest that the graphs serve."""
    checkpoint: Checkpoint | None = None
    """None: random weights."""
    onnx: pathlib.Path | None = None
    """A model that was exported elsewhere, with its weights: split instead of a trace, and instead of a checkpoint."""
    graphs_only: bool = False
    """Leave the weights out: for inspecting a model of any size, not for running it."""


def export(request: ExportRequest, draft: BundleDraft, progress: Progress = lambda what, fraction: None) -> Manifest:
    """Write the graphs and the weights into ``draft``; return the manifest so far.

    Raises:
        ModelError: sizes that the family does not have.
        CheckpointError: a checkpoint or an ONNX file that is missing, or of another family or size.
        GraphError: features that were not found, or a graph that cannot be split.
        OutputError: too little space for the weights.
    """
    graphs = draft.path("graphs/full.onnx").parent
    if request.onnx is not None:
        progress("opening the ONNX file", 0.0)
        imported, inputs = imported_model(request, request.onnx)
        model = imported.model
    else:
        progress("tracing the transformer", 0.0)
        model, inputs = traced_model(request)
    features = find_features(model.graph, FAMILIES[request.model.family].features)
    if request.onnx is not None:
        require_precision(features, request.precision, request.onnx)
        if not request.graphs_only:
            place_weights(imported.files, graphs, lambda part: progress("copying the weights", 0.6 + 0.3 * part))
    elif not request.graphs_only:
        progress("storing the weights", 0.6)
        source = _weight_source(request, model)
        attach_weights(model, source, TORCH_DTYPES[request.precision])
        require_space(graphs, _weight_bytes(model))
        store_weights(model, graphs, lambda done, total: progress("storing the weights", 0.6 + 0.3 * done / total))
    else:
        _refer_to_absent_weights(model)
    progress("splitting the graph", 0.9)
    stages = _split(request, model, inputs, features)
    pipeline = _pipeline(request, inputs)
    update = update_graph(graph_spec(stages.full, "", inputs), pipeline)
    specs = {}
    graphs_by_kind = {"prepare": stages.prepare, "full": stages.full, "forecast": stages.forecast, "update": update}
    for kind, graph in graphs_by_kind.items():
        ir.save(_releasable(graph), draft.path(f"graphs/{kind}.onnx"))
        specs[kind] = graph_spec(graph, f"graphs/{kind}.onnx", inputs)
    if request.checkpoint is not None:
        request.checkpoint.copy_words(draft)
    progress("exported", 1.0)
    return _manifest(request, stages, specs, pipeline)


def traced_model(request: ExportRequest) -> tuple[ir.Model, tuple[ModelInput, ...]]:
    """Return the cleaned graph of the whole transformer (parameters without data) and its inputs."""
    family, config = FAMILIES[request.model.family], model_config(request)
    inputs = family.inputs(config, request.model, request.sizes)
    constants = family.constants(config, request.model, request.sizes)
    model = trace(family, config, inputs, constants, request.precision)
    clean(model)
    keep_timesteps_exact(model)
    return model, inputs


def imported_model(request: ExportRequest, file: pathlib.Path) -> tuple[ImportedModel, tuple[ModelInput, ...]]:
    """Return the cleaned graph of the transformer in the ONNX file, and its inputs."""
    family, config = FAMILIES[request.model.family], model_config(request)
    inputs = family.inputs(config, request.model, request.sizes)
    constants = family.constants(config, request.model, request.sizes)
    imported = import_model(file, family, inputs, constants)
    keep_timesteps_exact(imported.model)
    return imported, inputs


def split_model(request: ExportRequest, *, keep_dead: bool = False) -> Stages:
    """Return the graphs in memory, with their weights; for parity checks of small models."""
    model, inputs = traced_model(request)
    attach_weights(model, _weight_source(request, model), TORCH_DTYPES[request.precision])
    features = find_features(model.graph, FAMILIES[request.model.family].features)
    return _split(request, model, inputs, features, keep_dead=keep_dead)


def _split(
    request: ExportRequest,
    model: ir.Model,
    inputs: tuple[ModelInput, ...],
    features: Sequence[Feature],
    *,
    keep_dead: bool = False,
) -> Stages:
    if request.residual == "fp32":
        widen_residual(model, [feature.value for feature in features])
    if request.fold_form == "channels":
        modulate_weights(model)
    else:
        sum_products_wide(model)
    roles = {spec.name: spec.role for spec in inputs}
    return split_stages(
        model,
        features,
        roles=roles,
        order=request.cache.order,
        layout=request.layout,
        fold=_fold_options(request),
        keep_dead=keep_dead,
    )


def _fold_options(request: ExportRequest) -> FoldOptions:
    return FoldOptions(
        accumulators=accumulators_of(request.cache.schedule(), request.cache.order),
        dtype={"fp32": ir.DataType.FLOAT, "bf16": ir.DataType.BFLOAT16}[request.accumulators],
        flush_group=request.flush_group,
        form=request.fold_form,
    )


def model_config(request: ExportRequest) -> Mapping[str, Any]:
    """Return the diffusers config: the checkpoint's own, or the named model's."""
    return request.model.config if request.checkpoint is None else request.checkpoint.config


def _weight_source(request: ExportRequest, model: ir.Model) -> WeightSource:
    if request.checkpoint is not None:
        return request.checkpoint.weights
    shapes = {
        name: tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
        for name, value in model.graph.initializers.items()
        if value.const_value is None and value.shape is not None
    }
    return RandomWeights(shapes)


def _weight_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.LazyTensor)
    )


def _refer_to_absent_weights(model: ir.Model) -> None:
    """Let parameters point into a weights file that is not written, each at its own offset."""
    offset = 0
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            assert value.shape is not None and value.dtype is not None
            count = int(np.prod([int(size) for size in value.shape]))  # type: ignore[arg-type]
            length = count * value.dtype.itemsize
            value.const_value = ir.ExternalTensor(
                "weights.data", offset, int(length), value.dtype, shape=value.shape, name=name
            )
            offset += int(length)


def _releasable(graph: ir.Model) -> ir.Model:
    """Drop the exporter's stack traces and this machine's paths from what is published."""
    for node in graph.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        node.metadata_props.clear()
        if scopes:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    for value in graph.graph.initializers.values():
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.producer_name, graph.producer_version = "taylorseer-trt", taylorseer.__version__
    return graph


def _feature_spec(feature: LiveFeature) -> FeatureSpec:
    return FeatureSpec(name=feature.name, shape=feature.shape, dtype=feature.dtype.numpy().name, rows=feature.rows)


def _pipeline(request: ExportRequest, inputs: tuple[ModelInput, ...]) -> PipelineSpec:
    """Return the named model's pipeline, as far as the checkpoint and the graph agree."""
    pipeline: PipelineSpec = request.model.pipeline
    if request.checkpoint is not None:
        pipeline = dataclasses.replace(pipeline, scheduler=request.checkpoint.scheduler or pipeline.scheduler)
    else:
        pipeline = dataclasses.replace(pipeline, text="none")
    if not any(spec.role == "guidance" for spec in inputs) and pipeline.guidance_mode == "embedded":
        pipeline = dataclasses.replace(pipeline, guidance_mode="none")
    return pipeline


def _manifest(request: ExportRequest, stages: Stages, graphs: dict[str, GraphSpec], pipeline: PipelineSpec) -> Manifest:
    origin = "random" if request.checkpoint is None else request.checkpoint.weights.origin
    if request.onnx is not None:
        origin = f"onnx:{request.onnx.name}"
    if request.graphs_only:
        origin = "none"
    return Manifest(
        format_version=FORMAT_VERSION,
        tool_version=taylorseer.__version__,
        model=request.model.name,
        family=request.model.family,
        precision=request.precision,
        sizes=dataclasses.asdict(request.sizes),
        layout=stages.layout,
        layout_reason=stages.layout_reason,
        folding=stages.folded.spec(stages.live[0].dtype.itemsize) if stages.folded else None,
        order=request.cache.order,
        prepare_rows=_prepare_rows(graphs["prepare"], request.sizes.max_batch),
        cache=request.cache.to_json(),
        pipeline=pipeline,
        features=tuple(_feature_spec(feature) for feature in stages.live),
        dead_features=stages.dead,
        graphs=graphs,
        engine=EngineSpec(backend="none", version=""),
        weights=origin,
        config=_published_config(model_config(request)),
        files={},
    )


def _prepare_rows(prepare: GraphSpec, max_batch: int) -> int:
    """Return the rows that prepare takes at once: as many as fit the budget with all that comes once for each."""
    repeated = [spec.shape for spec in prepare.inputs if STEP_BATCH in spec.shape]
    row_bytes = sum(4 * math.prod(int(size) for size in shape[1:]) for shape in repeated)
    return max(max_batch, min(_MOST_PREPARE_ROWS, _PREPARE_BYTES // max(row_bytes, 1)))


def _published_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out diffusers' bookkeeping but the class: ``_name_or_path`` may be a path of this machine."""
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}
