"""The accumulators of a session one by one: each is a tensor, or some rows of the tensor of its window."""

import dataclasses

from taylorseer.accumulators import stacked_shape
from taylorseer.manifest import FoldingSpec
from taylorseer.runtime.backend import Buffer, Call, Memory
from taylorseer.runtime.memory import ACCUMULATORS, STAGED

__all__ = ["AccumulatorSlots"]


class AccumulatorSlots:
    """Clears slots of the ring, and gives a forecast the one that it reads.

    With one row of the batch the slots of a window lie one after another, and a forecast reads its slot where it is.
    With several rows a slot lies in pieces, one in each row, and is copied before the forecast.
    """

    def __init__(self, folding: FoldingSpec, memory: Memory, rows: int) -> None:
        """Keep the memory and no buffer of it, which would outlive the memory's close.

        Args:
            folding: of the bundle.
            memory: of the session.
            rows: of the model's batch.
        """
        self._memory, self._rows = memory, rows
        self._stacked, _ = stacked_shape(folding)
        self._size = int(folding.shape[1])

    def clear(self, slot: int) -> None:
        """Fill a slot with zeros, in order with the calls."""
        for piece in self._pieces(slot):
            piece.clear()

    def readable(self, slot: int) -> Buffer:
        """Return what a forecast reads as its accumulator, [batch, rows, width]."""
        return self._memory[STAGED] if self._in_pieces else self._pieces(slot)[0]

    def staging(self, slot: int) -> list[Call]:
        """Return the calls that have to come before a forecast, so that it can read a slot: one or none."""
        if not self._in_pieces:
            return []
        staged = self._memory[STAGED]
        return [_Copy(piece, staged.part(row, 0, self._size)) for row, piece in enumerate(self._pieces(slot))]

    @property
    def _in_pieces(self) -> bool:
        return self._stacked > 1 and self._rows > 1

    def _pieces(self, slot: int) -> list[Buffer]:
        tensor, place = divmod(slot, self._stacked)
        whole, start = self._memory[f"{ACCUMULATORS}{tensor}"], place * self._size
        if self._stacked == 1:
            return [whole]
        return [whole.part(row, start, start + self._size) for row in range(self._rows)]


@dataclasses.dataclass(frozen=True)
class _Copy:
    source: Buffer
    target: Buffer

    def run(self) -> None:
        """Copy, in order with the calls."""
        self.target.copy(self.source)
