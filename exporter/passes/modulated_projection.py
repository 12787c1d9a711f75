"""A projection of modulated rows modulates its weight instead, where that is the smaller of the two.

Before: ``Add(MatMul(Add(Mul(x, scale), shift), W), bias)``    two passes over x [batch, rows, width]
After:  ``Add(MatMul(x, Mul(Transpose(scale), W)), Add(MatMul(shift, W), bias))``    W [width, columns]

scale and shift are [batch, 1, width].  They do not know the latent, so all but the product with x and one addition of
a few columns moves to prepare.  A forecast step is little more than this projection, with thousands of rows and a few
columns, and ONNX Runtime fuses no elementwise chains on a CPU.
"""

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["modulate_weights"]

_FEWER = 4
"""Columns are at least so many times fewer than rows: the weight is then small beside what it saves passing over."""


def modulate_weights(model: ir.Model) -> bool:
    """Rewrite the projections of modulated rows, in place.

    Requires: shapes are known but for the batch.  Ensures: the same values but for rounding.
    """
    found = [match for node in model.graph if (match := _match(node))]
    for match in found:
        _rewrite(model.graph, match)
    return bool(found)


@dataclasses.dataclass(frozen=True)
class _Match:
    nodes: tuple[ir.Node, ...]
    """What goes, the last first."""
    x: ir.Value
    scale: ir.Value
    shift: ir.Value
    weight: ir.Value
    bias: ir.Value | None


def _match(projection: ir.Node) -> _Match | None:
    if projection.op_type != "MatMul" or not _has_few_columns(projection):
        return None
    rows, weight = projection.inputs
    assert rows is not None and weight is not None
    outer = _modulation(rows, "Add")
    inner = _modulation(outer[0], "Mul") if outer else None
    if outer is None or inner is None:
        return None
    addition, product = rows.producer(), outer[0].producer()
    assert addition is not None and product is not None
    last, bias = _bias(projection)
    nodes = (projection, addition, product)
    return _Match((last, *nodes) if last else nodes, inner[0], inner[1], outer[1], weight, bias)


def _has_few_columns(projection: ir.Node) -> bool:
    rows, weight = (
        () if value is None or value.dtype != ir.DataType.FLOAT else _sizes(value) for value in projection.inputs
    )
    if len(rows) != 3 or len(weight) != 2:
        return False
    return isinstance(rows[1], int) and isinstance(weight[1], int) and weight[1] * _FEWER <= rows[1]


def _modulation(value: ir.Value, op_type: str) -> tuple[ir.Value, ir.Value] | None:
    """Return the operands of the node that makes ``value`` for one reader: the rows, and what is the same for all."""
    node = value.producer()
    if node is None or node.op_type != op_type or len(value.uses()) != 1 or value.is_graph_output():
        return None
    batch, _, width = _sizes(value)
    for rows, same in (node.inputs, reversed(node.inputs)):
        if (
            rows is not None
            and same is not None
            and _sizes(rows) == _sizes(value)
            and _sizes(same) == (batch, 1, width)
        ):
            return rows, same
    return None


def _bias(projection: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """Return the addition of a parameter [columns] behind the projection, and the parameter."""
    result = projection.outputs[0]
    users = [user for user, _ in result.uses()]
    if len(users) != 1 or users[0].op_type != "Add" or result.is_graph_output():
        return None, None
    (other,) = (value for value in users[0].inputs if value is not result)
    is_bias = other is not None and _sizes(other) == _sizes(result)[2:]
    return (users[0], other) if is_bias else (None, None)


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())


def _rewrite(graph: ir.Graph, match: _Match) -> None:
    result = match.nodes[0].outputs[0]
    batch, rows, width = _sizes(match.x)
    columns = _sizes(match.weight)[1]

    def add(op_type: str, inputs: Sequence[ir.Value], *shape: int | str, **attributes: object) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes or None)  # type: ignore[arg-type]
        node.metadata_props.update(match.nodes[0].metadata_props)  # it stays in its module's scope
        graph.insert_before(match.nodes[0], node)
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        return node.outputs[0]

    weight = add(
        "Mul", [add("Transpose", [match.scale], batch, width, 1, perm=[0, 2, 1]), match.weight], batch, width, columns
    )
    shift = add("MatMul", [match.shift, match.weight], batch, 1, columns)
    if match.bias is not None:
        shift = add("Add", [shift, match.bias], batch, 1, columns)
    total = add("Add", [add("MatMul", [match.x, weight], batch, rows, columns), shift], batch, rows, columns)
    name, result.name = result.name, None
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    graph.remove(match.nodes, safe=True)
    total.name = name
