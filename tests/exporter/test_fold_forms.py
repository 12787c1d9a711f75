"""The sums of the folded state as nodes: both forms give float64's numbers, and no group waits for a later one."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from taylorseer.exporter.fold_forms import GraphWriter, weighted_sums
from taylorseer.exporter.passes.cleaning import finish
from taylorseer.manifest import FoldForm

ROWS, WIDTH, COUNT = 5, 4, 3

FORMS: tuple[FoldForm, ...] = ("chains", "channels")

EPSILON = 2.0**-24
"""Relative error of one float32 rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is summed."""

    features: int = 3
    group: int = 3
    started: tuple[int, ...] = ()
    """Tensors of accumulators that have something already."""
    accumulators: int = COUNT
    stacked: int = 1
    """Accumulators of one tensor."""
    dtype: ir.DataType = ir.DataType.FLOAT
    """Of the features."""
    gated: bool = True
    """Whether the factors differ between the rows of the batch, and not only between the accumulators."""


@dataclasses.dataclass(frozen=True)
class ListedFactors:
    """Factors that are inputs, one for each feature."""

    writer: GraphWriter
    values: Sequence[ir.Value]

    def apart(self) -> Sequence[ir.Value]:
        return self.values

    def joined(self, sizes: Sequence[int]) -> Sequence[ir.Value]:
        starts = itertools.accumulate((0, *sizes))
        return [self._joined(self.values[start : start + size]) for start, size in zip(starts, sizes, strict=False)]

    def _joined(self, values: Sequence[ir.Value]) -> ir.Value:
        assert values[0].shape is not None
        batch, count, _ = values[0].shape
        shape = [batch if isinstance(batch, int) else "batch", int(count), len(values) * WIDTH]
        return self.writer.add("Concat", values, shape, axis=2)


def built(form: FoldForm, case: Case) -> ir.Model:
    """A graph that takes features, factors and what was started, and yields the sums."""
    shape, rows = ("batch", ROWS, WIDTH), "batch" if case.gated else 1
    features = [value(f"feature.{m}", shape, case.dtype) for m in range(case.features)]
    factors = [value(f"factor.{m}", (rows, case.accumulators, WIDTH)) for m in range(case.features)]
    started: list[ir.Value | None] = [None] * (case.accumulators // case.stacked)
    for index in case.started:
        started[index] = value(f"started.{index}", ("batch", case.stacked * ROWS, WIDTH))
    inputs = [*features, *factors, *filter(None, started)]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 20}, name="sums")
    writer = GraphWriter(graph)
    listed = ListedFactors(writer, factors)
    sums = weighted_sums(writer, form, features, listed, started, group=case.group, stacked=case.stacked)
    for index, output in enumerate(sums):
        output.name = f"sum.{index}"
        graph.outputs.append(output)
    model = ir.Model(graph, ir_version=10)
    finish(model)
    return model


def value(name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def numbers(model: ir.Model, batch: int) -> dict[str, npt.NDArray[Any]]:
    random = np.random.default_rng(0)
    return {
        str(v.name): random.standard_normal([n if isinstance(n, int) else batch for n in v.shape or ()]).astype(
            v.dtype.numpy()  # type: ignore[union-attr]
        )
        for v in model.graph.inputs
    }


def wanted(case: Case, inputs: dict[str, npt.NDArray[Any]], index: int) -> tuple[Any, Any]:
    """The sums of one tensor of accumulators in float64, and the sums of the sizes of their addends."""
    own = slice(index * case.stacked, (index + 1) * case.stacked)
    products = [
        inputs[f"factor.{m}"][:, own, None].astype(np.float64) * inputs[f"feature.{m}"][:, None].astype(np.float64)
        for m in range(case.features)
    ]
    addends = [product.reshape(-1, case.stacked * ROWS, WIDTH) for product in products]
    if index in case.started:
        addends.append(inputs[f"started.{index}"].astype(np.float64))
    return sum(addends), sum(np.abs(addend) for addend in addends)


def assert_sums_are_right(run_model: Any, form: FoldForm, case: Case, batch: int) -> None:
    model = built(form, case)
    inputs = numbers(model, batch)
    found = run_model(model, inputs)
    assert list(found) == [f"sum.{index}" for index in range(case.accumulators // case.stacked)]
    for index, (name, result) in enumerate(found.items()):
        total, size = wanted(case, inputs, index)
        assert result.dtype == np.float32 and result.shape == (batch, case.stacked * ROWS, WIDTH)
        # A rounding for each product and each addition, none of them of more than all addends together.
        assert np.all(np.abs(result - total) <= (2 * case.features + 1) * EPSILON * size), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("features", range(1, 8))
@pytest.mark.parametrize("group", [1, 3, 7])
def test_the_sums_are_those_of_float64(run_model: Any, form: FoldForm, batch: int, features: int, group: int) -> None:
    assert_sums_are_right(run_model, form, Case(features=features, group=group, started=(0, 2)), batch)


CASES = {
    "nothing started": Case(),
    "one started, and it is not the first": Case(started=(1,)),
    "all started": Case(started=(0, 1, 2)),
    "ungated": Case(gated=False),
    "ungated, in groups, some started": Case(features=5, group=2, gated=False, started=(0, 1)),
    "features in float16": Case(dtype=ir.DataType.FLOAT16, started=(0,)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_other_sums_are_those_of_float64(run_model: Any, form: FoldForm, case: Case) -> None:
    assert_sums_are_right(run_model, form, case, batch=2)


STACKS = {
    "all in one": Case(stacked=3),
    "two windows, the first started": Case(accumulators=6, stacked=3, started=(0,)),
    "three windows, ungated, features in groups": Case(
        features=7, group=3, accumulators=6, stacked=2, started=(0, 1), gated=False
    ),
    "features in float16": Case(accumulators=4, stacked=2, dtype=ir.DataType.FLOAT16, started=(1,)),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", STACKS.values(), ids=STACKS.keys())
def test_the_sums_of_a_window_are_one_tensor(run_model: Any, case: Case, batch: int) -> None:
    assert_sums_are_right(run_model, "channels", case, batch)


def test_no_pass_takes_the_sums_of_a_window_apart() -> None:
    """Where all sums are made, each window of them is a product, a transposition and at most one addition."""
    graph = built("channels", Case(accumulators=6, stacked=3, started=(0,))).graph
    after = [node.op_type for node in graph if makes_sums(node)]
    assert sorted(after) == sorted(["MatMul", "Reshape", "Transpose"] * 2 + ["Add"])


def makes_sums(node: ir.Node) -> bool:
    """Whether a node comes after a product of features and gates, or is one."""
    return node.op_type == "MatMul" or any(makes_sums(before) for before in node.predecessors())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_narrow_features_are_cast_before_anything_is_computed(form: FoldForm, dtype: ir.DataType) -> None:
    model = built(form, Case(dtype=dtype))
    for feature in model.graph.inputs[:3]:
        assert feature.dtype == dtype
        assert [user.op_type for user, _ in feature.uses()] == ["Cast"]


@pytest.mark.parametrize("form", FORMS)
def test_float32_features_are_not_cast(form: FoldForm) -> None:
    assert "Cast" not in {node.op_type for node in built(form, Case()).graph}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gated", [True, False])
def test_the_shape_and_the_dtype_of_every_value_are_what_onnxruntime_finds(
    run_model: Any, form: FoldForm, gated: bool
) -> None:
    model = built(form, Case(features=4, group=2, started=(0,), gated=gated))
    made = [output for node in model.graph for output in node.outputs]
    said = {str(v.name): ([n if isinstance(n, int) else 2 for n in v.shape or ()], v.dtype) for v in made}
    model.graph.outputs.extend(v for v in made if not v.is_graph_output())
    found = run_model(model, numbers(model, batch=2))
    assert {name: (list(a.shape), ir.DataType.from_numpy(a.dtype)) for name, a in found.items()} == said


def needs(graph: ir.Graph) -> list[set[int]]:
    """For each node in its order, the features that its outputs are made of."""
    made: dict[ir.Value | None, set[int]] = {
        v: {int(str(v.name).rpartition(".")[2])} for v in graph.inputs if str(v.name).startswith("feature.")
    }
    found = []
    for node in graph:
        features = set().union(*(made.get(v, set()) for v in node.inputs))
        made.update(dict.fromkeys(node.outputs, features))
        found.append(features)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_group_needs_no_feature_of_a_later_one(form: FoldForm) -> None:
    """A group's sums join features of that group alone; only additions to what came before know more."""
    graph = built(form, Case(features=7, group=3, started=(0,))).graph
    groups = [{0, 1, 2}, {3, 4, 5}, {6}]
    until = [{0, 1, 2}, {0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5, 6}]
    seen = []
    for node, features in zip(graph, needs(graph), strict=True):
        inside = any(features <= group for group in groups)
        assert inside or (node.op_type == "Add" and features in until), (node.op_type, features)
        if node.op_type == "Add" and features in until:
            seen.append(until.index(features))
    assert (seen.count(1), seen.count(2)) == (COUNT, COUNT)


@pytest.mark.parametrize(
    ("form", "stacked", "products"), [("chains", 1, {"Mul": 3 * COUNT}), ("channels", COUNT, {"MatMul": 2})]
)
def test_the_operators_are_those_of_the_form(form: FoldForm, stacked: int, products: dict[str, int]) -> None:
    operators = [node.op_type for node in built(form, Case(features=3, group=2, stacked=stacked)).graph]
    assert {name: operators.count(name) for name in ("Mul", "MatMul") if name in operators} == products


def test_equal_integers_are_one_initializer() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="integers")
    writer = GraphWriter(graph)
    first, again, other = writer.integers(1, 2), writer.integers(1, 2), writer.integers(12)
    assert first is again and other is not first
    assert [v.const_value.numpy().tolist() for v in graph.initializers.values() if v.const_value] == [[1, 2], [12]]


def test_one_part_is_the_value_itself() -> None:
    whole = value("whole", (6, 4))
    graph = ir.Graph([whole], [], nodes=[], opset_imports={"": 20}, name="parts")
    writer = GraphWriter(graph)
    assert writer.split(whole, 0, [6]) == [whole]
    parts = writer.split(whole, 0, [1, 5])
    assert [list(part.shape or ()) for part in parts] == [[1, 4], [5, 4]]
    assert len(list(graph)) == 1
