"""Linear layers of which some outputs are used: narrow weights are bytes of the wide ones."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.exporter.passes.cleaning import drop_unused
from taylorseer.exporter.passes.narrow_linears import narrow_linears, tensor_rows

WIDTH = 4


def modulation(used: str, inputs: str = "float[B,4] x") -> ir.Model:
    """``Split(Gemm(x, W [6d, d], b [6d]))`` as a diffusers modulation exports it."""
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[B,4] y) '
        f"<int64[6] sizes = {{4, 4, 4, 4, 4, 4}}> {{"
        f"z = Gemm<transB=1>(x, W, b) p0, p1, p2, p3, p4, p5 = Split<axis=-1>(z, sizes) {used} }}"
    )
    random = np.random.default_rng(0)
    for name, shape in (("W", (6 * WIDTH, WIDTH)), ("b", (6 * WIDTH,))):
        value = ir.Value(name=name, const_value=ir.tensor(random.standard_normal(shape).astype(np.float32), name=name))
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, used_value in enumerate(node.inputs):
                if used_value is not None and used_value.name == name:
                    node.replace_input_with(index, value)
    for node in model.graph:
        for output in node.outputs:
            width = 6 * WIDTH if node.op_type == "Gemm" else WIDTH
            output.shape, output.type = ir.Shape(["B", width]), ir.TensorType(ir.DataType.FLOAT)
    return model


def test_the_docstrings_graph_before_and_after(run_model: Any) -> None:
    model = modulation("y = Add(p2, p5)")
    x = {"x": np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)}
    before = run_model(model, x)["y"]
    weight = model.graph.initializers["W"].const_value
    assert weight is not None
    assert narrow_linears(model)
    drop_unused(model)
    assert [node.op_type for node in model.graph] == ["Gemm", "Gemm", "Add"]
    assert set(model.graph.initializers) == {"W[8:12]", "b[8:12]", "W[20:24]", "b[20:24]"}
    narrow = model.graph.initializers["W[20:24]"].const_value
    assert narrow is not None and np.array_equal(narrow.numpy(), weight.numpy()[20:24])
    # The same products in the same order, but for a kernel's blocking of another width.
    assert np.allclose(run_model(model, x)["y"], before, rtol=0, atol=1e-6)
    assert not narrow_linears(model)


@pytest.mark.parametrize(
    "used",
    [
        "a = Sum(p0, p1, p2, p3, p4, p5) y = Neg(a)",
        "a = Add(p2, p5) c = ReduceSum(z) y = Add(a, c)",
        "y = Identity(p0)" + " q = Neg(z)",
    ],
    ids=["every part used", "the whole used too", "another user of the whole"],
)
def test_a_linear_that_is_needed_whole_stays(used: str) -> None:
    model = modulation(used)
    assert not narrow_linears(model)
    assert "W" in model.graph.initializers


def test_a_part_that_is_an_output_of_the_graph_counts_as_used(run_model: Any) -> None:
    model = modulation("y = Neg(p2)")
    split = next(node for node in model.graph if node.op_type == "Split")
    model.graph.outputs.append(split.outputs[4])
    assert not narrow_linears(model)
    assert set(run_model(model, {"x": np.zeros((1, WIDTH), np.float32)})) == {"y", "p4"}


def test_a_weight_that_is_computed_stays() -> None:
    model = modulation("y = Add(p2, p5)", "float[B,4] x")
    linear = next(node for node in model.graph if node.op_type == "Gemm")
    negated = ir.node("Neg", [linear.inputs[1]])
    model.graph.insert_before(linear, negated)
    linear.replace_input_with(1, negated.outputs[0])
    assert not narrow_linears(model)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_of_an_external_tensor_are_the_same_bytes(tmp_path: pathlib.Path, dtype: Any) -> None:
    values = np.arange(24).reshape(6, 4).astype(dtype)
    (tmp_path / "weights.data").write_bytes(b"\0" * 64 + values.tobytes())
    data_type = ir.DataType.from_numpy(values.dtype)
    whole = ir.ExternalTensor(
        "weights.data", 64, values.nbytes, data_type, shape=ir.Shape([6, 4]), name="W", base_dir=tmp_path
    )
    rows = tensor_rows(whole, 2, 5, "W[2:5]")
    assert isinstance(rows, ir.ExternalTensor)
    row_bytes = values.nbytes // 6
    assert (rows.offset, rows.length) == (64 + 2 * row_bytes, 3 * row_bytes)
    assert np.array_equal(rows.numpy(), values[2:5])


def test_rows_of_a_tensor_in_memory() -> None:
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    assert np.array_equal(tensor_rows(ir.tensor(values), 1, 3, "rows").numpy(), values[1:3])


def test_a_split_of_rows_is_no_split_of_outputs() -> None:
    """The axis counts: parts along the batch need the whole weight."""
    weight = ir.tensor(np.ones((8, 4), np.float32), name="w")
    bias = ir.tensor(np.ones(8, np.float32), name="b")
    x = ir.Value(name="x", shape=ir.Shape([4, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    parameters = [ir.Value(name=str(tensor.name), shape=tensor.shape, const_value=tensor) for tensor in (weight, bias)]
    linear = ir.node("Gemm", [x, *parameters], attributes={"transB": 1})
    linear.outputs[0].shape = ir.Shape([4, 8])
    split = ir.node("Split", [linear.outputs[0]], attributes={"axis": 0, "num_outputs": 2}, num_outputs=2)
    for output in split.outputs:
        output.shape = ir.Shape([2, 8])
    graph = ir.Graph([x], [split.outputs[1]], nodes=[linear, split], initializers=parameters, opset_imports={"": 20})
    assert not narrow_linears(ir.Model(graph, ir_version=10))
    assert [node.op_type for node in graph] == ["Gemm", "Split"]
