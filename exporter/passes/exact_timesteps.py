"""Timesteps and guidance stay in float32 up to their sinusoids, in models of reduced precision too.

Before: ``timestep -> Cast(to=bfloat16) -> Mul(1000) -> Unsqueeze -> Cast(to=float) -> Mul(frequencies)``
After:  ``timestep -> Mul(1000) -> Unsqueeze -> Mul(frequencies)``

A timestep of 999 is 1000 in bfloat16, and the fastest sinusoid turns by a radian for each.  The published code of FLUX
embeds timesteps in float32; diffusers' module, called in bfloat16, rounds them first.
"""

import numpy as np
import onnx_ir as ir

__all__ = ["keep_timesteps_exact"]

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_PASSED = frozenset({"Add", "Div", "Identity", "Mul", "Reshape", "Sub", "Unsqueeze"})
"""Operators that a timestep goes through before it is embedded."""


def keep_timesteps_exact(model: ir.Model) -> bool:
    """Drop the casts to 16 bits and back between an input of one number per row and its embedding, in place.

    Requires: types of all values are known.  Ensures: the same values, less the rounding of those casts and of what
    lies between them.  A cast whose result is used otherwise stays.
    """
    changed = False
    for down in list(model.graph):
        if _narrows_an_input(down, model.graph):
            region = _region(down)
            if region is not None:
                _widen(model.graph, down, *region)
                changed = True
    return changed


def _narrows_an_input(node: ir.Node, graph: ir.Graph) -> bool:
    source = node.inputs[0] if node.op_type == "Cast" else None
    if source is None or not any(source is value for value in graph.inputs):
        return False
    one_number = source.shape is not None and len(source.shape) == 1
    return one_number and source.dtype == ir.DataType.FLOAT and node.outputs[0].dtype in _NARROW


def _region(down: ir.Node) -> tuple[list[ir.Node], list[ir.Node]] | None:
    """Return the nodes between ``down`` and the casts back to float32, and those casts; None for another end."""
    inside: list[ir.Node] = []
    ends: list[ir.Node] = []
    pending = [down.outputs[0]]
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return None
        for user, _ in value.uses():
            if user.op_type == "Cast" and user.outputs[0].dtype == ir.DataType.FLOAT:
                ends.append(user)
            elif user.op_type in _PASSED and _else_constant(user, value):
                inside.append(user)
                pending.append(user.outputs[0])
            else:
                return None
    return (inside, ends) if ends else None


def _else_constant(node: ir.Node, value: ir.Value) -> bool:
    return all(other is value or other is None or other.const_value is not None for other in node.inputs)


def _widen(graph: ir.Graph, down: ir.Node, inside: list[ir.Node], ends: list[ir.Node]) -> None:
    source = down.inputs[0]
    assert source is not None
    for node in inside:
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and value.dtype in _NARROW:
                node.replace_input_with(index, _wide_constant(graph, value))
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    down.outputs[0].replace_all_uses_with(source)
    for end in ends:
        assert end.inputs[0] is not None
        end.outputs[0].replace_all_uses_with(end.inputs[0])
    graph.remove([down, *ends], safe=True)


def _wide_constant(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name = f"{value.name}.float32"
    if name not in graph.initializers:
        assert value.const_value is not None
        wide = ir.tensor(value.const_value.numpy().astype(np.float32), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=wide))
    return graph.initializers[name]
