"""The pass moves a modulation from the rows to the weight, only where that is less work, and changes no value."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.exporter.passes.modulated_projection import modulate_weights

PICTURE = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[B,16,8] x, float[B,1,8] scale, float[B,1,8] shift, float[8,{columns}] W, float[{columns}] bias)
=> (float[B,16,{columns}] y) {{
  scaled = Mul({product})
  shifted = Add(scaled, shift)
  projected = MatMul(shifted, W)
  y = Add(projected, bias)
}}
"""


def picture(columns: int = 4, product: str = "x, scale") -> ir.Model:
    """The docstring's graph, with all shapes known."""
    model = ir.from_onnx_text(PICTURE.format(columns=columns, product=product))
    for node in model.graph:
        output = node.outputs[0]
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape(["B", 16, columns if node.op_type == "MatMul" or output.name == "y" else 8])
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def numbers(columns: int = 4) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {"x": (2, 16, 8), "scale": (2, 1, 8), "shift": (2, 1, 8), "W": (8, columns), "bias": (columns,)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("product", ["x, scale", "scale, x"])
def test_the_docstrings_graph_before_and_after(product: str, run_model: Any) -> None:
    model = picture(product=product)
    before = run_model(model, numbers())
    assert modulate_weights(model)
    assert operators(model) == ["Transpose", "Mul", "MatMul", "Add", "MatMul", "Add"]
    np.testing.assert_allclose(run_model(model, numbers())["y"], before["y"], rtol=1e-5, atol=1e-5)


def test_a_projection_without_bias_is_rewritten_too(run_model: Any) -> None:
    model = picture()
    projection = next(node for node in model.graph if node.op_type == "MatMul")
    model.graph.outputs[0] = projection.outputs[0]
    before = run_model(model, numbers())
    assert modulate_weights(model)
    assert model.graph.outputs[0].name == "projected"
    np.testing.assert_allclose(run_model(model, numbers())["projected"], before["projected"], rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_large_beside_the_rows_stays() -> None:
    model = picture(columns=8)
    assert not modulate_weights(model)
    assert operators(model) == ["Mul", "Add", "MatMul", "Add"]


def test_modulated_rows_that_someone_else_reads_stay() -> None:
    model = picture()
    shifted = next(value for node in model.graph for value in node.outputs if value.name == "shifted")
    model.graph.outputs.append(shifted)
    assert not modulate_weights(model)


def test_a_modulation_that_differs_by_row_stays() -> None:
    model = picture()
    next(value for value in model.graph.inputs if value.name == "scale").shape = ir.Shape(["B", 16, 8])
    assert not modulate_weights(model)


def test_16_bit_numbers_stay_as_the_model_has_them() -> None:
    model = picture()
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        value.type = ir.TensorType(ir.DataType.BFLOAT16)
    assert not modulate_weights(model)
