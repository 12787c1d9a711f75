"""A linear layer of which a forecast uses some outputs only becomes one small linear layer per used part.

Before: ``Split(Gemm(x, W [6d, d], b [6d]))`` with two of six parts used (gates; shift and scale are dead)
After:  ``Gemm(x, W[2d:3d], b[2d:3d])`` and ``Gemm(x, W[5d:6d], b[5d:6d])``

Rows of a weight are contiguous, so the narrow weight is the same bytes of the same file at another offset.
"""

from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["narrow_linears", "tensor_rows"]


def narrow_linears(model: ir.Model) -> bool:
    """Narrow every Gemm whose output is only split, and not all parts of it used, in place.

    Requires: weights [out, in] and biases [out] are initializers with data (transB=1).
    Ensures: the same values for what is used.
    """
    changed = False
    for split in list(model.graph):
        if split.op_type != "Split" or split.inputs[0] is None:
            continue
        linear = split.inputs[0].producer() if _cuts_columns(split) else None
        if linear is None or not _is_linear(linear) or len(linear.outputs[0].uses()) != 1:
            continue
        if any(value.is_graph_output() for value in (*linear.outputs, *split.outputs)):
            continue
        used = [(output, start, stop) for output, start, stop in _parts(split) if output.uses()]
        if 0 < len(used) < len(split.outputs):
            for output, start, stop in used:
                output.replace_all_uses_with(_narrow(model.graph, linear, start, stop))
            model.graph.remove([split, linear], safe=True)
            changed = True
    return changed


def tensor_rows(tensor: ir.TensorProtocol, start: int, stop: int, name: str) -> ir.TensorProtocol:
    """Return rows ``start:stop`` of ``tensor``; of an external tensor without reading it."""
    shape = ir.Shape([stop - start, *list(tensor.shape)[1:]])
    if isinstance(tensor, ir.ExternalTensor):
        row_bytes = tensor.nbytes // int(tensor.shape[0])
        return ir.ExternalTensor(
            tensor.location,
            (tensor.offset or 0) + start * row_bytes,
            (stop - start) * row_bytes,
            tensor.dtype,
            shape=shape,
            name=name,
            base_dir=tensor.base_dir,
        )
    return ir.tensor(tensor.numpy()[start:stop], dtype=tensor.dtype, name=name)


def _is_linear(node: ir.Node) -> bool:
    attributes = node.attributes
    return (
        node.op_type == "Gemm"
        and len(node.inputs) == 3
        and "transB" in attributes
        and attributes["transB"].as_int() == 1
        and all(value is not None and value.const_value is not None for value in node.inputs[1:])
        and node.inputs[2] is not None
        and node.inputs[1] is not None
        # A broadcast bias has no rows to cut.
        and list(node.inputs[2].shape or ()) == list(node.inputs[1].shape or ())[:1]
    )


def _cuts_columns(split: ir.Node) -> bool:
    shape = split.outputs[0].shape
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    return shape is not None and axis % len(shape) == len(shape) - 1


def _parts(split: ir.Node) -> Sequence[tuple[ir.Value, int, int]]:
    parts, start = [], 0
    for output in split.outputs:
        assert output.shape is not None
        stop = start + int(output.shape[-1])  # type: ignore[arg-type]
        parts.append((output, start, stop))
        start = stop
    return parts


def _narrow(graph: ir.Graph, linear: ir.Node, start: int, stop: int) -> ir.Value:
    parameters = []
    for value in linear.inputs[1:]:
        assert value is not None and value.const_value is not None
        name = f"{value.name}[{start}:{stop}]"
        narrow = ir.Value(name=name, const_value=tensor_rows(value.const_value, start, stop, name))
        graph.register_initializer(narrow)
        parameters.append(narrow)
    node = ir.node("Gemm", [linear.inputs[0], *parameters], attributes=linear.attributes)
    node.metadata_props.update(linear.metadata_props)
    graph.insert_before(linear, node)
    output, whole = node.outputs[0], linear.outputs[0]
    assert whole.shape is not None
    output.name = f"{whole.name}[{start}:{stop}]"
    output.shape, output.type = ir.Shape([whole.shape[0], stop - start]), whole.type
    return output
