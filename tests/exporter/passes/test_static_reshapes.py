"""Reshapes to a computed shape become reshapes to a constant one."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from taylorseer.exporter.passes.cleaning import drop_unused
from taylorseer.exporter.passes.static_reshapes import make_reshapes_static

COMPUTED = "all = Shape(other) batch = Slice(all, zero, one) sizes = Concat<axis=0>(batch, rest) y = Reshape(x, sizes)"


def parse(rest: str, shape: list[int | str]) -> ir.Model:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[B,1696] x, float[B,7] other) => (float[?,?,?,?] y) '
        f"<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[3] rest = {{{rest}}}> {{ {COMPUTED} }}"
    )
    model.graph.outputs[0].shape = ir.Shape(shape)
    return model


def test_the_docstrings_graph_before_and_after(run_model: Any) -> None:
    model = parse("53, 2, 16", ["B", 53, 2, 16])
    x = np.random.default_rng(0).standard_normal((3, 1696)).astype(np.float32)
    before = run_model(model, {"x": x, "other": np.zeros((3, 7), np.float32)})["y"]
    assert make_reshapes_static(model)
    drop_unused(model)
    (node,) = model.graph
    assert node.op_type == "Reshape" and node.inputs[1] is not None and node.inputs[1].const_value is not None
    assert node.inputs[1].const_value.numpy().tolist() == [-1, 53, 2, 16]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert np.array_equal(run_model(model, {"x": x})["y"], before)
    assert not make_reshapes_static(model)


@pytest.mark.parametrize("shape", [["B", "R", 2, 16], ["B", 0, 2, 16]], ids=["two dynamic", "an empty one"])
def test_a_shape_that_one_minus_one_cannot_tell_stays_computed(shape: list[int | str]) -> None:
    model = parse("53, 2, 16", shape)
    assert not make_reshapes_static(model)
    assert len(model.graph) == 4


def test_an_unknown_shape_stays_computed() -> None:
    model = parse("53, 2, 16", ["B", 53, 2, 16])
    model.graph.outputs[0].shape = None
    assert not make_reshapes_static(model)


def test_other_nodes_are_left_alone() -> None:
    model = parse("53, 2, 16", ["B", 53, 2, 16])
    common.IdentityEliminationPass()(model)
    make_reshapes_static(model)
    assert [node.op_type for node in model.graph] == ["Shape", "Slice", "Concat", "Reshape"]
