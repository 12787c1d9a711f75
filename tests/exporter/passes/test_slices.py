"""Row slices move up: the docstring's graph before and after, and every reason to stay put."""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from taylorseer.exporter.passes.slices import push_slices_up, row_slice


def parse(body: str, inputs: str, output: str = "y") -> ir.Model:
    """A model of ONNX's text form, with shapes on every value; row bounds are the initializers i0..i9."""
    indices = ", ".join(f"int64[1] i{n} = {{{n}}}" for n in range(10))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[?,?,?] {output}) <{indices}> {{ {body} }}'
    )
    common.ShapeInferencePass()(model)
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def random(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


JOINED = "float[B,2,4] text, float[B,3,4] image, float[B,1,4] gate, float[B,5,4] feature"


def test_the_docstrings_graph_before_and_after(run_model: Any) -> None:
    model = parse(
        "joined = Concat<axis=1>(text, image) gated = Mul(gate, feature) sum = Add(joined, gated)"
        " rows = Slice(sum, i2, i5, i1) y = Identity(rows)",
        JOINED,
    )
    inputs = {"text": random(2, 2, 4), "image": random(2, 3, 4), "gate": random(2, 1, 4), "feature": random(2, 5, 4)}
    before = run_model(model, inputs)["y"]
    assert push_slices_up(model)
    common.RemoveUnusedNodesPass()(model)
    assert operators(model) == ["Slice", "Mul", "Add", "Identity"]
    (cut,) = (row_slice(node) for node in model.graph if node.op_type == "Slice")
    assert cut is not None and (cut.source.name, cut.axis, cut.start, cut.stop) == ("feature", 1, 2, 5)
    after = run_model(model, inputs | {"text": np.full((2, 2, 4), np.nan, np.float32)})["y"]
    assert np.array_equal(after, before)
    assert not push_slices_up(model)


def test_a_slice_over_a_seam_keeps_both_sides(run_model: Any) -> None:
    model = parse("joined = Concat<axis=1>(text, image) rows = Slice(joined, i1, i3, i1) y = Identity(rows)", JOINED)
    inputs = {"text": random(2, 2, 4), "image": random(2, 3, 4), "gate": random(2, 1, 4), "feature": random(2, 5, 4)}
    before = run_model(model, inputs)["y"]
    assert push_slices_up(model)
    common.RemoveUnusedNodesPass()(model)
    assert operators(model) == ["Slice", "Slice", "Concat", "Identity"]
    assert np.array_equal(run_model(model, inputs)["y"], before)


def test_a_slice_of_a_slice_becomes_one(run_model: Any) -> None:
    model = parse(
        "inner = Slice(feature, i1, i5, i1) rows = Slice(inner, i2, i4, i1) y = Identity(rows)", "float[B,5,4] feature"
    )
    before = run_model(model, {"feature": random(2, 5, 4)})["y"]
    assert push_slices_up(model)
    common.RemoveUnusedNodesPass()(model)
    assert operators(model) == ["Slice", "Identity"]
    assert np.array_equal(run_model(model, {"feature": random(2, 5, 4)})["y"], before)


def test_a_slice_of_all_rows_goes(run_model: Any) -> None:
    model = parse("sum = Neg(feature) all = Slice(sum, i0, i5, i1) y = Neg(all)", "float[B,5,4] feature")
    assert push_slices_up(model)
    assert operators(model) == ["Neg", "Neg"]


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        # A matrix product mixes nothing between rows, but its rows are not its input's along every axis.
        ("z = MatMul(feature, weight) y = Slice(z, i1, i3, i1)", "float[B,5,4] feature, float[4,4] weight"),
        ("z = Softmax<axis=1>(feature) y = Slice(z, i1, i3, i1)", "float[B,5,4] feature"),
        ("z = Concat<axis=2>(feature, feature) y = Slice(z, i1, i3, i1)", "float[B,5,4] feature"),
        ("y = Slice(feature, i1, i3, i1)", "float[B,5,4] feature"),
        ("z = Neg(feature) y = Slice(z, i1, i5, i1, i2)", "float[B,5,4] feature"),
        ("z = Neg(feature) y = Slice(z, i0, i1, i0)", "float[B,5,4] feature"),
    ],
    ids=["matmul", "softmax", "concat along another axis", "an input", "step 2", "a dynamic axis"],
)
def test_a_slice_stays_where_rows_do_not_pass(body: str, inputs: str) -> None:
    model = parse(body, inputs)
    wanted = operators(model)
    assert not push_slices_up(model)
    assert operators(model) == wanted


def test_operands_are_sliced_where_they_have_rows(run_model: Any) -> None:
    model = parse(
        "z = Mul(feature, channel) w = Add(z, row) v = Add(w, low) rows = Slice(v, i1, i3, i1) y = Identity(rows)",
        "float[B,5,4] feature, float[4] channel, float[1,1,4] row, float[5,1] low",
    )
    inputs = {"feature": random(2, 5, 4), "channel": random(4), "row": random(1, 1, 4), "low": random(5, 1)}
    before = run_model(model, inputs)["y"]
    assert push_slices_up(model)
    cuts = [row_slice(node) for node in model.graph if node.op_type == "Slice"]
    assert {(cut.source.name, cut.axis) for cut in cuts if cut} == {("feature", 1), ("low", 0)}
    assert np.array_equal(run_model(model, inputs)["y"], before)


def test_an_output_keeps_its_name(run_model: Any) -> None:
    model = parse("z = Neg(feature) y = Slice(z, i1, i3, i1)", "float[B,5,4] feature")
    assert push_slices_up(model)
    found = run_model(model, {"feature": random(2, 5, 4)})["y"]
    assert np.array_equal(found, -random(2, 5, 4)[:, 1:3])
