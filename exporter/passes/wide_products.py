"""Products of float16 numbers are summed in float32.

Before: ``MatMul(x, W)`` in float16
After:  ``Cast(MatMul(Cast(x, to=float), Cast(W, to=float)), to=float16)``

TensorRT takes the pattern for a float16 product with float32 sums; without it, it may sum in float16 and lose bits with
every thousand terms.  Products of bfloat16 are summed in float32 as they are.
"""

import onnx_ir as ir

__all__ = ["sum_products_wide"]


def sum_products_wide(model: ir.Model) -> bool:
    """Wrap every float16 product with a weight in casts, in place; attention, which has kernels of its own, stays.

    Requires: types of all values are known.  Ensures: the same values, less the rounding of the sums.
    """
    changed = False
    for node in list(model.graph):
        if _is_narrow_product(node):
            _wrap(model.graph, node)
            changed = True
    return changed


def _is_narrow_product(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
    return weight is not None and weight.is_initializer() and weight.dtype == ir.DataType.FLOAT16


def _wrap(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, _cast(graph, node, value, ir.DataType.FLOAT, before=True))
    output = node.outputs[0]
    users = list(output.uses())
    output.type = ir.TensorType(ir.DataType.FLOAT)
    narrow = _cast(graph, node, output, ir.DataType.FLOAT16, before=False)
    for user, index in users:
        user.replace_input_with(index, narrow)


def _cast(graph: ir.Graph, beside: ir.Node, value: ir.Value, dtype: ir.DataType, *, before: bool) -> ir.Value:
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)})
    cast.metadata_props.update(beside.metadata_props)  # part of the same module
    (graph.insert_before if before else graph.insert_after)(beside, cast)
    output = cast.outputs[0]
    output.shape, output.type = value.shape, ir.TensorType(dtype)
    return output
