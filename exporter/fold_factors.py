"""The factors of the folded sums: weight times gates, for each accumulator, feature and channel.

The forms need them in two ways: apart, for each feature [batch, accumulators, width], or side by side along the last
axis.  Where each feature has one gate of its own for each channel, the table of gates has them side by side already.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from taylorseer.exporter.fold_forms import GraphWriter

__all__ = ["FoldFactors"]


class FoldFactors:
    """The factors of a full graph; nodes are made for the way that is asked for."""

    def __init__(
        self,
        writer: GraphWriter,
        weights: ir.Value,
        table: ir.Value | None,
        columns: Mapping[str, int],
        terms: Sequence[Sequence[str]],
        width: int,
    ) -> None:
        """Keep what the factors are made of.

        Args:
            writer: of the full graph.
            weights: float32 [1, accumulators, 1].
            table: of the gates, float32 [batch, accumulators, columns]; None: there are none.
            columns: of the table, by the name of the gate in their order: 1, or one for each channel.
            terms: names of the gates of each feature.
            width: channels.
        """
        self._writer, self._weights, self._table, self._columns = writer, weights, table, columns
        self.graph = writer.graph
        """Where the nodes are made."""
        self._terms, self._width = terms, width
        assert weights.shape is not None
        self._count = int(weights.shape[1])  # type: ignore[arg-type]

    def apart(self) -> list[ir.Value]:
        """Return the factors of each feature, float32 [batch, accumulators, width]; [1, ...] if ungated."""
        gates: dict[str, ir.Value] = {}
        if self._table is not None:
            parts = self._writer.split(self._table, 2, list(self._columns.values()))
            gates = dict(zip(self._columns, parts, strict=True))
        return [self._factor([gates[name] for name in names]) for names in self._terms]

    def joined(self, sizes: Sequence[int]) -> list[ir.Value]:
        """Return the factors of groups of so many features, float32 [batch, accumulators, features * width]."""
        whole = self._weighted_table()
        if whole is None:
            parts = self.apart()
            batch = parts[0].shape[0]  # type: ignore[index]
            shape = [batch if isinstance(batch, int) else "batch", self._count, len(parts) * self._width]
            whole = self._writer.add("Concat", parts, shape, axis=2) if len(parts) > 1 else parts[0]
        return self._writer.split(whole, 2, [size * self._width for size in sizes])

    def _weighted_table(self) -> ir.Value | None:
        """Return the table times the weights, where its columns are the factors as they stand."""
        own = [(name, self._width) for names in self._terms for name in names]
        if self._table is None or own != list(self._columns.items()) or len(own) != len(self._terms):
            return None
        return self._writer.add("Mul", [self._table, self._weights], ("batch", self._count, len(own) * self._width))

    def _factor(self, gates: Sequence[ir.Value]) -> ir.Value:
        factor = self._weights
        for gate in gates:
            size = max(int(value.shape[2]) for value in (factor, gate))  # type: ignore[index,arg-type]
            factor = self._writer.add("Mul", [factor, gate], ("batch", self._count, size))
        return factor if factor.shape[2] == self._width else self._wide(factor)  # type: ignore[index]

    def _wide(self, factor: ir.Value) -> ir.Value:
        """Repeat one number for each channel."""
        shape = [*list(factor.shape or ())[:2], self._width]
        return self._writer.add("Expand", [factor, self._writer.integers(1, 1, self._width)], shape)  # type: ignore[arg-type]
