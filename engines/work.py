"""The least an engine must do: floating-point operations and bytes of a graph, from shapes alone.

Against a device's measured bandwidth and throughput this gives a floor for the time of a step.  Weights are not read.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from taylorseer.errors import DependencyError, GraphError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Bound", "Floor", "Work", "graph_work"]

Bound = Literal["bytes", "flops"]

_Rows = Mapping[str | None, int]
"""Symbolic size -> number."""

_COUNTED = ("Conv", "Gemm", "MatMul")
_UNCOUNTABLE = ("Attention", "ConvTranspose", "If", "Loop", "MatMulInteger", "QLinearConv", "QLinearMatMul", "Scan")
"""Products of other kinds, and graphs inside a node: leaving them out in silence would understate the work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floor:
    """The shortest time that the work can take on a device."""

    seconds: float
    bound: Bound
    """Which of the two takes that long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What one run of an engine must compute and move, at one batch."""

    flops: int
    """2 m n k of each matrix product and convolution; everything else is not counted."""
    weight_bytes: int
    """Each initializer once; of a table that is only looked up, the rows that are."""
    io_bytes: int
    """Each input and output of the graph once."""

    @property
    def total_bytes(self) -> int:
        """The fewest bytes that pass through the device's memory; what stays in its cache from the last run is less."""
        return self.weight_bytes + self.io_bytes

    def floor_seconds(self, copy_bytes_per_second: float, flops_per_second: float) -> Floor:
        """Return the floor on a device.

        Args:
            copy_bytes_per_second: of a large copy, bytes read plus bytes written.
            flops_per_second: of a large matrix product in the engine's precision.
        """
        moving, computing = self.total_bytes / copy_bytes_per_second, self.flops / flops_per_second
        return Floor(seconds=max(moving, computing), bound="bytes" if moving >= computing else "flops")


def graph_work(path: pathlib.Path, *, batch: int = 1, step_batch: int = 1) -> Work:
    """Count the work of the ONNX graph at ``path`` with the symbolic sizes ``batch`` and ``step_batch`` replaced.

    Raises:
        DependencyError: onnx-ir is not installed.
        GraphError: the file is no ONNX graph, a shape is not known, or a node's work cannot be counted.
    """
    graph = _load(path)
    rows: _Rows = {"batch": batch, "step_batch": step_batch}
    flops = sum(_flops(node, rows) for node in graph)
    ends = {id(value): value for value in (*graph.inputs, *graph.outputs)}
    weights = [value for value in graph.initializers.values() if id(value) not in ends]
    return Work(
        flops=flops,
        weight_bytes=sum(_weight_bytes(value, rows) for value in weights),
        io_bytes=sum(_bytes(value, rows) for value in ends.values()),
    )


def _load(path: pathlib.Path) -> "ir.Graph":
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise DependencyError("Counting work needs onnx-ir: `pip install 'taylorseer-trt[profile]'`.") from error
    try:
        model = ir.load(path)
    except Exception as error:  # onnx-ir passes on whatever its protobuf reader raises
        raise GraphError(f"{path} cannot be read as an ONNX graph: {error}. Build the bundle again.") from error
    if any(value.shape is None for node in model.graph for value in node.outputs):
        _infer_shapes(model)
    return model.graph


def _infer_shapes(model: "ir.Model") -> None:
    """Complete the shapes in place; ONNX's inference reads small constants, never the weights."""
    try:
        from onnx_ir.passes.common import ShapeInferencePass

        ShapeInferencePass(strict_mode=False)(model)
    except ImportError as error:
        raise DependencyError("Inferring shapes needs onnx: `pip install 'taylorseer-trt[profile]'`.") from error


def _flops(node: "ir.Node", rows: _Rows) -> int:
    if node.op_type in _UNCOUNTABLE:
        raise GraphError(
            f"The work of node {node.name!r} ({node.op_type}) cannot be counted; {', '.join(_COUNTED)} can. "
            "Export the graph with plain matrix products."
        )
    if node.op_type not in _COUNTED or node.domain not in ("", "ai.onnx"):
        return 0
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None  # the operators require both
    return 2 * math.prod(_sizes(node.outputs[0], rows)) * _summed(node, left, right, rows)


def _summed(node: "ir.Node", left: "ir.Value", right: "ir.Value", rows: _Rows) -> int:
    """Return how many products make up one number of the output."""
    if node.op_type == "Conv":
        return math.prod(_sizes(right, rows)[1:])  # [channels out, channels in / groups, *kernel]
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transA", 0)
    return _sizes(left, rows)[0 if transposed else -1]


def _weight_bytes(value: "ir.Value", rows: _Rows) -> int:
    """Return the bytes of an initializer, less the rows of a table that no lookup asks for."""
    uses = [(use.node, use.idx) for use in value.uses()]
    whole = _bytes(value, rows)
    if not all(node.op_type == "Gather" and i == 0 and not node.attributes.get_int("axis", 0) for node, i in uses):
        return whole
    return min(whole, sum(_bytes(node.outputs[0], rows) for node, _ in uses))


def _bytes(value: "ir.Value", rows: _Rows) -> int:
    if value.dtype is None:
        raise GraphError(f"The dtype of {value.name!r} is not known: export the graph with types.")
    return -(-math.prod(_sizes(value, rows)) * int(value.dtype.bitwidth) // 8)


def _sizes(value: "ir.Value", rows: _Rows) -> tuple[int, ...]:
    if value.shape is None:
        raise GraphError(f"The shape of {value.name!r} is not known, and inference does not find it.")
    return tuple(_size(value, size, rows) for size in value.shape)


def _size(value: "ir.Value", size: "int | ir.SymbolicDim", rows: _Rows) -> int:
    if isinstance(size, int):
        return size
    if size.value in rows:
        return rows[size.value]
    known = " and ".join(map(repr, rows))
    raise GraphError(f"The shape {value.shape} of {value.name!r} has a size other than numbers, {known}: {size}.")
