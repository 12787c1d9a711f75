"""What the session needs from whatever executes the graphs: memory that stays, and calls bound to it once."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.exchange import DeviceArray
from taylorseer.runtime.memory import MemoryPlan

__all__ = ["Backend", "Buffer", "Call", "CallSequence", "Clock", "Engine", "Memory", "Probe", "StepInputs", "StepTable"]

StepTable = Mapping[str, NDArray[Any]]
"""For each step input an array [steps, ...] of the input's own shape and dtype."""


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

    @property
    def address(self) -> int:
        """Where the tensor begins, in the backend's address space."""

    def write(self, values: NDArray[Any] | DeviceArray, *, repeat: int = 1) -> None:
        """Copy in ``values``, ``repeat`` times one after another along the first axis, in order with the calls."""

    def read(self, rows: int | None = None) -> NDArray[Any]:
        """Return a copy of the first rows, or of all, after everything that was asked before has happened."""

    def export(self, rows: int) -> Any:
        """Return a copy of the first rows where the backend has them, for DLPack."""

    def clear(self) -> None:
        """Fill with zeros, in order with the calls."""

    def copy(self, source: Any) -> None:
        """Copy in another buffer of the same memory and as many bytes, in order with the calls."""

    def first(self, rows: int) -> "Buffer":
        """Return the buffer's first rows as a buffer on the same memory."""

    def part(self, row: int, start: int, stop: int) -> "Buffer":
        """Return ``[row : row + 1, start:stop]`` as a buffer on the same memory."""


class Call(Protocol):
    """Engines with every input and output bound to a buffer."""

    def run(self) -> None:
        """Execute, or enqueue where the backend is asynchronous; calls happen in the order of their runs."""


class Engine(Protocol):
    """A loaded graph."""

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Bind inputs and outputs, by name, to buffers of the right shape and dtype."""


class StepInputs(Protocol):
    """The tensors that differ from step to step: coefficients, update numbers, and what prepare made."""

    def load(self, table: StepTable) -> None:
        """Take the values of all steps of a request, of the inputs that ``table`` names."""

    def store(self, name: str, step: int, values: Buffer) -> None:
        """Take the values of an input for ``step`` and the steps that follow, in order with the calls."""

    def select(self, step: int, *, full: bool) -> None:
        """Let the buffers hold the values of ``step``, those that its kind reads, in order with the calls."""

    def look_ahead(self, target: str, source: str, steps: Sequence[int]) -> None:
        """Let row i of the buffer ``target`` hold what the input ``source`` is at ``steps[i]``, in order."""


class Probe(Protocol):
    """Watches one float32 number [1] without stopping for it."""

    def send(self) -> None:
        """Fetch the number as the calls so far leave it, in order with them."""

    def latest(self) -> float:
        """Return the newest number that has arrived."""

    def reset(self) -> None:
        """Forget what has arrived."""


class Clock(Protocol):
    """Marks moments in the order of the calls."""

    def start(self) -> None:
        """Forget all marks, and mark this moment."""

    def mark(self) -> None:
        """Mark this moment."""

    def wait(self, mark: int | None = None) -> None:
        """Wait for a mark, counted up from the start's, which is 0; None: the last."""

    def seconds(self) -> NDArray[np.float64]:
        """Wait for the last mark; return the time between consecutive marks."""


class Memory(Protocol):
    """The buffers of one session, by the names of its memory plan; all made at once, and freed at once."""

    def __getitem__(self, name: str) -> Buffer:
        """Return a buffer."""

    def activate(self) -> None:
        """Make the memory's device the calling thread's, before anything is asked of it there."""

    def step_inputs(self) -> StepInputs:
        """Return what feeds the plan's step inputs."""

    def probe(self, name: str) -> Probe:
        """Return a probe of the buffer ``name``."""

    def clock(self, marks: int) -> Clock:
        """Return a clock for up to ``marks`` marks."""

    def close(self) -> None:
        """Free everything; the buffers may not be used afterwards."""


class Backend(Protocol):
    """Loads engines and owns the memory that they work on."""

    def load(self, kind: str) -> Engine:
        """Return the engine of the graph ``prepare``, ``full``, ``forecast`` or ``update``."""

    def reserve(self, plan: MemoryPlan) -> Memory:
        """Allocate all memory of a session, zeroed."""

    def sequence(self, calls: Sequence[Call]) -> Call:
        """Return one call that does ``calls`` one after another, as cheaply as the backend can."""

    def scratch_bytes(self) -> int:
        """Return the bytes of working memory that the engines share within a session."""


@dataclasses.dataclass(frozen=True)
class CallSequence:
    """Calls that run one after another."""

    calls: tuple[Call, ...]

    def run(self) -> None:
        """Run them all."""
        for call in self.calls:
            call.run()
