"""How attention is written in ONNX: the five operators that every backend fuses.

torch.onnx's own translation transposes the keys through two reshapes of a dynamic shape, which neither TensorRT's
attention fusion nor ONNX Runtime's transpose optimizer sees through.
"""

import math
from typing import Any

import onnxscript
import torch
from onnxscript import opset20 as op

__all__ = ["TRANSLATIONS"]


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(scale * query @ key^T + mask) @ value, all [batch, heads, rows, head width]."""
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("diffusion transformers attend without dropout, causality or grouped queries")
    factor = 1.0 / math.sqrt(int(query.shape[-1])) if scale is None else scale
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None and attn_mask.dtype == onnxscript.ir.DataType.BOOL:
        blocked = op.CastLike(op.Constant(value_float=-math.inf), query)
        scores = op.Where(attn_mask, scores, blocked)
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


TRANSLATIONS = {torch.ops.aten.scaled_dot_product_attention.default: _attention}
"""For ``torch.onnx.export(custom_translation_table=...)``."""
