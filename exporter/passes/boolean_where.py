"""Selecting between booleans becomes logic, which every backend has.

Before: ``Where(condition, a, b)`` with boolean a and b (attention masks)
After:  ``Or(And(condition, a), And(Not(condition), b))``
"""

import onnx_ir as ir

__all__ = ["spell_out_boolean_where"]


def spell_out_boolean_where(model: ir.Model) -> bool:
    """Replace every Where over booleans, in place; the values stay the same."""
    changed = False
    for node in list(model.graph):
        if node.op_type != "Where" or node.outputs[0].dtype != ir.DataType.BOOL:
            continue
        condition, chosen, other = node.inputs
        inverse = ir.node("Not", [condition])
        first = ir.node("And", [condition, chosen])
        second = ir.node("And", [inverse.outputs[0], other])
        union = ir.node("Or", [first.outputs[0], second.outputs[0]])
        model.graph.insert_before(node, [inverse, first, second, union])
        result = union.outputs[0]
        result.shape, result.type, result.name = node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name
        node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        changed = True
    return changed
