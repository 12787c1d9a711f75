"""Selecting between booleans becomes logic; what it was is asked of ONNX's reference, for no backend has it."""

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx.reference import ReferenceEvaluator

from taylorseer.exporter.passes.boolean_where import spell_out_boolean_where


def parse(body: str, dtype: str) -> ir.Model:
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g (bool[N] c, {dtype}[N] a, {dtype}[N] b) => ({dtype}[N] y) '
        f"{{ {body} }}"
    )
    common.ShapeInferencePass()(model)
    return model


def meaning(model: ir.Model, inputs: dict[str, Any]) -> Any:
    evaluator: Any = ReferenceEvaluator(ir.to_proto(model))
    return evaluator.run(["y"], inputs)[0]


def test_the_docstrings_graph_before_and_after(run_model: Any) -> None:
    model = parse("y = Where(c, a, b)", "bool")
    table = np.array(list(itertools.product([False, True], repeat=3)))
    inputs = {"c": table[:, 0].copy(), "a": table[:, 1].copy(), "b": table[:, 2].copy()}
    before = meaning(model, inputs)
    assert spell_out_boolean_where(model)
    assert [node.op_type for node in model.graph] == ["Not", "And", "And", "Or"]
    after = run_model(model, inputs)["y"]
    assert after.dtype == np.bool_ and np.array_equal(after, before)
    assert not spell_out_boolean_where(model)


def test_a_where_in_the_middle_feeds_its_users(run_model: Any) -> None:
    model = parse("z = Where(c, a, b) y = Not(z)", "bool")
    inputs = {
        name: np.array(bits, bool) for name, bits in (("c", [1, 0, 1, 0]), ("a", [1, 1, 0, 0]), ("b", [0, 1, 1, 0]))
    }
    before = meaning(model, inputs)
    assert spell_out_boolean_where(model)
    assert np.array_equal(run_model(model, inputs)["y"], before)


def test_a_where_over_numbers_stays() -> None:
    model = parse("y = Where(c, a, b)", "float")
    assert not spell_out_boolean_where(model)
    assert [node.op_type for node in model.graph] == ["Where"]
