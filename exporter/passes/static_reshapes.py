"""Reshapes to a computed shape become reshapes to a constant one.

Before: ``Reshape(x, Concat(batch, 53, 2, 16))`` with ``batch`` read off some input.
After:  ``Reshape(x, [-1, 53, 2, 16])``, so that no input is kept alive for its batch size alone.
"""

import numpy as np
import onnx_ir as ir

__all__ = ["make_reshapes_static"]


def make_reshapes_static(model: ir.Model) -> bool:
    """Give every Reshape a constant shape where one dimension at most is dynamic, in place.

    Requires: shapes of Reshape outputs are known but for dynamic dimensions.  Ensures: the same values.
    """
    changed = False
    for node in model.graph:
        target = node.inputs[1] if node.op_type == "Reshape" else None
        if target is None or target.const_value is not None:
            continue
        sizes = _sizes(node.outputs[0])
        if sizes is None:
            continue
        name = f"{node.outputs[0].name}.shape"
        constant = ir.Value(name=name, const_value=ir.tensor(np.array(sizes, np.int64), name=name))
        model.graph.register_initializer(constant)
        node.replace_input_with(1, constant)
        node.attributes.pop("allowzero", None)
        changed = True
    return changed


def _sizes(value: ir.Value) -> list[int] | None:
    """Return the sizes of ``value`` with -1 for its one dynamic dimension, or None where that does not tell them."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    return sizes if sizes.count(-1) <= 1 and 0 not in sizes else None
