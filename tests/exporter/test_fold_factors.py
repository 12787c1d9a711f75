"""Factors of the folded sums: weight times gates, apart or side by side, whatever gates a feature has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.exporter.fold_factors import FoldFactors
from taylorseer.exporter.fold_forms import GraphWriter
from taylorseer.exporter.passes.cleaning import finish

COUNT, WIDTH = 3, 4

Terms = Sequence[tuple[str, ...]]

CASES: dict[str, tuple[Mapping[str, int], Terms]] = {
    "a gate of its own for each": ({"a": WIDTH, "b": WIDTH}, [("a",), ("b",)]),
    "gates in another order": ({"a": WIDTH, "b": WIDTH}, [("b",), ("a",)]),
    "one gate for two": ({"a": WIDTH}, [("a",), ("a",)]),
    "two gates of one": ({"a": WIDTH, "b": WIDTH}, [("a", "b")]),
    "a gate of one number": ({"a": 1, "b": WIDTH}, [("a",), ("b",)]),
    "a gate and none": ({"a": WIDTH}, [("a",), ()]),
    "none": ({}, [(), ()]),
}


def factors(columns: Mapping[str, int], terms: Terms) -> FoldFactors:
    float32, total = ir.TensorType(ir.DataType.FLOAT), sum(columns.values())
    weights = ir.Value(name="weights", shape=ir.Shape([1, COUNT, 1]), type=float32)
    table = ir.Value(name="table", shape=ir.Shape(["batch", COUNT, total]), type=float32) if columns else None
    graph = ir.Graph([value for value in (weights, table) if value], [], nodes=[], opset_imports={"": 20}, name="g")
    return FoldFactors(GraphWriter(graph), weights, table, columns, terms, WIDTH)


def results(run_model: Any, made: FoldFactors, values: Sequence[ir.Value], inputs: Mapping[str, Any]) -> list[Any]:
    graph = made.graph
    names: list[str] = []
    for value in values:
        node = ir.node("Identity", [value])
        graph.append(node)
        names.append(f"out.{len(names)}")
        node.outputs[0].name = names[-1]
        graph.outputs.append(node.outputs[0])
    model = ir.Model(graph, ir_version=10)
    finish(model)
    found = run_model(model, {str(v.name): inputs[str(v.name)] for v in graph.inputs})
    return [found[name] for name in names]


def wanted(columns: Mapping[str, int], terms: Terms, inputs: Mapping[str, Any]) -> list[Any]:
    """Products of float32 numbers in the same order, [2, count, width] each."""
    starts = dict(zip(columns, np.cumsum([0, *columns.values()]), strict=False))
    products = []
    for names in terms:
        product = np.ones((2, COUNT, WIDTH), np.float32) * inputs["weights"]
        for name in names:
            product = product * inputs["table"][:, :, starts[name] : starts[name] + columns[name]]
        products.append(product)
    return products


@pytest.mark.parametrize(("columns", "terms"), CASES.values(), ids=CASES.keys())
def test_factors_are_weights_times_gates(run_model: Any, columns: Mapping[str, int], terms: Terms) -> None:
    random = np.random.default_rng(0)
    inputs = {
        "weights": random.standard_normal((1, COUNT, 1)).astype(np.float32),
        "table": random.standard_normal((2, COUNT, sum(columns.values()))).astype(np.float32),
    }
    expected = wanted(columns, terms, inputs)
    made = factors(columns, terms)
    for found, product in zip(results(run_model, made, made.apart(), inputs), expected, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(found, product.shape), product)
    if () in terms and columns:
        return  # their batches differ, so they cannot lie side by side; the form that needs it refuses them
    for sizes in ([len(terms)], [1] * len(terms)):
        made = factors(columns, terms)
        found = np.concatenate(results(run_model, made, made.joined(sizes), inputs), axis=2)
        np.testing.assert_array_equal(np.broadcast_to(found, (2, *found.shape[1:])), np.concatenate(expected, axis=2))


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_taken_whole_where_it_has_the_factors_side_by_side(name: str) -> None:
    columns, terms = CASES[name]
    if () in terms and columns:
        return
    made = factors(columns, terms)
    made.joined([len(terms)])
    operators = [node.op_type for node in made.graph]
    assert (operators == ["Mul"]) == (name == "a gate of its own for each")
