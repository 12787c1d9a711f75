"""The folded state: the full graph sums gated features for the steps to come, the forecast graph adds one such sum.

Before: full:     ``... feature.0, feature.1, ...``
        forecast: ``final(Add(Add(embed(latent), Mul(gate_0, sum_k c_k X_0k)), Mul(gate_1, sum_k c_k X_1k)))``
After:  full:     ``accumulator.i = carried.i + weight_i * (gates_ahead_i0 * F_0 + gates_ahead_i1 * F_1)``
        forecast: ``final(Add(embed(latent), accumulator))``
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from taylorseer.accumulators import Accumulators
from taylorseer.exporter.fold_factors import FoldFactors
from taylorseer.exporter.fold_forms import GraphWriter, weighted_sums
from taylorseer.exporter.folding import Folding, Refusal, Term, prove_foldable
from taylorseer.exporter.passes.cleaning import drop_unused
from taylorseer.exporter.passes.slices import slice_rows
from taylorseer.exporter.prepare import PreparedValue, table_dtype
from taylorseer.manifest import FoldForm, FoldingSpec, TermSpec

__all__ = ["FoldOptions", "FoldedState", "prove_folded_state"]

_FLUSH_BYTES = 2 * 2**30
"""Features that are kept for one flush, at the most: as much as a session can spare beside any model."""

_LARGEST_GROUP = 12
"""More features at once save little traffic: on an H100 12 cost 0.064 ms each, 6 cost 0.075, and 1 costs 0.2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """What is chosen about a folded state."""

    accumulators: Accumulators
    dtype: ir.DataType = ir.DataType.FLOAT
    """Of the accumulators: float32, or bfloat16 for half the memory."""
    flush_group: int | None = None
    """Features that are summed at once; None: as many as fit 2 GiB, 12 at the most."""
    form: FoldForm = "chains"


def prove_folded_state(
    forecast: ir.Model, features: Mapping[str, str], values: Sequence[PreparedValue], options: FoldOptions
) -> "FoldedState | Refusal":
    """Return how the state of ``forecast`` is folded, or why it is not.

    Args:
        forecast: a forecast graph with an input for each live feature.
        features: names of these inputs -> names of the features.
        values: what prepare hands to the other graphs.
        options: of the build.
    """
    proof = prove_foldable(forecast, features)
    if isinstance(proof, Refusal):
        return proof
    stream = _value(forecast.graph, proof.stream)
    rows, width = (_fixed(stream, axis) for axis in (1, 2))
    columns = {value.input_name: value for value in values if value.every_step}
    gates = [gate for term in proof.terms for gate in term.gates]
    reason = _fault(proof, rows, width, columns)
    if reason is None and options.form == "channels" and len({bool(term.gates) for term in proof.terms}) > 1:
        reason = "Some features have gates and some have none, which the form 'channels' cannot stack."
    if reason is not None:
        return Refusal(reason)
    return FoldedState(proof, options, rows, width, tuple(columns[name] for name in dict.fromkeys(gates)))


def _fault(proof: Folding, rows: int, width: int, columns: Mapping[str, PreparedValue]) -> str | None:
    """Return what the proof allows and this rewrite does not do."""
    for term in proof.terms:
        if term.rows != (0, rows):
            return (
                f"The feature {term.feature!r} is added to the rows {term.rows[0]}:{term.rows[1]} of {rows}, and an "
                "accumulator sums features of all rows."
            )
        for gate in term.gates:
            if gate not in columns:
                return (
                    f"The gate {gate!r} of {term.feature!r} is the same at every step, or made in the forecast graph: "
                    "it has to come from prepare, one for each step."
                )
            if columns[gate].size not in (1, width):
                return f"The gate {gate!r} has {columns[gate].size} numbers, and 1 or {width} are needed."
    dtypes = {table_dtype(columns[gate]) for term in proof.terms for gate in term.gates}
    return f"The gates have {len(dtypes)} dtypes, and one table holds them." if len(dtypes) > 1 else None


class FoldedState:
    """A proven folded state, and the rewrites that it allows."""

    def __init__(
        self, proof: Folding, options: FoldOptions, rows: int, width: int, gates: tuple[PreparedValue, ...]
    ) -> None:
        self.proof, self.options, self.gates = proof, options, gates
        """``gates``: the columns of the table of gates, in their order."""
        self._shape: list[int | str] = ["batch", rows, width]
        self._stacked = options.accumulators.window if options.form == "channels" else 1

    @property
    def gates_table(self) -> str | None:
        """Name of prepare's table of gates; None: no feature has one."""
        return f"prepared.gates.{table_dtype(self.gates[0]).numpy().name}" if self.gates else None

    def spec(self, itemsize: float) -> FoldingSpec:
        """Return what the manifest says; ``itemsize`` is of one number of a feature."""
        built = self.options.accumulators
        return FoldingSpec(
            accumulators=built.count,
            carried=built.carried,
            shape=tuple(self._shape),
            dtype=self.options.dtype.numpy().name,
            flush_group=self._group(itemsize),
            form=self.options.form,
            gates=self.gates_table,
            stream=self.proof.stream,
            terms=tuple(TermSpec(**dataclasses.asdict(term)) for term in self.proof.terms),
        )

    def _group(self, itemsize: float) -> int:
        feature_bytes = itemsize * math.prod(int(size) for size in self._shape[1:])
        group = self.options.flush_group or max(1, min(_LARGEST_GROUP, int(_FLUSH_BYTES // feature_bytes)))
        return min(group, len(self.proof.terms))

    def rewrite_forecast(self, forecast: ir.Model) -> None:
        """Let the final layer read ``embed(latent) + accumulator``, in place; the inputs for features go."""
        graph = forecast.graph
        stream, embed = _value(graph, self.proof.stream), _value(graph, self.proof.embed)
        assert stream.dtype is not None
        writer = GraphWriter(graph)
        accumulator = self._input(graph, "accumulator")
        if self.proof.embed_rows != (0, embed.shape[1]):  # type: ignore[index]
            embed = slice_rows(embed, 1, *self.proof.embed_rows, graph, None)
        total = writer.add("Add", [writer.cast(embed), writer.cast(accumulator)], self._shape)
        total = writer.cast(total, stream.dtype)
        if stream.is_graph_output():
            total.name, stream.name = stream.name, None
        stream.replace_all_uses_with(total, replace_graph_outputs=True)
        drop_unused(forecast)

    def rewrite_full(self, full: ir.Model, features: Mapping[str, ir.Value]) -> None:
        """Let the full graph yield the accumulators, in place: a tensor each, or a tensor for each window of them.

        Args:
            full: takes the latent and what prepare made.
            features: by name, [batch, rows, width]: the rows that reach the prediction.
        """
        graph, built = full.graph, self.options.accumulators
        writer = GraphWriter(graph)
        values = [self._rows_of(graph, features[term.feature], term) for term in self.proof.terms]
        sums = weighted_sums(
            writer,
            self.options.form,
            values,
            self._factors(writer),
            self._carried(writer),
            group=self._group(values[0].dtype.itemsize),  # type: ignore[union-attr]
            stacked=self._stacked,
        )
        for index, value in enumerate(sums):
            output = writer.cast(value, self.options.dtype)
            output.name = f"accumulator.{index}"
            graph.outputs.append(output)
        assert len(sums) * self._stacked == built.count

    def _rows_of(self, graph: ir.Graph, value: ir.Value, term: Term) -> ir.Value:
        if term.feature_rows == (0, value.shape[1]):  # type: ignore[index]
            return value
        return slice_rows(value, 1, *term.feature_rows, graph, None)

    def _factors(self, writer: GraphWriter) -> FoldFactors:
        """Return weight times gates, of the steps that the accumulators are for."""
        count, table = self.options.accumulators.count, None
        weights = self._input(writer.graph, "fold_weights", [count])
        weights = writer.add("Reshape", [weights, writer.integers(1, count, 1)], (1, count, 1))
        columns = {gate.input_name: gate.size for gate in self.gates}
        if columns:
            total = sum(columns.values())
            ahead = self._input(writer.graph, "gates_ahead", [count, "batch", total], table_dtype(self.gates[0]))
            table = writer.add("Transpose", [writer.cast(ahead)], ("batch", count, total), perm=[1, 0, 2])
        gates = [term.gates for term in self.proof.terms]
        return FoldFactors(writer, weights, table, columns, gates, int(self._shape[2]))

    def _carried(self, writer: GraphWriter) -> list[ir.Value | None]:
        """Return what each tensor of accumulators that goes on has already, float32; None where one begins."""
        built, (batch, rows, width) = self.options.accumulators, self._shape
        shape, count = [batch, self._stacked * int(rows), width], built.carried // self._stacked
        values = [self._input(writer.graph, f"carried.{i}", shape, self.options.dtype) for i in range(count)]
        return [*map(writer.cast, values), *[None] * (built.window // self._stacked)]

    def _input(
        self, graph: ir.Graph, name: str, shape: Sequence[int | str] | None = None, dtype: ir.DataType | None = None
    ) -> ir.Value:
        """Append an input: an accumulator, or a float32 tensor of ``shape``."""
        kind = dtype or (self.options.dtype if shape is None else ir.DataType.FLOAT)
        value = ir.Value(name=name, shape=ir.Shape(list(shape or self._shape)), type=ir.TensorType(kind))
        graph.inputs.append(value)
        return value


def _value(graph: ir.Graph, name: str) -> ir.Value:
    made = (value for node in graph for value in node.outputs)
    return next(value for value in (*graph.inputs, *made) if value.name == name)


def _fixed(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size
