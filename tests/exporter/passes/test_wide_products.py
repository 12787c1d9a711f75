"""Float16 products are summed in float32: the docstring's graph before and after, and what stays as it is."""

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from taylorseer.exporter.passes.wide_products import sum_products_wide

FLOAT, FLOAT16, BFLOAT16 = (int(dtype) for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16))


def parse(body: str, weight: ir.DataType = ir.DataType.FLOAT16, inputs: str = "float16[2,4] x") -> ir.Model:
    """A model of ONNX's text form with a weight ``w`` [4, 4] and types on every value."""
    dtype = {"FLOAT16": "float16", "BFLOAT16": "bfloat16", "FLOAT": "float"}[weight.name]
    text = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({dtype}[2,4] y) {{ {body} }}'
    model = ir.from_onnx_text(text.replace("float16[2,4] x", f"{dtype}[2,4] x"))
    numbers = np.linspace(-1, 1, 16).reshape(4, 4).astype(weight.numpy())
    tensor = ir.tensor(numbers, name="w")
    value = ir.Value(name="w", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    for node in model.graph:
        for index, given in enumerate(node.inputs):
            if given is not None and given.name == "w":
                node.replace_input_with(index, value)
        for output in node.outputs:
            output.shape, output.type = ir.Shape([2, 4] if output.name != "t" else [4, 4]), ir.TensorType(weight)
    return model


def steps(model: ir.Model) -> list[tuple[str, int | None]]:
    """Operators in their order, casts with what they cast to."""
    model.graph.sort()
    return [(n.op_type, n.attributes["to"].as_int() if n.op_type == "Cast" else None) for n in model.graph]


@pytest.mark.parametrize(
    "body", ["y = MatMul(x, w)", "t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t)", "h = MatMul(x, w) y = Relu(h)"]
)
def test_a_product_with_a_weight_is_wrapped(body: str) -> None:
    model = parse(body)
    before = steps(model)
    assert sum_products_wide(model)
    casts = Counter(to for op_type, to in steps(model) if op_type == "Cast")
    assert casts == {FLOAT: 2, FLOAT16: 1}
    assert [step for step in steps(model) if step[0] != "Cast"] == before
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    assert product.outputs[0].dtype == ir.DataType.FLOAT
    (output,) = model.graph.outputs
    assert (output.name, output.dtype) == ("y", ir.DataType.FLOAT16)
    assert not sum_products_wide(model), "once is enough"


def test_the_numbers_are_those_of_float32_sums() -> None:
    model = parse("y = MatMul(x, w)")
    x = np.linspace(-2, 2, 8).reshape(2, 4).astype(np.float16)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    wide = (x.astype(np.float32) @ weight.numpy().astype(np.float32)).astype(np.float16)
    sum_products_wide(model)
    model.graph.sort()
    outputs: Any = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    y = outputs[0]
    assert y.dtype == np.float16 and np.array_equal(y, wide)


@pytest.mark.parametrize(
    ("body", "weight"),
    [
        ("y = MatMul(x, w)", ir.DataType.BFLOAT16),
        ("y = MatMul(x, w)", ir.DataType.FLOAT),
        ("y = Add(x, x)", ir.DataType.FLOAT16),
    ],
)
def test_everything_else_stays(body: str, weight: ir.DataType) -> None:
    model = parse(body, weight)
    before = steps(model)
    assert not sum_products_wide(model) and steps(model) == before


def test_attention_stays() -> None:
    model = parse("y = MatMul(x, k)", inputs="float16[2,4] x, float16[4,4] k")
    assert not sum_products_wide(model) and [op for op, _ in steps(model)] == ["MatMul"]
