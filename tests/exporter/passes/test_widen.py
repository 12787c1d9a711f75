"""No 16-bit number is left, and the weights are the same numbers."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from taylorseer.exporter.data_files import load_graph
from taylorseer.exporter.passes.widen import widen

ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding to each type."""

NARROW = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def picture(dtype: str) -> ir.Model:
    """``Cast(latent) -> MatMul(., W) -> Add(., 1) -> Cast(to=float)`` in ``dtype``, as the exporter writes it."""
    number, one = {"float16": (10, 0x3C00), "bfloat16": (16, 0x3F80)}[dtype]  # the type, and the bits of 1.0
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] latent) => (float[B,3] y) '
        f"{{ narrow = Cast<to={number}>(latent) product = MatMul(narrow, W) "
        f"one = Constant<value = {dtype}[1] {{{one}}}>() sum = Add(product, one) y = Cast<to=1>(sum) }}"
    )
    values = (
        np.random.default_rng(0).standard_normal((4, 3)).astype(ml_dtypes.bfloat16 if dtype != "float16" else dtype)
    )
    weight = ir.Value(name="W", const_value=ir.tensor(values, name="W"), shape=ir.Shape([4, 3]))
    weight.type = ir.TensorType(ir.DataType(number))
    model.graph.register_initializer(weight)
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "W":
                node.replace_input_with(index, weight)
        for output in node.outputs:
            if output.name != "y":
                output.type = ir.TensorType(ir.DataType(number))
    return model


def data_types(model: ir.Model) -> set[ir.DataType | None]:
    """Return the types of all values, and those that casts and constants name."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    named = [attribute for node in model.graph for attribute in node.attributes.values()]
    casts = {ir.DataType(attribute.as_int()) for attribute in named if attribute.name == "to"}
    constants = {a.as_tensor().dtype for a in named if a.type == ir.AttributeType.TENSOR}
    weights = {value.const_value.dtype for value in values if value.const_value is not None}
    return {value.dtype for value in values} | casts | constants | weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_docstrings_graph_before_and_after(dtype: str, run_model: Any) -> None:
    model = picture(dtype)
    weight = model.graph.initializers["W"].const_value
    assert weight is not None
    narrow = weight.numpy()
    assert data_types(model) & NARROW
    operators = [node.op_type for node in model.graph]
    assert widen(model)
    assert data_types(model) == {ir.DataType.FLOAT}
    assert [node.op_type for node in model.graph] == operators
    wide = model.graph.initializers["W"].const_value
    assert wide is not None
    assert np.array_equal(wide.numpy().view(np.uint32), narrow.astype(np.float32).view(np.uint32))
    latent = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    expected = latent.astype(np.float64) @ narrow.astype(np.float64) + 1
    assert run_model(model, {"latent": latent})["y"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert not widen(model)


def test_the_values_are_those_of_the_original_without_its_rounding(run_model: Any) -> None:
    latent = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    narrow, wide = picture("float16"), picture("float16")
    widen(wide)
    after = run_model(wide, {"latent": latent})["y"]
    # ONNX Runtime's CPU computes in float32 what it is given in float16; ONNX's own evaluator rounds every result.
    evaluator: Any = ReferenceEvaluator(ir.to_proto(narrow))
    (before,) = evaluator.run(None, {"latent": latent})
    # The latent is rounded, each product's sum and the last sum: in units of what was added up, not of the result.
    weight = np.abs(narrow.graph.initializers["W"].const_value.numpy().astype(np.float32))  # type: ignore[union-attr]
    assert (np.abs(before - after) <= 3 * ROUNDING["float16"] * (np.abs(latent) @ weight + 1)).all()
    assert not np.array_equal(before, after), "the original rounds"


def test_a_graph_without_16_bit_values_stays(whole_model: Any) -> None:
    model = whole_model("dit-tiny")
    before = ir.to_proto(model).SerializeToString()
    assert not widen(model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(("precision", "kind"), [("fp16", "full"), ("fp16", "forecast")])
def test_a_whole_graph_widened(bundles: Any, run_model: Any, tmp_path: pathlib.Path, precision: str, kind: str) -> None:
    """Every weight of a real graph, also one that lies in the bundle's file, is the same number afterwards."""
    bundle = bundles("dit-tiny", precision=precision)
    narrow, model = load_graph(bundle, kind), load_graph(bundle, kind)  # another test may have linked the weights
    assert data_types(narrow) & NARROW and widen(model)
    assert not data_types(model) & NARROW
    ir.save(model, tmp_path / "wide.onnx", external_data="weights.data")
    wide = ir.load(tmp_path / "wide.onnx").graph.initializers
    assert set(wide) == set(narrow.graph.initializers)
    for name, value in narrow.graph.initializers.items():
        before, after = value.const_value, wide[name].const_value
        assert before is not None and after is not None
        numbers = before.numpy().astype(np.float32) if before.dtype in NARROW else before.numpy()
        assert np.array_equal(numbers, after.numpy()), name
