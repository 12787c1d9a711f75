"""What the session needs from whatever executes the graphs: memory that stays, and calls bound to it once."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backend", "Buffer", "Call", "Engine", "HostBuffer"]


class Buffer(Protocol):
    """A tensor in the backend's memory, allocated once and never moved."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tensor."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @property
    def nbytes(self) -> int:
        """Bytes."""

    def clear(self) -> None:
        """Fill with zeros."""


class HostBuffer(Buffer, Protocol):
    """A buffer that the CPU reads and writes in place."""

    @property
    def host(self) -> NDArray[Any]:
        """A NumPy view of the memory; writing to it is how inputs are set."""


class Call(Protocol):
    """An engine with every input and output bound to a buffer."""

    def run(self) -> None:
        """Execute the engine on its buffers; allocates nothing."""


class Engine(Protocol):
    """A loaded graph."""

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Bind inputs and outputs, by name, to buffers of the right shape and dtype."""


class Backend(Protocol):
    """Loads engines and owns the memory that they work on."""

    def load(self, kind: str) -> Engine:
        """Return the engine of the graph ``full`` or ``forecast``."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """Return a zeroed buffer for what the loop writes and reads: latent, coefficients, prediction."""

    def allocate_state(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Return a zeroed buffer where the engines work, for what only they touch."""
