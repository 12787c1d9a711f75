"""Specs of graphs: the role of each name, its feature and index, and sizes and dtypes as the manifest writes them."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import pytest

from taylorseer.exporter.families import ModelInput
from taylorseer.exporter.graph_specs import graph_spec
from taylorseer.manifest import TensorSpec

INPUTS = (
    ModelInput(name="hidden_states", role="latent", shape=("batch", 3, 4)),
    ModelInput(name="timestep", role="timestep", shape=("batch",)),
    ModelInput(name="guidance", role="guidance", shape=("batch",)),
    ModelInput(name="class_labels", role="condition", shape=("batch",), dtype="int64"),
)


def graph(
    *names: str, shape: Sequence[int | str] = ("batch", 4), dtype: ir.DataType = ir.DataType.FLOAT, outputs: int = 0
) -> ir.Model:
    """A graph without nodes, of whose values the last ones are its outputs."""
    values = [ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype)) for name in names]
    inputs, last = values[: len(values) - outputs], values[len(values) - outputs :]
    return ir.Model(ir.Graph(inputs, last, nodes=[], opset_imports={"": 20}, name="graph"), ir_version=10)


def spec_of(name: str, **options: Any) -> TensorSpec:
    (spec,) = graph_spec(graph(name, **options), "", INPUTS).inputs
    return spec


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("hidden_states", "latent"),  # as the family says
        ("timestep", "timestep"),
        ("guidance", "guidance"),
        ("class_labels", "condition"),
        ("latent", "latent"),  # the update graph's own names
        ("next_latent", "next_latent"),
        ("update_numbers", "update_numbers"),
        ("clip", "clip"),
        ("probe", "probe"),
        ("prediction", "prediction"),
        ("coefficients", "coefficients"),
        ("difference_scales", "difference_scales"),
        ("accumulator", "accumulator"),  # the one that a forecast reads
        ("fold_weights", "fold_weights"),
        ("gates_ahead", "gates_ahead"),
        ("prepared.forecast.float32", "prepared"),
        ("prepared.gates.float32", "prepared"),
        ("request.linear_7", "request"),
    ],
)
def test_names_without_a_feature(name: str, role: str) -> None:
    spec = spec_of(name)
    assert (spec.name, spec.role, spec.feature, spec.index) == (name, role, None, None)


@pytest.mark.parametrize("feature", ["transformer_blocks.0.ff", "transformer_blocks.12.attn.to_out.0"])
@pytest.mark.parametrize(("kind", "role"), [("state", "state"), ("previous", "previous"), ("next", "state")])
def test_state_tensors_belong_to_a_feature_and_have_an_index(feature: str, kind: str, role: str) -> None:
    spec = spec_of(f"{kind}.{feature}.2")
    assert (spec.role, spec.feature, spec.index) == (role, feature, 2)


@pytest.mark.parametrize("role", ["accumulator", "carried"])
def test_accumulators_of_a_full_graph_have_an_index_and_no_feature(role: str) -> None:
    spec = spec_of(f"{role}.12")
    assert (spec.role, spec.feature, spec.index) == (role, None, 12)


def test_a_feature_has_no_index() -> None:
    spec = spec_of("feature.transformer_blocks.12.attn.to_out.0")
    assert (spec.role, spec.feature, spec.index) == ("feature", "transformer_blocks.12.attn.to_out.0", None)


def test_a_name_that_no_stage_makes_is_a_bug() -> None:
    with pytest.raises(KeyError, match="mystery"):
        spec_of("mystery")


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (("step_batch", 288), ("step_batch", 288)),
        (("batch", 5, 24), ("batch", 5, 24)),
        (("s77",), ("batch",)),  # what the tracer calls the batch
        ((None, 4), ("batch", 4)),
        ((3,), (3,)),
        ((), ()),
    ],
)
def test_sizes_are_numbers_the_batch_or_the_step_batch(shape: Any, wanted: tuple[int | str, ...]) -> None:
    assert spec_of("prepared.full.float32", shape=shape).shape == wanted


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (ir.DataType.FLOAT, "float32"),
        (ir.DataType.FLOAT16, "float16"),
        (ir.DataType.BFLOAT16, "bfloat16"),
        (ir.DataType.INT64, "int64"),
    ],
)
def test_dtypes_have_numpys_names(dtype: ir.DataType, name: str) -> None:
    assert spec_of("request.text", dtype=dtype).dtype == name


def test_inputs_and_outputs_keep_their_order_and_the_file_is_the_given_one() -> None:
    names = ("hidden_states", "prepared.full.float32", "prediction", "feature.a.b", "feature.a.c")
    spec = graph_spec(graph(*names, outputs=3), "graphs/full.onnx", INPUTS)
    assert spec.file == "graphs/full.onnx"
    assert [tensor.name for tensor in spec.inputs] == list(names[:2])
    assert [tensor.name for tensor in spec.outputs] == list(names[2:])
