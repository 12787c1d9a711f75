"""Sums of gated features: the form that a forecast's residual stream has to have."""

import dataclasses
import enum
from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["Mixed", "Origin", "Piece", "Range", "Sum", "joined", "part_of"]

Range = tuple[int, int]
"""(start, stop)."""


class Origin(enum.Enum):
    """What a value without features is made of."""

    KNOWN = "known"
    """Constants, weights and what prepare made."""
    LATENT = "latent"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One addend of a sum, on some of its rows."""

    source: ir.Value
    """A feature, or a value without features."""
    feature: str | None
    """The feature's name; None: a value without features."""
    latent: bool
    """Whether a value without features is made of the latent."""
    gates: tuple[ir.Value, ...] = ()
    rows: Range
    """Of the sum."""
    source_rows: Range
    """Of the source; one row where the source is broadcast over several."""


@dataclasses.dataclass(frozen=True)
class Sum:
    """A value that is linear in its features, with gates for coefficients."""

    pieces: tuple[Piece, ...]
    casts: tuple[str, ...] = ()
    """Names of the values that were rounded on the way."""

    @property
    def features(self) -> list[str]:
        """Names of the features, one for each piece that has one."""
        return [piece.feature for piece in self.pieces if piece.feature is not None]

    @property
    def addends(self) -> list[Piece]:
        """The pieces without features."""
        return [piece for piece in self.pieces if piece.feature is None]

    @property
    def latent(self) -> bool:
        """Whether the latent is in it."""
        return any(piece.latent for piece in self.pieces)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A value that knows features and is no sum of them."""

    features: tuple[str, ...]


def joined(pieces: Sequence[Piece], parts: Sequence[Sum]) -> Sum:
    """Return the sum of ``pieces``, with neighboring rows of one source in one piece again."""
    merged: list[Piece] = []
    for piece in pieces:
        for index, other in enumerate(merged):
            ends = (other.rows[1], other.source_rows[1]) == (piece.rows[0], piece.source_rows[0])
            if ends and (other.source, other.gates) == (piece.source, piece.gates):
                rows, source_rows = (other.rows[0], piece.rows[1]), (other.source_rows[0], piece.source_rows[1])
                merged[index] = dataclasses.replace(other, rows=rows, source_rows=source_rows)
                break
        else:
            merged.append(piece)
    return Sum(tuple(merged), tuple(dict.fromkeys(name for part in parts for name in part.casts)))


def part_of(piece: Piece, start: int, stop: int) -> Piece | None:
    """Return the part of ``piece`` on the rows from ``start`` to ``stop``, counted from ``start``; None without any."""
    first, last = max(piece.rows[0], start), min(piece.rows[1], stop)
    if first >= last:
        return None
    source = piece.source_rows
    if source[1] - source[0] == piece.rows[1] - piece.rows[0]:
        begin = source[0] + first - piece.rows[0]
        source = (begin, begin + last - first)
    return dataclasses.replace(piece, rows=(first - start, last - start), source_rows=source)
