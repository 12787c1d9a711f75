"""The sums of the folded state as graph nodes, in the two forms that engines run fast.

``chains``: ``A_i = ... + Mul(F_2, k_2i) + Mul(F_1, k_1i)``, an addition for each accumulator and feature.  TensorRT
fuses them into one kernel that reads every feature once.

``channels``: ``Transpose(MatMul(k [width, i, m], F [width, m, rows]))``, one small product for each channel.  ONNX
Runtime fuses no chains on a CPU, and each of their links would go through memory.  Taking the sums apart would as well:
the accumulators i of a window stay one tensor, one after another along its rows, and have a product of their own.

Both take the features in groups, so that no more than one group has to be in memory at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from taylorseer.manifest import FoldForm

__all__ = ["GraphWriter", "weighted_sums"]

_FLOAT = ir.DataType.FLOAT


class GraphWriter:
    """Appends float32 nodes with known shapes to a graph; :func:`cleaning.finish` puts them in their order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[int | str], **attributes: object
    ) -> ir.Value:
        """Append a node with one float32 output."""
        return self.add_many(op_type, inputs, shape, 1, **attributes)[0]

    def add_many(
        self, op_type: str, inputs: Sequence[ir.Value], shape: Sequence[int | str], count: int, **attributes: object
    ) -> list[ir.Value]:
        """Append a node with ``count`` float32 outputs of one shape."""
        node = ir.node(op_type, list(inputs), attributes=attributes or None, num_outputs=count)  # type: ignore[arg-type]
        self.graph.append(node)
        for output in node.outputs:
            output.shape, output.type = ir.Shape(list(shape)), ir.TensorType(_FLOAT)
        return list(node.outputs)

    def cast(self, value: ir.Value, dtype: ir.DataType = _FLOAT) -> ir.Value:
        """Return ``value`` in another dtype, or itself where it has that."""
        if value.dtype == dtype:
            return value
        assert value.shape is not None
        result = self.add("Cast", [value], list(value.shape), to=int(dtype))
        result.type = ir.TensorType(dtype)
        return result

    def split(self, value: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value]:
        """Cut ``value`` along ``axis`` into parts of these sizes."""
        if len(sizes) == 1:
            return [value]
        assert value.shape is not None
        parts = self.add_many("Split", [value, self.integers(*sizes)], list(value.shape), len(sizes), axis=axis)
        for part, size in zip(parts, sizes, strict=True):
            assert part.shape is not None
            part.shape = ir.Shape([size if index == axis else n for index, n in enumerate(part.shape)])
        return parts

    def integers(self, *numbers: int) -> ir.Value:
        """Return a constant int64 [n]."""
        name = "integers." + ".".join(map(str, numbers))
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.array(numbers, np.int64), name=name)
            self.graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return self.graph.initializers[name]


def weighted_sums(
    writer: GraphWriter,
    form: FoldForm,
    features: Sequence[ir.Value],
    factors: Sequence[ir.Value],
    started: Mapping[int, ir.Value],
    *,
    group: int,
    stacked: int = 1,
) -> list[ir.Value]:
    """Return for each accumulator i ``started[i] + sum_m factors[m][:, i] * features[m]``, float32.

    Several of them can be one tensor [batch, stacked * rows, width].

    Args:
        writer: of the full graph.
        form: how to add.
        features: [batch, rows, width] each, of any float dtype.
        factors: for each feature, float32 [batch, accumulators, width]; all [1, accumulators, width] if ungated.
        started: what some tensors of accumulators have already, float32 as the sums.
        group: features that are taken at once.
        stacked: accumulators of one tensor, of which their number is a multiple; ``chains`` make 1.
    """
    assert stacked == 1 or form == "channels"
    sums: list[ir.Value | None] = [started.get(index) for index in range(_size(factors[0], 1) // stacked)]
    for start in range(0, len(features), group):
        values = [writer.cast(feature) for feature in features[start : start + group]]
        taken = factors[start : start + group]
        parts = _chains(writer, values, taken) if form == "chains" else _channels(writer, values, taken, stacked)
        sums = [_plus(writer, before, part) for before, part in zip(sums, parts, strict=True)]
    return [value for value in sums if value is not None]


def _plus(writer: GraphWriter, before: ir.Value | None, part: ir.Value) -> ir.Value:
    return part if before is None else writer.add("Add", [before, part], _shape(part))


def _chains(writer: GraphWriter, features: Sequence[ir.Value], factors: Sequence[ir.Value]) -> list[ir.Value]:
    count, shape = _size(factors[0], 1), _shape(features[0])
    columns = [writer.split(factor, 1, [1] * count) for factor in factors]
    return [_chain(writer, features, [parts[index] for parts in columns], shape) for index in range(count)]


def _chain(
    writer: GraphWriter, features: Sequence[ir.Value], factors: Sequence[ir.Value], shape: Sequence[int | str]
) -> ir.Value:
    products = [writer.add("Mul", pair, shape) for pair in zip(features, factors, strict=True)]
    total = products[0]
    for product in products[1:]:
        total = writer.add("Add", [total, product], shape)
    return total


def _channels(
    writer: GraphWriter, features: Sequence[ir.Value], factors: Sequence[ir.Value], stacked: int
) -> list[ir.Value]:
    batch, rows, width = _shape(features[0])[0], _size(features[0], 1), _size(features[0], 2)
    count, members = _size(factors[0], 1), len(features)
    # Side by side along one axis, features and sums are turned by one plain transposition each.
    channels = _by_channel(writer, features, (batch, width, members, rows))
    gates = _by_channel(writer, factors, (_shape(factors[0])[0], width, members, count))
    return [_stack(writer, part, channels) for part in writer.split(gates, 3, [stacked] * (count // stacked))]


def _stack(writer: GraphWriter, gates: ir.Value, channels: ir.Value) -> ir.Value:
    """Return the sums of some accumulators [batch, stacked * rows, width]."""
    gated, width, members, stacked = _shape(gates)
    batch, rows = _shape(channels)[0], _size(channels, 3)
    assert isinstance(stacked, int) and isinstance(width, int)
    gates = writer.add("Transpose", [gates], (gated, width, stacked, members), perm=[0, 1, 3, 2])
    sums = writer.add("MatMul", [gates, channels], (batch, width, stacked, rows))
    joined = (batch, width, stacked * rows)
    sums = writer.add("Reshape", [sums, writer.integers(0, width, stacked * rows)], joined)
    return _turned(writer, sums, (batch, stacked * rows, width))


def _by_channel(writer: GraphWriter, values: Sequence[ir.Value], shape: Sequence[int | str]) -> ir.Value:
    """Bring values of [batch, n, width] into the one shape [batch, width, members, n]."""
    batch, width, members, inner = shape
    assert isinstance(width, int) and isinstance(members, int) and isinstance(inner, int)
    joined = writer.add("Concat", values, (batch, members * inner, width), axis=1) if members > 1 else values[0]
    turned = _turned(writer, joined, (batch, width, members * inner))
    return writer.add("Reshape", [turned, writer.integers(0, width, members, inner)], shape)


def _turned(writer: GraphWriter, value: ir.Value, shape: Sequence[int | str]) -> ir.Value:
    return writer.add("Transpose", [value], shape, perm=[0, 2, 1])


def _shape(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [size if isinstance(size, int) else "batch" for size in value.shape]


def _size(value: ir.Value, axis: int) -> int:
    size = _shape(value)[axis]
    assert isinstance(size, int)
    return size
