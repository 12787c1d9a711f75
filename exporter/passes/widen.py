"""Every 16-bit floating-point value becomes float32: the same weights, with the rounding of the arithmetic gone.

Before: ``Cast(latent, to=bfloat16) -> MatMul(., W bfloat16) -> Cast(to=float)``
After:  ``Cast(latent, to=float) -> MatMul(., W float32) -> Cast(to=float)``, W being the same numbers.

ONNX Runtime runs the result on any CPU, which makes it the reference for plans of reduced precision.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

__all__ = ["widen"]

_NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def widen(model: ir.Model) -> bool:
    """Replace every float16 and bfloat16 of ``model`` by float32, in place.

    Requires: types of all values are known.  Ensures: no 16-bit floating-point value is left; weights keep their
    numbers, and are read one by one when the model is saved.
    """
    changed = False
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _NARROW:
            value.const_value = ir.LazyTensor(_reader(tensor), ir.DataType.FLOAT, tensor.shape, name=value.name)
            changed = True
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    for value in values:
        if value.dtype in _NARROW:
            value.type, changed = ir.TensorType(ir.DataType.FLOAT), True
    for node in model.graph:
        target = node.attributes.get("to") if node.op_type == "Cast" else None
        if target is not None and ir.DataType(target.as_int()) in _NARROW:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
                wide = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, wide)
    return changed


def _reader(tensor: ir.TensorProtocol) -> Callable[[], ir.TensorProtocol]:
    return lambda: ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
