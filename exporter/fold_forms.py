"""The sums of the folded state as graph nodes, in the two forms that engines run fast.

``chains``: ``A_i = ... + Mul(F_2, k_2i) + Mul(F_1, k_1i)``, an addition for each accumulator and feature.  TensorRT
fuses them into one kernel that reads every feature once.

``channels``: ``Transpose(MatMul(k [width, i, m], F [width, m, rows]))``, one small product for each channel.  ONNX
Runtime fuses no chains on a CPU, and each of their links would go through memory.  Taking the sums apart would as well:
the accumulators i of a window stay one tensor, one after another along its rows, and have a product of their own.

Both take the features in groups, so that no more than one group has to be in memory at once.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from taylorseer.manifest import FoldForm

__all__ = ["Factors", "GraphWriter", "weighted_sums"]

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


class Factors(Protocol):
    """What the features are multiplied with, float32; the batch is 1 if ungated."""

    def apart(self) -> Sequence[ir.Value]:
        """Return the factors of each feature, [batch, accumulators, width]."""

    def joined(self, sizes: Sequence[int]) -> Sequence[ir.Value]:
        """Return the factors of groups of so many features, [batch, accumulators, features * width]."""


def weighted_sums(
    writer: GraphWriter,
    form: FoldForm,
    features: Sequence[ir.Value],
    factors: Factors,
    started: Sequence[ir.Value | None],
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
        factors: of each feature for each accumulator.
        started: what each tensor of accumulators has already, float32 as the sums; None: nothing.
        group: features that are taken at once.
        stacked: accumulators of one tensor; ``chains`` make 1.
    """
    groups = [features[start : start + group] for start in range(0, len(features), group)]
    added = _chains(writer, groups, factors) if form == "chains" else _channels(writer, groups, factors, stacked)
    sums = list(started)
    for parts in added:
        sums = [_plus(writer, before, part) for before, part in zip(sums, parts, strict=True)]
    return [value for value in sums if value is not None]


def _plus(writer: GraphWriter, before: ir.Value | None, part: ir.Value) -> ir.Value:
    return part if before is None else writer.add("Add", [before, part], _shape(part))


def _chains(writer: GraphWriter, groups: Sequence[Sequence[ir.Value]], factors: Factors) -> Iterator[list[ir.Value]]:
    """Yield the sums of each group of features."""
    apart = iter(factors.apart())
    for features in groups:
        values, shape = [writer.cast(feature) for feature in features], _shape(features[0])
        taken = list(itertools.islice(apart, len(features)))
        columns = [writer.split(factor, 1, [1] * _size(factor, 1)) for factor in taken]
        yield [_chain(writer, values, row, shape) for row in zip(*columns, strict=True)]


def _chain(
    writer: GraphWriter, features: Sequence[ir.Value], factors: Sequence[ir.Value], shape: Sequence[int | str]
) -> ir.Value:
    products = [writer.add("Mul", pair, shape) for pair in zip(features, factors, strict=True)]
    total = products[0]
    for product in products[1:]:
        total = writer.add("Add", [total, product], shape)
    return total


def _channels(
    writer: GraphWriter, groups: Sequence[Sequence[ir.Value]], factors: Factors, stacked: int
) -> Iterator[list[ir.Value]]:
    """Yield the sums of each group of features."""
    for features, taken in zip(groups, factors.joined([len(features) for features in groups]), strict=True):
        channels = _by_channel(writer, [writer.cast(feature) for feature in features])
        gates = _gates_by_channel(writer, taken, len(features))
        parts = writer.split(gates, 2, [stacked] * (_size(gates, 2) // stacked))
        yield [_stack(writer, part, channels) for part in parts]


def _by_channel(writer: GraphWriter, features: Sequence[ir.Value]) -> ir.Value:
    """Bring features into the one shape [batch, width, features, rows].

    Side by side along one axis, features and sums are turned by one plain transposition each.
    """
    (batch, _, _), rows, width = _shape(features[0]), _size(features[0], 1), _size(features[0], 2)
    count = len(features)
    joined = writer.add("Concat", features, (batch, count * rows, width), axis=1) if count > 1 else features[0]
    turned = _turned(writer, joined)
    return writer.add("Reshape", [turned, writer.integers(0, width, count, rows)], (batch, width, count, rows))


def _gates_by_channel(writer: GraphWriter, factors: ir.Value, features: int) -> ir.Value:
    """Bring factors [batch, accumulators, features * width] into the shape [batch, width, accumulators, features]."""
    batch, count, width = _shape(factors)[0], _size(factors, 1), _size(factors, 2) // features
    apart = writer.add(
        "Reshape", [factors, writer.integers(0, count * features, width)], (batch, count * features, width)
    )
    shape = (batch, width, count, features)
    return writer.add("Reshape", [_turned(writer, apart), writer.integers(0, width, count, features)], shape)


def _stack(writer: GraphWriter, gates: ir.Value, channels: ir.Value) -> ir.Value:
    """Return the sums of some accumulators [batch, stacked * rows, width]."""
    (batch, *_), width, stacked, rows = _shape(channels), _size(gates, 1), _size(gates, 2), _size(channels, 3)
    sums = writer.add("MatMul", [gates, channels], (batch, width, stacked, rows))
    joined = writer.integers(0, width, stacked * rows)
    return _turned(writer, writer.add("Reshape", [sums, joined], (batch, width, stacked * rows)))


def _turned(writer: GraphWriter, value: ir.Value) -> ir.Value:
    batch, rows, columns = _shape(value)
    return writer.add("Transpose", [value], (batch, columns, rows), perm=[0, 2, 1])


def _shape(value: ir.Value) -> list[int | str]:
    assert value.shape is not None
    return [size if isinstance(size, int) else "batch" for size in value.shape]


def _size(value: ir.Value, axis: int) -> int:
    size = _shape(value)[axis]
    assert isinstance(size, int)
    return size
