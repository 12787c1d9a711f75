"""The residual stream in float32: the docstring's graph before and after, then whole models and their split."""

import functools
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest
from onnx.reference import ReferenceEvaluator

from taylorseer.config import CacheConfig
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.features import Feature, find_features, module_scopes
from taylorseer.exporter.passes.wide_residual import widen_residual
from taylorseer.exporter.passes.widen import widen
from taylorseer.exporter.stages import Stages, split_stages
from taylorseer.exporter.tracing import TORCH_DTYPES
from taylorseer.exporter.weights import RandomWeights, attach_weights
from taylorseer.exporter.workflow import ExportRequest, traced_model
from taylorseer.manifest import Role

NARROW = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

ADDITIONS = {"flux-tiny": 11, "dit-tiny": 6, "hunyuan-video-tiny": 10}
"""Two of each block and stream; a single-stream block of FLUX and HunyuanVideo has one."""

TOLERANCE = 2e-3
"""Relative difference of two predictions whose streams are rounded to 11 bits or not: a few roundings in a row."""

PICTURE = "gated = Mul(gate, feature) h2 = Add(h1, gated) n = Neg(h2) y = Cast<to=1>(n)"


def parse(body: str, dtype: str = "float16", inputs: str = "h1 gate feature") -> ir.Model:
    """A model of ONNX's text form over inputs [B,4] of ``dtype``, with types on every value."""
    declared = ", ".join(f"{dtype}[B,4] {name}" for name in inputs.split())
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({declared}) => (float[B,4] y) {{ {body} }}'
    )
    common.ShapeInferencePass()(model)
    return model


def named(model: ir.Model, *names: str) -> list[ir.Value]:
    values = {value.name: value for value in [*model.graph.inputs, *(o for node in model.graph for o in node.outputs)]}
    return [values[name] for name in names]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def meaning(model: ir.Model, inputs: dict[str, Any]) -> npt.NDArray[np.float64]:
    """What ONNX's own evaluator gives, which rounds every result; ONNX Runtime's CPU computes most in float32."""
    evaluator: Any = ReferenceEvaluator(ir.to_proto(model))
    return np.asarray(evaluator.run(None, inputs)[0], np.float64)


@pytest.mark.parametrize("dtype", NARROW)
def test_the_docstrings_graph_before_and_after(dtype: str) -> None:
    model = parse(PICTURE, dtype)
    assert widen_residual(model, named(model, "feature"))
    assert operators(model) == ["Mul", "Cast", "Cast", "Add", "Cast", "Neg", "Cast"]
    (addition,) = (node for node in model.graph if node.op_type == "Add")
    assert dtypes([addition]) == {ir.DataType.FLOAT}
    narrow = ir.DataType.FLOAT16 if dtype == "float16" else ir.DataType.BFLOAT16
    reader = next(node for node in model.graph if node.op_type == "Neg")
    assert dtypes([reader]) == {narrow}
    assert not widen_residual(model, named(model, "feature"))


def test_the_numbers_of_the_docstrings_graph(run_model: Any) -> None:
    model, before = parse(PICTURE), parse(PICTURE)
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal((3, 4)).astype(np.float16) for name in ("h1", "gate", "feature")}
    widen_residual(model, named(model, "feature"))
    after, wanted = run_model(model, inputs)["y"], run_model(before, inputs)["y"]
    gated = np.abs(inputs["gate"] * inputs["feature"]).astype(np.float32)
    # Either is rounded twice, the product and the sum.
    assert (np.abs(after - wanted) <= 2 * 2.0**-11 * (gated + np.abs(wanted))).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_sixty_additions_lose_nothing(dtype: str) -> None:
    """Of features a thousandth of the stream's size, 16 bits lose most; float32 keeps them to the last rounding."""
    adding = " ".join(f"g{n} = Mul(gate, feature) h{n + 1} = Add(h{n}, g{n})" for n in range(1, 61))
    body = f"{adding} n = Neg(h61) y = Cast<to=1>(n)"
    before, after = parse(body, dtype), parse(body, dtype)
    assert widen_residual(after, named(after, "feature"))
    sizes = {"h1": 1.0, "gate": 1.0, "feature": 2.0**-9 if dtype == "bfloat16" else 2.0**-12}
    inputs = {name: np.full((1, 4), size, NARROW[dtype]) for name, size in sizes.items()}
    exact = -(1 + 60 * sizes["feature"])
    half_a_unit = 2.0 ** (-8 if dtype == "bfloat16" else -11)
    assert np.abs(meaning(after, inputs) - exact).max() <= half_a_unit
    assert np.abs(meaning(before, inputs) - exact).max() > 10 * half_a_unit


def test_the_stream_goes_through_joints_and_clamps(run_model: Any) -> None:
    """Where two streams join, in slices of the joint one, and where FLUX clamps float16."""
    body = (
        "g1 = Mul(gate, feature) s1 = Add(h1, g1) g2 = Mul(gate, other) s2 = Add(h2, g2) c2 = Max(s2, h1)"
        " joined = Concat<axis=1>(s1, c2) left, right = Split<axis=1, num_outputs=2>(joined)"
        " g3 = Mul(gate, third) s3 = Add(right, g3) n = Neg(s3) y = Cast<to=1>(n)"
    )
    model = parse(body, inputs="h1 h2 gate feature other third")
    assert widen_residual(model, named(model, "feature", "other", "third"))
    assert dtypes(n for n in model.graph if n.op_type in ("Add", "Max", "Concat", "Split")) == {ir.DataType.FLOAT}
    assert dtypes(n for n in model.graph if n.op_type in ("Mul", "Neg")) == {ir.DataType.FLOAT16}
    inputs = {value.name: np.full((1, 4), 0.5, np.float16) for value in model.graph.inputs}
    assert np.array_equal(run_model(model, inputs)["y"], np.full((1, 4), -1.0))


def test_a_feature_without_a_gate_is_cast_alone() -> None:
    model = parse("feature = Tanh(x) h2 = Add(h1, feature) n = Neg(h2) y = Cast<to=1>(n)", inputs="h1 x")
    assert widen_residual(model, named(model, "feature"))
    assert dtypes(node for node in model.graph if node.op_type == "Add") == {ir.DataType.FLOAT}
    assert dtypes(node for node in model.graph if node.op_type in ("Tanh", "Neg")) == {ir.DataType.FLOAT16}


# Whole models


@functools.cache
def _trace(name: str, precision: str) -> ir.Model:
    model = load_model(name)
    request = ExportRequest(model=model, sizes=model.sizes, precision=precision, cache=CacheConfig(order=1))
    traced, _ = traced_model(request)
    parameters = {str(v.name): v.shape for v in traced.graph.initializers.values() if v.const_value is None}
    shapes = {key: tuple(int(size) for size in shape or ()) for key, shape in parameters.items()}  # type: ignore[arg-type]
    attach_weights(traced, RandomWeights(shapes), TORCH_DTYPES[precision])
    return traced


def traced(name: str, precision: str) -> tuple[ir.Model, list[ir.Value]]:
    """The whole transformer, with weights, and its features' values; the caller may change it."""
    model = _trace(name, precision).clone()
    return model, [feature.value for feature in features_of(name, model)]


def features_of(name: str, model: ir.Model) -> list[Feature]:
    return find_features(model.graph, FAMILIES[load_model(name).family].features)


def dtypes(nodes: Any) -> set[ir.DataType | None]:
    """The types of all that the nodes read and give; integers of a slice's or a split's are left out."""
    values = [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None]
    return {value.dtype for value in values if value.dtype is None or not value.dtype.is_integer()}


def additions(graph: ir.Graph) -> list[ir.Node]:
    """The residual additions: a block's own, of two values of the same rows; a norm's shift is one row for all."""
    own = [
        node for node in graph if node.op_type == "Add" and "transformer_blocks." in "".join(module_scopes(node)[-2:-1])
    ]
    return [node for node in own if _rows(node.inputs[0]) == _rows(node.inputs[1]) > 1]


def _rows(value: ir.Value | None) -> int:
    assert value is not None and value.shape is not None
    return int(value.shape[1]) if len(value.shape) == 3 else 0  # type: ignore[arg-type]


def norms(graph: ir.Graph) -> dict[str | None, set[ir.DataType | None]]:
    return {node.name: dtypes([node]) for node in graph if node.op_type == "LayerNormalization"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_residual_addition_of_a_model(name: str, precision: str) -> None:
    model, features = traced(name, precision)
    narrow = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    residual, before = additions(model.graph), norms(model.graph)
    assert len(residual) == ADDITIONS[name] and dtypes(residual) == {narrow}
    assert before and {narrow} in before.values()
    assert widen_residual(model, features)
    assert dtypes(residual) == {ir.DataType.FLOAT}
    assert norms(model.graph) == before
    assert {feature.dtype for feature in features} == {narrow}, "what is remembered stays as small"
    assert not widen_residual(model, features)


def test_the_same_model_gives_the_same_graph_each_time() -> None:
    """To the byte, names included: plans are found again by their graph."""
    contents = set()
    for _ in range(3):
        model, features = traced("dit-tiny", "fp16")
        widen_residual(model, features)
        contents.add(str([(node.name, [value.name for value in node.outputs]) for node in model.graph]))
    assert len(contents) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_float32_stream_is_left_alone(name: str) -> None:
    model, features = traced(name, "fp32")
    before = ir.to_proto(model).SerializeToString()
    assert not widen_residual(model, features)
    assert ir.to_proto(model).SerializeToString() == before


def example(name: str, seed: int) -> dict[str, npt.NDArray[Any]]:
    model, random = load_model(name), np.random.default_rng(seed)
    values: dict[str, npt.NDArray[Any]] = {}
    for spec in FAMILIES[model.family].inputs(model.config, model, model.sizes):
        shape = [2 if size == "batch" else int(size) for size in spec.shape]
        if spec.role in ("timestep", "guidance"):
            values[spec.name] = np.full(2, 700 * model.pipeline.timestep_scale, np.float32)
        elif spec.dtype == "int64":
            values[spec.name] = np.ones(shape, np.int64)
        else:
            values[spec.name] = random.standard_normal(shape).astype(np.float32)
    return values


@pytest.mark.parametrize("name", MODELS)
def test_the_prediction_is_as_near_to_float32s(name: str) -> None:
    """In ONNX's own evaluator, which rounds every result to float16; the reference has the same weights in float32."""
    (narrow, _), (exact, _), (wide, features) = (traced(name, "fp16") for _ in range(3))
    widen(exact)
    widen_residual(wide, features)
    errors = {"narrow": 0.0, "wide": 0.0}
    for seed in range(3):
        inputs = example(name, seed)
        wanted = meaning(exact, inputs)
        for which, model in (("narrow", narrow), ("wide", wide)):
            errors[which] += float(np.linalg.norm(meaning(model, inputs) - wanted) / np.linalg.norm(wanted))
    assert 0 < errors["wide"] <= errors["narrow"]


def split(name: str, roles: dict[str, Role], *, wide: bool) -> Stages:
    model, values = traced(name, "fp16")
    features = features_of(name, model)
    assert not wide or widen_residual(model, values)
    return split_stages(model, features, roles=roles, order=1, layout="history")


@pytest.mark.parametrize("name", MODELS)
def test_a_split_with_a_wide_stream(name: str, roles: Any, run_model: Any) -> None:
    narrow, wide = (split(name, roles(name), wide=wide) for wide in (False, True))
    assert (wide.live, wide.dead) == (narrow.live, narrow.dead)
    assert len(additions(wide.full.graph)) == ADDITIONS[name]
    for before, after in ((narrow.full, wide.full), (narrow.forecast, wide.forecast)):
        assert len(additions(after.graph)) == len(additions(before.graph)) > 0
        assert dtypes(additions(before.graph)) == {ir.DataType.FLOAT16}
        assert dtypes(additions(after.graph)) == {ir.DataType.FLOAT}
    inputs = example(name, 0)
    found, wanted = (full_prediction(stages, inputs, run_model) for stages in (wide, narrow))
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - wanted) <= TOLERANCE * np.linalg.norm(wanted)


def full_prediction(stages: Stages, inputs: dict[str, npt.NDArray[Any]], run_model: Any) -> npt.NDArray[np.float32]:
    prepared = run_model(stages.prepare, inputs)
    prediction: npt.NDArray[np.float32] = run_model(stages.full, {**inputs, **prepared})["prediction"]
    return prediction
