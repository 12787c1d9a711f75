"""A graph of one large matrix product: what this TensorRT reaches at best is the ceiling of every engine."""

import pathlib

import onnx_ir as ir

from taylorseer.manifest import GraphSpec, TensorSpec

__all__ = ["write_gemm_graph"]

_DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def write_gemm_graph(path: pathlib.Path, size: int, precision: str) -> GraphSpec:
    """Write ``product = left @ right``, all [size, size], to ``path``; 2 * size^3 FLOPs."""
    dtype, shape = _DTYPES[precision], (size, size)
    left, right, product = (
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype)) for name in ("left", "right", "product")
    )
    node = ir.node("MatMul", [left, right], outputs=[product])
    graph = ir.Graph([left, right], [product], nodes=[node], opset_imports={"": 20}, name="gemm")
    ir.save(ir.Model(graph, ir_version=10), path)
    name = dtype.numpy().name
    a, b, c = (
        TensorSpec(name=value.name or "", role="condition", shape=shape, dtype=name) for value in (left, right, product)
    )
    return GraphSpec(file=path.name, inputs=(a, b), outputs=(c,))
