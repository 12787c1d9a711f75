"""Row slices move up to where the rows come from, so that a forecast neither computes nor remembers dead rows.

Before: ``Slice(Add(Concat(text, image), Mul(gate, F)), rows)``
After:  ``Add(image, Mul(gate, Slice(F, rows)))``
"""

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["RowSlice", "push_slices_up", "row_slice", "slice_rows"]

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Cast", "Clip", "Identity", "Max", "Min", "Neg"}
"""Operators whose output rows depend on the same rows of their inputs alone."""


@dataclasses.dataclass(frozen=True)
class RowSlice:
    """A Slice node with constant bounds, step 1, along one axis of static size."""

    source: ir.Value
    axis: int
    start: int
    stop: int


def push_slices_up(model: ir.Model) -> bool:
    """Move row slices towards the inputs until nothing moves, in place.

    Ensures: the same values.  A value with other users is computed again for the sliced rows only, which pays where
    the other users are dead; so this is for forecast graphs.
    """
    changed, pending = False, [node for node in model.graph if node.op_type == "Slice"]
    while pending:
        node = pending.pop()
        cut = row_slice(node)
        if cut is None:
            continue
        replacement = _rewrite(_Move(model.graph, node, cut, pending))
        if replacement is not None:
            if node.outputs[0].is_graph_output():
                replacement = _named_output(model.graph, node, replacement)
            node.outputs[0].replace_all_uses_with(replacement, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            changed = True
    return changed


def row_slice(node: ir.Node) -> RowSlice | None:
    """Return what ``node`` cuts out, or None when it is no slice of the supported kind."""
    if node.op_type != "Slice" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    source = node.inputs[0]
    bounds = [_constant(value) for value in node.inputs[1:]]
    if len(bounds) < 3 or any(value is None or len(value) != 1 for value in bounds):
        return None
    start, stop, axis = (int(value[0]) for value in bounds[:3] if value is not None)
    if len(bounds) > 3 and bounds[3] is not None and bounds[3][0] != 1:
        return None
    assert source.shape is not None
    axis %= len(source.shape)
    size = source.shape[axis]
    if not isinstance(size, int):
        return None
    start, stop, _ = slice(start, stop).indices(size)
    return RowSlice(source, axis, start, stop)


def slice_rows(source: ir.Value, axis: int, start: int, stop: int, graph: ir.Graph, before: ir.Node | None) -> ir.Value:
    """Insert a Slice of ``source`` and return its output; with ``before`` None it is appended to the graph."""
    inputs = [source, *(_register(graph, value) for value in (start, stop, axis))]
    node = ir.node("Slice", inputs)
    if before is None:
        graph.append(node)
    else:
        graph.insert_before(before, node)
    output = node.outputs[0]
    assert source.shape is not None
    sizes = list(source.shape)
    sizes[axis] = stop - start
    output.shape, output.type = ir.Shape(sizes), source.type
    output.name = f"{source.name}[{axis}:{start}:{stop}]"
    return output


def _named_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Give ``value`` the name of the graph output that ``node`` computed: callers ask for it by name."""
    named = ir.node("Identity", [value])
    graph.insert_before(node, named)
    output = named.outputs[0]
    output.shape, output.type, output.name = node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name
    return output


def _register(graph: ir.Graph, value: int) -> ir.Value:
    name = f"taylorseer.index.{value}"
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.array([value], np.int64), name=name)))
    return graph.initializers[name]


def _constant(value: ir.Value | None) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().reshape(-1)


@dataclasses.dataclass(frozen=True)
class _Move:
    """One slice that is about to move past the operator that makes its source."""

    graph: ir.Graph
    node: ir.Node
    cut: RowSlice
    pending: list[ir.Node]

    def again(self, source: ir.Value, axis: int, start: int, stop: int) -> ir.Value:
        """Slice ``source`` instead, and look at that slice later."""
        value = slice_rows(source, axis, start, stop, self.graph, self.node)
        created = value.producer()
        assert created is not None
        self.pending.append(created)
        return value

    def insert(self, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any]) -> ir.Value:
        """Insert a node that takes the place of the slice, and return its output."""
        node = ir.node(op_type, inputs, attributes=attributes)
        self.graph.insert_before(self.node, node)
        output, old = node.outputs[0], self.node.outputs[0]
        output.shape, output.type, output.name = old.shape, old.type, f"{old.name}.{op_type}"
        return output


def _rewrite(move: _Move) -> ir.Value | None:
    """Return a value equal to the slice that slices further up, or None where the slice has to stay."""
    cut = move.cut
    assert cut.source.shape is not None
    if (cut.start, cut.stop) == (0, cut.source.shape[cut.axis]):
        return cut.source
    producer = cut.source.producer()
    if producer is None:
        return None
    if producer.op_type in _ELEMENTWISE:
        return _through_elementwise(move, producer)
    if producer.op_type == "Concat" and producer.attributes["axis"].as_int() % len(cut.source.shape) == cut.axis:
        return _through_concat(move, producer)
    inner = row_slice(producer)
    if inner is not None and inner.axis == cut.axis:
        return move.again(inner.source, cut.axis, inner.start + cut.start, inner.start + cut.stop)
    return None


def _through_elementwise(move: _Move, producer: ir.Node) -> ir.Value | None:
    """Slice every operand that has the rows; broadcast operands stay as they are."""
    cut = move.cut
    assert cut.source.shape is not None
    rank, rows = len(cut.source.shape), cut.source.shape[cut.axis]
    axes: list[int | None] = []
    for value in producer.inputs:
        if value is not None and value.shape is None:
            return None
        # Operands of a lower rank are broadcast from the right.
        axis = -1 if value is None or value.shape is None else cut.axis - (rank - len(value.shape))
        size = 1 if value is None or value.shape is None or axis < 0 else value.shape[axis]
        if size not in (1, rows):
            return None
        axes.append(axis if size == rows else None)
    inputs = [
        value if value is None or axis is None else move.again(value, axis, cut.start, cut.stop)
        for value, axis in zip(producer.inputs, axes, strict=True)
    ]
    return move.insert(producer.op_type, inputs, dict(producer.attributes))


def _through_concat(move: _Move, producer: ir.Node) -> ir.Value | None:
    """Keep the parts that the rows lie in, and slice those that they cut."""
    cut, parts, offset = move.cut, [], 0
    for value in producer.inputs:
        size = None if value is None or value.shape is None else value.shape[cut.axis]
        if value is None or not isinstance(size, int):
            return None
        start, stop = max(cut.start - offset, 0), min(cut.stop - offset, size)
        if start < stop:
            parts.append(value if (start, stop) == (0, size) else move.again(value, cut.axis, start, stop))
        offset += size
    return parts[0] if len(parts) == 1 else move.insert("Concat", list(parts), {"axis": cut.axis})
