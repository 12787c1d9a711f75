"""A session's memory on a GPU: one allocation, tensors at the places of the plan, a stream of its own."""

import contextlib
import copy
import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.cuda import Cuda
from taylorseer.errors import ShapeError, TaylorSeerError
from taylorseer.runtime.backend import Buffer, Clock, Probe, StepInputs, StepTable
from taylorseer.runtime.device_tensor import DeviceTensor
from taylorseer.runtime.exchange import DeviceArray
from taylorseer.runtime.memory import MemoryPlan, PlannedTensor

__all__ = ["DeviceBuffer", "DeviceMemory"]

_NON_BLOCKING = 1
"""cudaStreamNonBlocking: the stream does not wait for the default stream."""


class DeviceMemory:
    """All memory of one session; closing it frees it."""

    def __init__(self, cuda: Cuda, plan: MemoryPlan, device: int = 0) -> None:
        """Allocate and zero the plan's block on a GPU, which becomes the calling thread's.

        Raises:
            MemoryPlanError: the device has too little memory left.
            DeviceError: CUDA failed; nothing is kept.
        """
        self.cuda, self.plan, self.device, self.stream, self.address = cuda, plan, device, 0, 0
        self.contexts: dict[tuple[object, ...], Any] = {}
        """Execution contexts of this session, by the kind of their engine and the shapes that they are set to."""
        self.parts: list[_PinnedProbe | _EventClock] = []
        """What owns more than the block; each is here from the moment that it owns something."""
        self.graphs: list[Any] = []
        """Captured CUDA graphs that work on this memory."""
        self.activate()
        self.address = int(cuda.call("cudaMalloc", max(plan.total_bytes, 1)))
        self._buffers = {name: DeviceBuffer(self, tensor) for name, tensor in plan.tensors.items()}
        try:
            self.stream = int(cuda.call("cudaStreamCreateWithFlags", _NON_BLOCKING))
            cuda.call("cudaMemsetAsync", self.address, 0, plan.total_bytes, self.stream)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> "DeviceBuffer":
        """Return a buffer."""
        return self._buffers[name]

    @property
    def scratch(self) -> int:
        """Address of the working memory that the session's execution contexts share."""
        return self.address + self.plan.scratch_offset

    def activate(self) -> None:
        """Make the memory's GPU the calling thread's: CUDA keeps one for each thread."""
        self.cuda.call("cudaSetDevice", self.device)

    def step_inputs(self) -> StepInputs:
        """Return what feeds the plan's step inputs."""
        return _TableInputs(self)

    def probe(self, name: str) -> Probe:
        """Return a probe of the buffer ``name``."""
        return _PinnedProbe(self, self[name])

    def clock(self, marks: int) -> Clock:
        """Return a clock of up to ``marks`` CUDA events."""
        return _EventClock(self, marks)

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""
        self.cuda.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free everything; a poisoned device keeps it until the process ends."""
        if not self.address or self.cuda.poisoned:
            return
        with contextlib.ExitStack() as releases:  # the last one first; one that fails does not keep the others
            releases.callback(self._buffers.clear)
            releases.callback(self.cuda.call, "cudaFree", self.address)
            if self.stream:
                releases.callback(self.cuda.call, "cudaStreamDestroy", self.stream)
            for part in self.parts:
                releases.callback(part.close)
            for graph in self.graphs:
                releases.callback(self.cuda.call, "cudaGraphExecDestroy", graph)
            releases.callback(self.contexts.clear)
            self.address = 0
            self.activate()
            self.synchronize()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Free what nobody closed, such as the memory of a session that failed while it was made."""
        if not is_finalizing():
            with contextlib.suppress(TaylorSeerError):
                self.close()


class DeviceBuffer:
    """A tensor at its place in the session's block."""

    def __init__(self, memory: DeviceMemory, tensor: PlannedTensor) -> None:
        self.memory = memory
        self.shape, self.dtype, self.nbytes = tensor.shape, tensor.numpy_dtype, tensor.nbytes
        self.address = memory.address + tensor.offset

    def write(self, values: NDArray[Any] | DeviceArray, *, repeat: int = 1) -> None:
        """Copy in an array of the host or of the device, several times along the first axis if asked."""
        cuda, stream = self.memory.cuda, self.memory.stream
        if isinstance(values, np.ndarray):
            values = np.ascontiguousarray(values)
            source, kind = values.ctypes.data, cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        else:
            if values.device not in (None, self.memory.device):
                raise ShapeError(
                    f"An array lies on GPU {values.device}, the session works on GPU {self.memory.device}: "
                    "move it there."
                )
            _wait_for(self.memory, values.stream)
            source, kind = values.address, cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for index in range(repeat):
            cuda.call("cudaMemcpyAsync", self.address + index * values.nbytes, source, values.nbytes, kind, stream)
        if not isinstance(values, np.ndarray):
            self.memory.synchronize()  # the owner may let go of it as soon as this returns

    def read(self, rows: int | None = None) -> NDArray[Any]:
        """Return a copy of the first rows, or of all, on the host; waits for it."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        host = np.empty(shape, self.dtype)
        cuda = self.memory.cuda
        kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda.call("cudaMemcpyAsync", host.ctypes.data, self.address, host.nbytes, kind, self.memory.stream)
        self.memory.synchronize()
        return host

    def export(self, rows: int) -> DeviceTensor:
        """Return a copy of the first rows in memory of its own; complete before any later work of the caller."""
        shape = (rows, *self.shape[1:])
        return DeviceTensor(self.memory.cuda, self.address, shape, self.dtype, self.memory.stream)

    def clear(self) -> None:
        """Fill with zeros."""
        self.memory.cuda.call("cudaMemsetAsync", self.address, 0, self.nbytes, self.memory.stream)

    def copy(self, source: "DeviceBuffer") -> None:
        """Copy in another buffer of the session."""
        kind = self.memory.cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.memory.cuda.call("cudaMemcpyAsync", self.address, source.address, self.nbytes, kind, self.memory.stream)

    def first(self, rows: int) -> "DeviceBuffer":
        """Return the first rows as a buffer on the same memory."""
        part = copy.copy(self)
        part.shape = (rows, *self.shape[1:])
        part.nbytes = self.nbytes // self.shape[0] * rows
        return part

    def part(self, row: int, start: int, stop: int) -> "DeviceBuffer":
        """Return ``[row : row + 1, start:stop]`` as a buffer on the same memory."""
        part, size = copy.copy(self), self.nbytes // (self.shape[0] * self.shape[1])
        part.shape, part.nbytes = (1, stop - start, *self.shape[2:]), (stop - start) * size
        part.address = self.address + (row * self.shape[1] + start) * size
        return part


def _wait_for(memory: DeviceMemory, stream: int | None) -> None:
    """Let the session's stream wait for what ``stream`` has been given so far."""
    if stream is None:
        return
    event = memory.cuda.call("cudaEventCreate")
    try:
        memory.cuda.call("cudaEventRecord", event, stream)
        memory.cuda.call("cudaStreamWaitEvent", memory.stream, event, 0)
    finally:
        memory.cuda.call("cudaEventDestroy", event)


class _TableInputs:
    """The values of all steps lie on the device; selecting a step copies its row to where the engines read it."""

    def __init__(self, memory: DeviceMemory) -> None:
        plan = memory.plan
        self._memory, self._row_bytes, self._forecast_bytes = memory, plan.row_bytes, plan.forecast_row_bytes
        self._inputs = {name: tensor for name, tensor in plan.tensors.items() if tensor.use == "step"}
        self._row, self._table = memory.address + plan.row_offset, memory.address + plan.table_offset
        self._copy, self._copy_rows = memory.cuda.runtime.cudaMemcpyAsync, memory.cuda.runtime.cudaMemcpy2DAsync
        self._kind = memory.cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    def load(self, table: StepTable) -> None:
        """Copy the values of all steps to the device, once a request."""
        kind = self._memory.cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        for name, given in table.items():
            values = np.ascontiguousarray(given, self._inputs[name].numpy_dtype)
            self._store(name, 0, values.ctypes.data, len(values), kind)

    def store(self, name: str, step: int, values: Buffer) -> None:
        """Enqueue the copy of a column's rows from where prepare left them."""
        self._store(name, step, values.address, values.nbytes // self._inputs[name].nbytes, self._kind)

    def _store(self, name: str, step: int, source: int, count: int, kind: Any) -> None:
        tensor = self._inputs[name]
        target, width = self._table + step * self._row_bytes + tensor.offset, tensor.nbytes
        arguments = (target, self._row_bytes, source, width, width, count, kind, self._memory.stream)
        self._memory.cuda.call("cudaMemcpy2DAsync", *arguments)

    def select(self, step: int, *, full: bool) -> None:
        """Enqueue the copy of one row, or of its beginning."""
        source, size = self._table + step * self._row_bytes, self._row_bytes if full else self._forecast_bytes
        (code,) = self._copy(self._row, source, size, self._kind, self._memory.stream)
        if code:
            self._memory.cuda.check(code, "cudaMemcpyAsync")

    def look_ahead(self, target: str, source: str, steps: Sequence[int]) -> None:
        """Enqueue a copy of the column's rows for each run of consecutive steps."""
        start, last = 0, len(steps) - 1
        address, tensor = self._memory[target].address, self._inputs[source]
        for row, step in enumerate(steps):
            if row == last or steps[row + 1] != step + 1:
                self._gather(address + start * tensor.nbytes, tensor, steps[start], row + 1 - start)
                start = row + 1

    def _gather(self, target: int, tensor: PlannedTensor, step: int, count: int) -> None:
        source, width = self._table + step * self._row_bytes + tensor.offset, tensor.nbytes
        stream = self._memory.stream
        (code,) = self._copy_rows(target, width, source, self._row_bytes, width, count, self._kind, stream)
        if code:
            self._memory.cuda.check(code, "cudaMemcpy2DAsync")


class _PinnedProbe:
    """A number that the device writes to page-locked host memory, where it is read without waiting."""

    def __init__(self, memory: DeviceMemory, buffer: DeviceBuffer) -> None:
        cuda = memory.cuda
        self._memory, self._source = memory, buffer.address
        self._address = int(cuda.call("cudaHostAlloc", 4, 0))
        memory.parts.append(self)
        self._number = np.ctypeslib.as_array(ctypes.cast(self._address, ctypes.POINTER(ctypes.c_float)), (1,))
        self._number[0] = 0.0
        self._copy, self._kind = cuda.runtime.cudaMemcpyAsync, cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost

    def send(self) -> None:
        """Enqueue the copy to the host."""
        (code,) = self._copy(self._address, self._source, 4, self._kind, self._memory.stream)
        if code:
            self._memory.cuda.check(code, "cudaMemcpyAsync")

    def latest(self) -> float:
        """Return what has arrived."""
        return float(self._number[0])

    def reset(self) -> None:
        """Forget what has arrived, and wait for what a failed request left on its way."""
        self._memory.synchronize()
        self._number[0] = 0.0

    def close(self) -> None:
        """Free the host memory."""
        self._memory.cuda.call("cudaFreeHost", self._address)


class _EventClock:
    """CUDA events in the session's stream."""

    def __init__(self, memory: DeviceMemory, marks: int) -> None:
        self._memory = memory
        self._events: list[Any] = []
        memory.parts.append(self)
        for _ in range(marks):
            self._events.append(memory.cuda.call("cudaEventCreate"))
        self._record = memory.cuda.runtime.cudaEventRecord
        self._count = 0

    def start(self) -> None:
        """Forget all marks, and mark this moment."""
        self._count = 0
        self.mark()

    def mark(self) -> None:
        """Enqueue an event."""
        (code,) = self._record(self._events[self._count], self._memory.stream)
        self._count += 1
        if code:
            self._memory.cuda.check(code, "cudaEventRecord")

    def wait(self, mark: int | None = None) -> None:
        """Wait for a mark, or for the last."""
        self._memory.cuda.call("cudaEventSynchronize", self._events[self._count - 1 if mark is None else mark])

    def seconds(self) -> NDArray[np.float64]:
        """Wait for the last mark; return the time between consecutive marks."""
        self.wait()
        pairs = zip(self._events[: self._count - 1], self._events[1 : self._count], strict=True)
        return np.array([self._memory.cuda.call("cudaEventElapsedTime", *pair) for pair in pairs]) / 1e3

    def close(self) -> None:
        """Destroy the events."""
        with contextlib.ExitStack() as releases:
            for event in self._events:
                releases.callback(self._memory.cuda.call, "cudaEventDestroy", event)
