"""Proves that a forecast is ``final_layer(embed(latent) + sum_m g_m F_m)``, so that its state can be folded.

The folded state sums the features of all modules ahead of time, with the gates of the step that will read them.  That
is exact where the residual stream is linear in the features and no gate reads the latent; where a forecast graph is
not of that form, the answer is a reason.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from taylorseer.exporter.linearity import Departure, find_sums, quoted
from taylorseer.exporter.sums import Piece, Sum

__all__ = ["Folding", "Refusal", "Term", "prove_foldable"]

_KNOWN_INPUTS = ("prepared.", "request.")
"""How the names of inputs begin that are known before the latent; every other input counts as the latent."""

_NEEDED = (
    "Between the embedded latent and the final layer only additions of gated features, slices and concats of rows, and "
    "casts between 16 and 32 bit floats can be folded."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """One feature's part of the residual stream: the product of its gates and the feature."""

    feature: str
    gates: tuple[str, ...]
    """Names of the values whose product is the gate, each one row per batch row or a scalar; empty: ungated."""
    rows: tuple[int, int]
    """(start, stop) of the stream's rows that it is added to."""
    feature_rows: tuple[int, int]
    """(start, stop) of the feature's rows that are added."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folding:
    """A proof: the stream is ``embed + sum of terms``, and the prediction knows the features through it alone."""

    stream: str
    """Name of the value that the final layer takes over from."""
    embed: str
    """Name of the value that the terms are added to: of the latent, and of no feature."""
    embed_rows: tuple[int, int]
    """(start, stop) of its rows that the stream has."""
    terms: tuple[Term, ...]
    """One for each feature, in the order of the features."""
    casts: tuple[str, ...]
    """Names of values between the features and the stream that were rounded to another float."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a forecast graph cannot be folded."""

    reason: str
    """Sentences: the node, what was found there, and what is needed."""


def prove_foldable(forecast: ir.Model, features: Mapping[str, str]) -> Folding | Refusal:
    """Prove that ``forecast`` can be folded, or say why not; the graph is left as it is.

    Args:
        forecast: a forecast graph in which each feature is one input [batch, rows, width], and in which the inputs that
            are known before the latent are named ``prepared.*`` and ``request.*``.
        features: names of the inputs that stand for features -> names of the features.
    """
    if not features:
        return Refusal("No feature is forecast, so there is nothing to fold.")
    nodes = _reaching_nodes(forecast.graph)
    read = {value for node in nodes for value in node.inputs} | set(forecast.graph.outputs)
    inputs = {str(value.name): value for value in forecast.graph.inputs}
    for value_name, name in features.items():
        if value_name not in inputs or inputs[value_name] not in read:
            return Refusal(f"The feature {name!r} never reaches the prediction. Only live features can be folded.")
        if not _has_rows(inputs[value_name]):
            shape = inputs[value_name].shape
            return Refusal(
                f"The feature {name!r} has the shape {shape}; [batch, rows, width] with fixed sizes is needed."
            )
    for node in nodes:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return Refusal(f"{node.op_type} {_name(node)!r} has graphs of its own, which the proof does not look into.")
    named = {inputs[value_name]: name for value_name, name in features.items()}
    latents = [v for n, v in inputs.items() if v not in named and not n.startswith(_KNOWN_INPUTS)]
    return _Proof(nodes, forecast.graph.outputs, named, latents).conclude()


def _reaching_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes that an output depends on, each after those that it depends on itself."""
    ordered: dict[ir.Node, None] = {}
    pending = [value.producer() for value in graph.outputs]
    while pending:
        node = pending[-1]
        above = [] if node is None else [v.producer() for v in node.inputs if v is not None]
        waiting = [producer for producer in above if producer is not None and producer not in ordered]
        if waiting and node not in ordered:
            pending.extend(reversed(waiting))
            continue
        pending.pop()
        if node is not None:
            ordered[node] = None
    return list(ordered)


def _has_rows(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 3 and all(isinstance(n, int) for n in list(value.shape)[1:])


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


class _Proof:
    """The sums of one graph, and the conclusions from where they end."""

    def __init__(
        self,
        nodes: Sequence[ir.Node],
        outputs: Iterable[ir.Value],
        features: Mapping[ir.Value, str],
        latents: Collection[ir.Value],
    ) -> None:
        self.features = list(features.values())
        self.kinds, self.departures = find_sums(nodes, features, latents)
        ends = [*(departure.value for departure in self.departures), *outputs]
        self.ends = {self._before_casts(value): None for value in ends if isinstance(self.kinds.get(value), Sum)}

    def conclude(self) -> Folding | Refusal:
        """Return the folding if all features end in one sum, and the first reason against it otherwise."""
        whole = [value for value in self.ends if self._is_whole(value)]
        if len(self.ends) == len(whole) == 1:
            return self._folding(whole[0])
        reaching = {name for value in self.ends for name in self._sum(value).features}
        for name in self.features:
            if name not in reaching:
                return Refusal(
                    f"No row of the feature {name!r} reaches the prediction. Only live features can be folded."
                )
        if len(self.ends) == 1:
            (end,) = self.ends
            return Refusal(f"Nothing of the latent is added to the features in {end.name!r}. {_NEEDED}")
        early = [departure for departure in self.departures if not self._is_whole(self._before_casts(departure.value))]
        for departure in early:
            if departure.gate:
                return _refusal(departure, "")
        streams = [value for value in self.ends if self._sum(value).latent]
        apart = [v for v in streams if not any(self._includes(other, v) for other in streams if other is not v)]
        if len(apart) > 1:
            return self._separate(apart)
        if not early:
            return self._separate(list(self.ends))
        return _refusal(early[0], self._position(early[0].value))

    def _sum(self, value: ir.Value) -> Sum:
        kind = self.kinds[value]
        assert isinstance(kind, Sum)
        return kind

    def _is_whole(self, value: ir.Value) -> bool:
        total = self._sum(value)
        return total.latent and set(total.features) == set(self.features)

    def _includes(self, larger: ir.Value, smaller: ir.Value) -> bool:
        return set(self._sum(larger).features) > set(self._sum(smaller).features)

    def _before_casts(self, value: ir.Value) -> ir.Value:
        """Return the sum that ``value`` is a rounded copy of: the last rounding is the final layer's."""
        producer = value.producer()
        while producer is not None and producer.op_type in ("Cast", "Identity"):
            source = producer.inputs[0]
            assert source is not None
            value, producer = source, source.producer()
        return value

    def _position(self, value: ir.Value) -> str:
        total = self._sum(value)
        later = [name for name in self.features if name not in total.features]
        if not total.latent:
            return f" before {quoted(total.features)} is added to the stream"
        return f" between the additions, with {quoted(later)} not yet added"

    def _separate(self, ends: Sequence[ir.Value]) -> Refusal:
        streams = " and ".join(f"{v.name!r} (with {quoted(self._sum(v).features)})" for v in ends[:2])
        return Refusal(f"The prediction reads {len(ends)} streams, {streams}; one is needed. {_NEEDED}")

    def _folding(self, stream: ir.Value) -> Folding | Refusal:
        total = self._sum(stream)
        for name in self.features:
            if (count := total.features.count(name)) != 1:
                return Refusal(f"The feature {name!r} is added to {stream.name!r} {count} times; once is needed.")
        reason = _embed_fault(total, stream)
        if reason is not None:
            return Refusal(reason)
        (embed,) = total.addends
        pieces = {piece.feature: piece for piece in total.pieces}
        return Folding(
            stream=str(stream.name),
            embed=str(embed.source.name),
            embed_rows=embed.source_rows,
            terms=tuple(_term(name, pieces[name]) for name in self.features),
            casts=total.casts,
        )


def _refusal(departure: Departure, position: str) -> Refusal:
    node = departure.node
    return Refusal(
        f"{node.op_type} {_name(node)!r} takes {departure.value.name!r}{position}: {departure.why}. {_NEEDED}"
    )


def _embed_fault(total: Sum, stream: ir.Value) -> str | None:
    """Return what keeps the addends without features from being one value, made of the latent, with all rows."""
    rows = max(piece.rows[1] for piece in total.pieces)
    for start, stop in _gaps(total.addends, rows):
        above = quoted(p.feature for p in total.pieces if p.feature and p.rows[0] < stop and p.rows[1] > start)
        return (
            f"The rows {start}:{stop} of {stream.name!r}, to which {above or 'no feature'} is added, are of another "
            "stream: nothing of the latent is in them, yet they reach the prediction. Only rows of the prediction can "
            "be folded."
        )
    if len(total.addends) > 1:
        parts = " and ".join(f"{p.source.name!r} (rows {p.rows[0]}:{p.rows[1]})" for p in total.addends[:2])
        return f"Several addends of {stream.name!r} have no features, {parts}; one for all rows is needed. {_NEEDED}"
    (embed,) = total.addends
    if embed.source_rows[1] - embed.source_rows[0] != rows:
        shape = embed.source.shape
        return f"The {rows} rows of {stream.name!r} share one row of {embed.source.name!r} {shape}; each needs its own."
    return None


def _gaps(addends: Sequence[Piece], rows: int) -> list[tuple[int, int]]:
    """Return the ranges of rows without the latent."""
    gaps, end = [], 0
    for start, stop in sorted(piece.rows for piece in addends if piece.latent):
        if start > end:
            gaps.append((end, start))
        end = max(end, stop)
    return [*gaps, (end, rows)] if end < rows else gaps


def _term(name: str, piece: Piece) -> Term:
    gates = tuple(str(gate.name) for gate in piece.gates)
    return Term(feature=name, gates=gates, rows=piece.rows, feature_rows=piece.source_rows)
