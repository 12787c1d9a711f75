"""Row slices move up to where the rows come from, so that a forecast neither computes nor remembers dead rows.

Before: ``Slice(Add(Concat(text, image), Mul(gate, F)), rows)``
After:  ``Add(image, Mul(gate, Slice(F, rows)))``
"""

import dataclasses

import numpy as np
import onnx_ir as ir

__all__ = ["RowSlice", "push_slices_up", "row_slice", "slice_rows"]

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Cast", "Clip", "Identity", "Neg"}
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
        replacement = _rewrite(model.graph, node, cut, pending)
        if replacement is not None:
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


def _register(graph: ir.Graph, value: int) -> ir.Value:
    name = f"taylorseer.index.{value}"
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.array([value], np.int64), name=name)))
    return graph.initializers[name]


def _constant(value: ir.Value | None) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().reshape(-1)


def _rewrite(graph: ir.Graph, node: ir.Node, cut: RowSlice, pending: list[ir.Node]) -> ir.Value | None:
    """Return a value equal to ``cut`` that slices further up, or None where the slice has to stay."""
    shape = cut.source.shape
    assert shape is not None
    if (cut.start, cut.stop) == (0, shape[cut.axis]):
        return cut.source
    producer = cut.source.producer()
    if producer is None:
        return None

    def again(source: ir.Value, start: int, stop: int) -> ir.Value:
        value = slice_rows(source, cut.axis, start, stop, graph, node)
        created = value.producer()
        assert created is not None
        pending.append(created)
        return value

    if producer.op_type in _ELEMENTWISE:
        return _through_elementwise(graph, node, producer, cut, again)
    if producer.op_type == "Concat" and producer.attributes["axis"].as_int() % len(shape) == cut.axis:
        return _through_concat(graph, node, producer, cut, again)
    if producer.op_type == "Slice":
        inner = row_slice(producer)
        if inner is not None and inner.axis == cut.axis:
            return again(inner.source, inner.start + cut.start, inner.start + cut.stop)
    return None


def _through_elementwise(graph, node, producer, cut, again):  # type: ignore[no-untyped-def]
    rank = len(cut.source.shape)
    inputs = []
    for value in producer.inputs:
        axis = None if value is None or value.shape is None else cut.axis - (rank - len(value.shape))
        if value is None or (axis is not None and (axis < 0 or value.shape[axis] == 1)):
            inputs.append(value)
        elif axis == cut.axis and value.shape[axis] == cut.source.shape[axis]:
            inputs.append(again(value, cut.start, cut.stop))
        elif value.const_value is not None and value.const_value.size == 1:
            inputs.append(value)
        else:
            return None
    copy = ir.node(producer.op_type, inputs, attributes=producer.attributes)
    copy.metadata_props.update(producer.metadata_props)
    graph.insert_before(node, copy)
    output = copy.outputs[0]
    output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
    output.name = f"{node.outputs[0].name}.{producer.op_type}"
    return output


def _through_concat(graph, node, producer, cut, again):  # type: ignore[no-untyped-def]
    parts, offset = [], 0
    for value in producer.inputs:
        size = value.shape[cut.axis]
        if not isinstance(size, int):
            return None
        start, stop = max(cut.start - offset, 0), min(cut.stop - offset, size)
        if start < stop:
            parts.append(value if (start, stop) == (0, size) else again(value, start, stop))
        offset += size
    if len(parts) == 1:
        return parts[0]
    joined = ir.node("Concat", parts, attributes={"axis": cut.axis})
    graph.insert_before(node, joined)
    joined.outputs[0].shape, joined.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    joined.outputs[0].name = f"{node.outputs[0].name}.Concat"
    return joined.outputs[0]
