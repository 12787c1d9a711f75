"""Which values of a forecast graph are sums of gated features, and which operator leaves that form, and why.

Each value is one of four: known before the latent is (constants and what prepare made), made of the latent, a
:class:`Sum`, or :class:`Mixed`, which knows features in some other way.

``h2 = Add(Add(embed, Mul(g1, F1)), Mul(g2, F2))``: a sum of three pieces; ``LayerNormalization(h2)``: mixed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir

from taylorseer.exporter.passes.slices import row_slice
from taylorseer.exporter.sums import Mixed, Origin, Piece, Sum, joined, part_of

__all__ = ["Departure", "find_sums", "quoted"]

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_LARGEST_FLOAT16 = 65504

_ROWS, _WIDTH = -2, -1
"""Axes of [batch, rows, width], counted from the right, as operands of a lower rank are aligned."""

_PRODUCT = "a block's own product is computed of it, so a feature is missing"
_REARRANGED = "its rows are rearranged, and a feature is remembered as [batch, rows, width]"

_REASONS = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "Einsum"), _PRODUCT),
    **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"), _REARRANGED),
    "Sub": "the coefficient -1 is no gate; negate the gate and add",
    "Div": "it is divided, and a gate has to multiply",
}

Kind = Origin | Sum | Mixed
Kinds = dict[ir.Value, Kind]


@dataclasses.dataclass(frozen=True)
class Departure:
    """A node that takes a sum and does not hand on one."""

    node: ir.Node
    value: ir.Value
    """The sum that it takes."""
    why: str
    """A sentence's end: what the node does to the sum."""
    gate: bool
    """Whether the reason is a gate that is not known before the latent or the features are."""


class _NoSumError(Exception):
    """Leaves a rule: the node does not keep the form."""

    def __init__(self, why: str, *, gate: bool = False) -> None:
        super().__init__(why)
        self.why, self.gate = why, gate


def find_sums(
    nodes: Iterable[ir.Node], features: Mapping[ir.Value, str], latents: Iterable[ir.Value]
) -> tuple[Kinds, list[Departure]]:
    """Return the kind of each value that is not known before the latent, and the nodes that leave the form, in order.

    Args:
        nodes: in topological order.
        features: graph inputs of the shape [batch, rows, width], and the features' names.
        latents: the graph inputs that are not known before the latent.
    """
    kinds: Kinds = dict.fromkeys(latents, Origin.LATENT)
    for value, name in features.items():
        rows = (0, _size(value, _ROWS))
        kinds[value] = Sum((Piece(source=value, feature=name, latent=False, rows=rows, source_rows=rows),))
    departures: list[Departure] = []
    for node in nodes:
        result = _result(node, kinds, departures)
        if result is not Origin.KNOWN:
            kinds.update(dict.fromkeys(node.outputs, result))
    return kinds, departures


def quoted(names: Iterable[str]) -> str:
    """Return how a message lists features: the first two, and how many more."""
    unique = list(dict.fromkeys(names))
    text = " and ".join(map(repr, unique[:2]))
    return f"{text} and {len(unique) - 2} more" if len(unique) > 2 else text


def _result(node: ir.Node, kinds: Kinds, departures: list[Departure]) -> Kind:
    operands = [value for value in node.inputs if value is not None]
    known = [kinds.get(value, Origin.KNOWN) for value in operands]
    sums = [value for value, kind in zip(operands, known, strict=True) if isinstance(kind, Sum)]
    features = tuple(dict.fromkeys(n for kind in known if isinstance(kind, Sum | Mixed) for n in kind.features))
    if not features:
        return Origin.LATENT if Origin.LATENT in known else Origin.KNOWN
    if sums:
        try:
            rule = _RULES.get(node.op_type, _leave) if node.domain in ("", "ai.onnx") else _leave
            return rule(node, kinds)
        except _NoSumError as left:
            sums.sort(key=lambda value: not _sum(value, kinds).latent)  # the stream is named rather than what meets it
            departures.extend(Departure(node, value, left.why, left.gate) for value in dict.fromkeys(sums))
    return Mixed(features)


def _leave(node: ir.Node, kinds: Kinds) -> Kind:
    """Give the reason of an operator that never keeps the form."""
    if node.op_type in ("Clip", "Max", "Min"):
        bounds = [_number(value) for value in node.inputs if value is not None and value not in kinds]
        if bounds and all(bound is not None and abs(bound) >= _LARGEST_FLOAT16 for bound in bounds):
            raise _NoSumError("a clip to the range of float16 is not linear; use --precision bf16, which needs no clip")
    raise _NoSumError(_REASONS.get(node.op_type, f"{node.op_type} is not linear in it, or not known to be"))


def _number(value: ir.Value) -> float | None:
    producer = value.producer()
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        return _number(producer.inputs[0])
    tensor = ir.convenience.get_const_tensor(value)
    return float(tensor.numpy().reshape(())) if tensor is not None and tensor.size == 1 else None


def _add(node: ir.Node, kinds: Kinds) -> Sum:
    operands = [value for value in node.inputs if value is not None]
    rows = max(_size(value, _ROWS) for value in operands)
    parts = [_part(value, kinds, rows) for value in operands]
    _require_no_broadcast(node, kinds)
    return joined([piece for part in parts for piece in part.pieces], parts)


def _cast(node: ir.Node, kinds: Kinds) -> Sum:
    target = ir.DataType(node.attributes["to"].as_int())
    if target not in _FLOATS:
        raise _NoSumError(f"it is cast to {target.name}; only casts between 16 and 32 bit floats only round")
    total = _sum(node.inputs[0], kinds)
    return dataclasses.replace(total, casts=(*total.casts, str(node.outputs[0].name)))


def _concat(node: ir.Node, kinds: Kinds) -> Sum:
    axis = node.attributes["axis"].as_int() % 3
    if axis != 1:
        raise _NoSumError(f"it is joined along the {('batch', 'rows', 'width')[axis]}; only rows may be joined")
    parts, pieces, offset = [], [], 0
    for value in (value for value in node.inputs if value is not None):
        rows = _size(value, _ROWS)
        parts.append(_part(value, kinds, rows))
        for piece in parts[-1].pieces:
            pieces.append(dataclasses.replace(piece, rows=(piece.rows[0] + offset, piece.rows[1] + offset)))
        offset += rows
    return joined(pieces, parts)


def _multiply(node: ir.Node, kinds: Kinds) -> Sum:
    left, right = (value for value in node.inputs if value is not None)
    factor, value = (left, right) if isinstance(kinds.get(right), Sum) else (right, left)
    kind, total = kinds.get(factor, Origin.KNOWN), _sum(value, kinds)
    if isinstance(kind, Sum | Mixed):
        if both := [name for name in total.features if name in kind.features]:
            raise _NoSumError(f"{quoted(both)} is multiplied by itself", gate=True)
        raise _NoSumError(f"its gate {factor.name!r} reads another feature, {quoted(kind.features)}", gate=True)
    if kind is Origin.LATENT:
        raise _NoSumError(f"its gate {factor.name!r} reads the latent, and gates have to be known before", gate=True)
    if total.addends:
        raise _NoSumError(f"it scales the residual itself, with {total.addends[0].source.name!r} in it")
    if _size(factor, _ROWS) != 1:
        what = f"its gate {factor.name!r} {factor.shape} differs from row to row"
        raise _NoSumError(f"{what}; [batch, 1, width] or a scalar is needed")
    _require_no_broadcast(node, kinds)
    pieces = [dataclasses.replace(piece, gates=(*piece.gates, factor)) for piece in total.pieces]
    return dataclasses.replace(total, pieces=tuple(pieces))


def _slice(node: ir.Node, kinds: Kinds) -> Kind:
    cut = row_slice(node)
    if cut is None:
        raise _NoSumError("it is cut with a step, on several axes, or on an axis or at bounds that are not fixed")
    if cut.axis != 1:
        raise _NoSumError(f"it is cut on the {('batch', 'rows', 'width')[cut.axis]}; only rows may be cut")
    total = _sum(cut.source, kinds)
    pieces = [piece for piece in (part_of(piece, cut.start, cut.stop) for piece in total.pieces) if piece is not None]
    if all(piece.feature is None for piece in pieces):
        return Origin.LATENT if any(piece.latent for piece in pieces) else Origin.KNOWN
    return dataclasses.replace(total, pieces=tuple(pieces))


def _sum(value: ir.Value | None, kinds: Kinds) -> Sum:
    kind = None if value is None else kinds[value]
    assert isinstance(kind, Sum)
    return kind


def _part(value: ir.Value, kinds: Kinds, rows: int) -> Sum:
    """Return ``value`` as a sum; without features it is one addend on all of ``rows``."""
    kind = kinds.get(value, Origin.KNOWN)
    if isinstance(kind, Mixed):
        raise _NoSumError(f"it is joined with {value.name!r}, which knows {quoted(kind.features)} but not by addition")
    if isinstance(kind, Sum):
        return kind
    latent, source_rows = kind is Origin.LATENT, (0, _size(value, _ROWS))
    return Sum((Piece(source=value, feature=None, latent=latent, rows=(0, rows), source_rows=source_rows),))


def _require_no_broadcast(node: ir.Node, kinds: Kinds) -> None:
    """A feature has all rows and the whole width of what it is added to."""
    operands = [value for value in node.inputs if value is not None]
    for value in (value for value in operands if isinstance(kinds.get(value), Sum)):
        for other in operands:
            for axis in (_ROWS, _WIDTH):
                if _size(other, axis) not in (1, _size(value, axis)):
                    axes = "the rows or the width"
                    raise _NoSumError(f"{value.shape} is broadcast to {axes} of {other.name!r} {other.shape}")


def _size(value: ir.Value, axis: int) -> int:
    """Return the size along ``axis``, counted from the right: 1 where ``value`` has no such axis."""
    if value.shape is None or len(value.shape) > 3:
        raise _NoSumError(f"{value.name!r} has the shape {value.shape}, and [batch, rows, width] is needed")
    if -axis > len(value.shape):
        return 1
    size = value.shape[axis]
    if not isinstance(size, int):
        raise _NoSumError(f"{value.name!r} {value.shape} has no fixed size where rows and width are")
    return size


_RULES: Mapping[str, Callable[[ir.Node, Kinds], Kind]] = {
    "Add": _add,
    "Cast": _cast,
    "Concat": _concat,
    "Identity": lambda node, kinds: _sum(node.inputs[0], kinds),
    "Mul": _multiply,
    "Slice": _slice,
}
"""Operators that keep the form, or say why they do not on these operands."""
