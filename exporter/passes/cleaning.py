"""Folds what is constant once the sizes are fixed, merges equal nodes and drops unused ones.

Parameters have no data at this point (:mod:`taylorseer.exporter.tracing`), so no weight is folded, copied or read.
"""

import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxscript.optimizer

from taylorseer.exporter.passes.boolean_where import spell_out_boolean_where
from taylorseer.exporter.passes.static_reshapes import make_reshapes_static

__all__ = ["clean", "drop_unused", "finish"]

_FOLD_LIMIT = 1 << 22
"""Elements.  Rotary tables of images are folded (FLUX 1024x1024: 0.6 M); those of long clips stay in the graph."""


def clean(model: ir.Model) -> None:
    """Fold constants, merge common subexpressions and remove what is unused, in place.

    Requires: parameters are initializers without data.  Ensures: the graph computes the same values.
    """
    # Equal nodes first: every block asks for the same rotary tables, and folding would copy them into each.
    common.CommonSubexpressionEliminationPass()(model)
    onnxscript.optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT
    )
    make_reshapes_static(model)
    spell_out_boolean_where(model)
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes, initializers and graph inputs that no output depends on, in place."""
    common.RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):
        if not value.uses():
            model.graph.inputs.remove(value)


def finish(model: ir.Model) -> None:
    """Make names unique, the order of nodes topological, and drop initializers that nothing uses, in place."""
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
        common.NameFixPass(),
    )(model)
