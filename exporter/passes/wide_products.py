"""Products of float16 numbers are summed in float32.

Before: ``MatMul(x, Transpose(W))`` in float16
After:  ``Cast(MatMul(Cast(x, to=float), Cast(Transpose(W), to=float)), to=float16)``

TensorRT sums what a graph types as float16 in float16 and loses bits with every thousand terms.  It takes the pattern
for a float16 product with float32 sums, and keeps the weights in float16.  Products of bfloat16 are summed in float32
as they are, and ONNX Runtime sums in float32 always.
"""

import onnx_ir as ir

__all__ = ["sum_products_wide"]

_WIDE, _NARROW = ir.DataType.FLOAT, ir.DataType.FLOAT16


def sum_products_wide(model: ir.Model) -> bool:
    """Wrap every float16 product with a weight in casts, in place; return whether there was one.

    Requires: types of all values are known.  Ensures: the same values, less the rounding of the sums.  Attention, whose
    products have no weight, has kernels of its own and stays.
    """
    products = [node for node in model.graph if _is_narrow_product(node)]
    for node in products:
        _wrap(model.graph, node)
    return bool(products)


def _is_narrow_product(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = node.inputs[1]
    if weight is None or weight.dtype != _NARROW:
        return False
    producer = weight.producer()
    source = producer.inputs[0] if producer is not None and producer.op_type == "Transpose" else weight
    return source is not None and source.is_initializer()


def _wrap(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            cast = _cast(node, value, _WIDE)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    output = node.outputs[0]
    users = list(output.uses())
    output.type = ir.TensorType(_WIDE)
    narrow = _cast(node, output, _NARROW)
    graph.insert_after(node, narrow)
    for user, index in users:
        user.replace_input_with(index, narrow.outputs[0])
    if output.is_graph_output():  # which keeps its name and its dtype
        narrow.outputs[0].name, output.name = output.name, None
        graph.outputs[graph.outputs.index(output)] = narrow.outputs[0]


def _cast(beside: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], attributes={"to": int(dtype)})
    cast.metadata_props.update(beside.metadata_props)  # part of the same module
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(dtype)
    return cast
