"""Cleaning folds constants and merges equal nodes, and never reads a parameter."""

from typing import Any

import numpy as np
import onnx_ir as ir

from taylorseer.exporter.passes.cleaning import clean, drop_unused, finish


def parse(inputs: str, body: str, initializers: str = "") -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[B,4] y) <{initializers}> {{ {body} }}'
    )


def test_constants_are_folded_and_equal_nodes_merged(run_model: Any) -> None:
    model = parse(
        "float[B,4] x",
        "t = Sin(table) u = Sin(table) a = Mul(x, t) c = Mul(x, u) y = Add(a, c)",
        "float[4] table = {0.0, 0.5, 1.0, 1.5}",
    )
    x = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    before = run_model(model, x)["y"]
    clean(model)
    assert [node.op_type for node in model.graph] == ["Mul", "Add"]
    # The folding sine is not ONNX Runtime's: the last bit may differ.
    np.testing.assert_allclose(run_model(model, x)["y"], before, rtol=1e-6)


def test_a_parameter_without_data_stays_without_data() -> None:
    model = parse("float[B,4] x", "t = Neg(weight) y = Mul(x, t)", "float[4] weight = {1.0, 2.0, 3.0, 4.0}")
    weight = model.graph.initializers["weight"]
    weight.shape, weight.type = ir.Shape([4]), ir.TensorType(ir.DataType.FLOAT)
    weight.const_value = None
    clean(model)
    assert [node.op_type for node in model.graph] == ["Neg", "Mul"]
    assert model.graph.initializers["weight"].const_value is None


def test_constants_become_initializers() -> None:
    model = parse("float[B,4] x", "two = Constant<value_float=2.0>() y = Mul(x, two)")
    clean(model)
    assert [node.op_type for node in model.graph] == ["Mul"]
    assert len(model.graph.initializers) == 1


def test_what_no_output_needs_is_dropped() -> None:
    model = parse("float[B,4] x, float[B,4] dead", "z = Mul(dead, w) y = Neg(x)", "float[4] w = {1.0, 1.0, 1.0, 1.0}")
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["Neg"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert not model.graph.initializers


def test_finishing_sorts_nodes_and_makes_names_unique(run_model: Any) -> None:
    model = parse("float[B,4] x", "a = Neg(x) c = Neg(a) y = Add(a, c)")
    first, second, last = model.graph
    second.outputs[0].name = "a"
    model.graph.remove(first)
    model.graph.insert_after(last, first)
    finish(model)
    assert [node.op_type for node in model.graph] == ["Neg", "Neg", "Add"]
    assert len({value.name for node in model.graph for value in node.outputs}) == 3
    assert np.array_equal(run_model(model, {"x": np.ones((1, 4), np.float32)})["y"], np.zeros((1, 4)))
