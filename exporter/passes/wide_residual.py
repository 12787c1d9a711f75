"""The residual stream in float32: sixty additions of 16-bit numbers lose bits that nothing brings back.

Before: ``h2 = Add(h1, Mul(gate, feature))`` in bfloat16, read by a norm
After:  ``h2 = Add(h1, Cast(Mul(gate, feature), to=float))`` in float32, read by the norm through ``Cast(to=bfloat16)``
"""

from collections.abc import Iterable, Sequence

import onnx_ir as ir

__all__ = ["widen_residual"]

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_GATES = frozenset({"Cast", "Identity", "Mul", "Reshape", "Slice", "Split"})
"""Operators between a feature and its residual addition."""

_STREAM = frozenset({"Clip", "Concat", "Identity", "Max", "Min", "Slice", "Split"})
"""Operators that the stream goes through beside its additions."""


def widen_residual(model: ir.Model, features: Sequence[ir.Value]) -> bool:
    """Compute the residual stream in float32, in place; everything else reads it rounded as before.

    Args:
        model: a whole transformer; types of all values are known.
        features: module outputs, each of which is added to the stream, gated or not.
    """
    additions = _additions(features)
    stream = _stream(additions)
    if not any(value.dtype in _NARROW for value in stream):
        return False
    narrow = next(value.dtype for value in stream if value.dtype in _NARROW)
    assert narrow is not None
    inside = dict.fromkeys(v.producer() for v in stream if _carries(v.producer(), additions))  # in order
    for value in stream:
        if value.producer() in inside:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in inside:
        assert node is not None
        _feed(model.graph, node, stream)
    for value in stream:
        if value.producer() in inside:
            _round_for_others(model.graph, value, inside, narrow)
    return True


def _additions(features: Iterable[ir.Value]) -> dict[ir.Node, None]:
    """Return the residual additions, always in one order: the first Add behind each feature."""
    additions: dict[ir.Node, None] = {}
    pending = list(features)
    while pending:
        for user, _ in pending.pop().uses():
            if user.op_type == "Add":
                additions[user] = None
            elif user.op_type in _GATES:
                pending.extend(user.outputs)
    return additions


def _stream(additions: dict[ir.Node, None]) -> list[ir.Value]:
    """Return the values of the stream, from where it begins to its last addition and slice."""
    found: dict[ir.Value, None] = {}
    pending = [node.outputs[0] for node in additions]
    while pending:
        value = pending.pop()
        if value in found or value.const_value is not None:
            continue
        found[value] = None
        if _carries(value.producer(), additions):
            pending.extend(_carried(value.producer(), additions))
        pending.extend(o for user, _ in value.uses() if _carries(user, additions) for o in user.outputs)
    return list(found)


def _carries(node: ir.Node | None, additions: dict[ir.Node, None]) -> bool:
    return node is not None and (node in additions or node.op_type in _STREAM)


def _carried(node: ir.Node | None, additions: dict[ir.Node, None]) -> list[ir.Value]:
    """Return the inputs of a stream operator that are the stream; of an addition not the gated feature."""
    assert node is not None
    values = [value for value in node.inputs if value is not None and value.dtype in _NARROW]
    if node not in additions:
        return values
    return [value for value in values if not _is_gated(value)]


def _is_gated(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Mul"


def _feed(graph: ir.Graph, node: ir.Node, stream: list[ir.Value]) -> None:
    """Give a stream operator float32 inputs: what is not of the stream, or begins it, is cast."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in _NARROW:
            node.replace_input_with(index, _cast(graph, node, value, ir.DataType.FLOAT, before=True))


def _round_for_others(
    graph: ir.Graph, value: ir.Value, inside: "dict[ir.Node | None, None]", narrow: ir.DataType
) -> None:
    others = [(user, index) for user, index in value.uses() if user not in inside and user.op_type != "Cast"]
    producer = value.producer()
    if not others or producer is None:
        return
    rounded = _cast(graph, producer, value, narrow, before=False)
    for user, index in others:
        user.replace_input_with(index, rounded)


def _cast(graph: ir.Graph, beside: ir.Node, value: ir.Value, dtype: ir.DataType, *, before: bool) -> ir.Value:
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)})
    (graph.insert_before if before else graph.insert_after)(beside, cast)
    output = cast.outputs[0]
    output.shape, output.type = value.shape, ir.TensorType(dtype)
    return output
