"""A session's memory for ONNX Runtime: tensors that stay where they are and are bound by address."""

import copy
import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.backend import Buffer, Clock, Probe, StepInputs, StepTable
from taylorseer.runtime.memory import MemoryPlan, PlannedTensor

__all__ = ["ArrayBuffer", "DeviceBuffer", "OnnxRuntimeBuffer", "OnnxRuntimeMemory", "WallClock", "host_memory"]

Placement = tuple[str, int, Any, tuple[int, ...], int]
"""Device, its number, dtype, shape, address."""


class ArrayBuffer:
    """A C-contiguous NumPy array in host memory."""

    def __init__(self, host: NDArray[Any]) -> None:
        self.host = host
        self.shape, self.dtype, self.nbytes = host.shape, host.dtype, host.nbytes
        self.address = host.ctypes.data

    def write(self, values: Any, *, repeat: int = 1) -> None:
        """Copy in an array, several times along the first axis if asked."""
        if repeat == 1:
            np.copyto(self.host, values)
        else:
            np.copyto(self.host.reshape(repeat, *values.shape), values)

    def read(self, rows: int | None = None) -> NDArray[Any]:
        """Return a copy of the first rows, or of all."""
        return self.host[:rows].copy()

    def export(self, rows: int) -> NDArray[Any]:
        """Return a copy of the first rows: NumPy's arrays offer DLPack."""
        return self.read(rows)

    def clear(self) -> None:
        """Fill with zeros."""
        self.host.fill(0)

    def copy(self, source: "ArrayBuffer") -> None:
        """Copy in another buffer."""
        np.copyto(self.host, source.host)

    def first(self, rows: int) -> "ArrayBuffer":
        """Return the first rows as a buffer on the same memory."""
        return ArrayBuffer(self.host[:rows])

    def part(self, row: int, start: int, stop: int) -> "ArrayBuffer":
        """Return ``[row : row + 1, start:stop]`` as a buffer on the same memory."""
        return ArrayBuffer(self.host[row : row + 1, start:stop])

    def placement(self) -> Placement:
        """Return what ONNX Runtime's bindings want to know."""
        return "cpu", 0, self.dtype, self.shape, self.address


class DeviceBuffer:
    """A tensor in the memory of an execution provider's device."""

    def __init__(self, onnxruntime: Any, tensor: PlannedTensor, device: str) -> None:
        self.shape, self.dtype, self.nbytes = tensor.shape, tensor.numpy_dtype, tensor.nbytes
        self._ort, self._tensor, self._device = onnxruntime, tensor, device
        self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(self.shape), self.dtype.type, device, 0)
        self.address = int(self._value.data_ptr())
        self.clear()

    def write(self, values: Any, *, repeat: int = 1) -> None:
        """Copy in an array, several times along the first axis if asked."""
        whole = np.concatenate([values] * repeat) if repeat > 1 else values
        self._value.update_inplace(np.ascontiguousarray(whole, self.dtype))

    def read(self, rows: int | None = None) -> NDArray[Any]:
        """Return a copy of the first rows, or of all, on the host."""
        array: NDArray[Any] = self._value.numpy()[: self.shape[0] if rows is None else rows]
        return array

    def export(self, rows: int) -> NDArray[Any]:
        """Return a copy of the first rows on the host: NumPy's arrays offer DLPack."""
        return self.read(rows)

    def clear(self) -> None:
        """Fill with zeros."""
        self.write(np.zeros(self.shape, self.dtype))

    def copy(self, source: "DeviceBuffer") -> None:
        """Copy in another buffer, by way of the host."""
        self.write(source.read())

    def first(self, rows: int) -> "DeviceBuffer":
        """Return the first rows as a buffer on the same memory, for binding; it is not to be written or read."""
        part = copy.copy(self)
        part.shape = (rows, *self.shape[1:])
        part.nbytes = self.nbytes // self.shape[0] * rows
        return part

    def part(self, row: int, start: int, stop: int) -> "DeviceBuffer":
        """Return ``[row : row + 1, start:stop]`` for binding, as :meth:`first`."""
        part, size = copy.copy(self), self.nbytes // (self.shape[0] * self.shape[1])
        part.shape, part.nbytes = (1, stop - start, *self.shape[2:]), (stop - start) * size
        part.address = self.address + (row * self.shape[1] + start) * size
        return part

    def placement(self) -> Placement:
        """Return what ONNX Runtime's bindings want to know."""
        return self._device, 0, self.dtype, self.shape, self.address


OnnxRuntimeBuffer = ArrayBuffer | DeviceBuffer


class OnnxRuntimeMemory:
    """The buffers of a session: one block on the CPU, a tensor each on another device."""

    def __init__(
        self,
        plan: MemoryPlan,
        allocate: Callable[[PlannedTensor], OnnxRuntimeBuffer],
        table: NDArray[np.uint8] | None = None,
    ) -> None:
        """Allocate the buffers; ``table``: host memory for the step table, uint8 [steps * bytes of a row]."""
        self._plan = plan
        self._buffers = {name: allocate(tensor) for name, tensor in plan.tensors.items()}
        rows = np.zeros(plan.steps * plan.row_bytes, np.uint8) if table is None else table
        self.table = _columns(plan, rows)
        """What each step input is at every step, [steps, ...]; on the host."""

    def __getitem__(self, name: str) -> OnnxRuntimeBuffer:
        """Return a buffer."""
        return self._buffers[name]

    def activate(self) -> None:
        """Nothing to do: ONNX Runtime keeps track of its device."""

    def step_inputs(self) -> StepInputs:
        """Return what feeds the plan's step inputs."""
        return _WrittenInputs(self, self._plan)

    def probe(self, name: str) -> Probe:
        """Return a probe of the buffer ``name``."""
        return _ReadProbe(self, name)

    def clock(self, marks: int) -> Clock:
        """Return a clock of the host's time: calls are synchronous."""
        return WallClock()

    def close(self) -> None:
        """Let the buffers go."""
        self._buffers.clear()
        self.table.clear()


class _WrittenInputs:
    """Step inputs whose table is on the host, and which are written one by one."""

    def __init__(self, memory: OnnxRuntimeMemory, plan: MemoryPlan) -> None:
        self._memory = memory  # and no buffer, which would outlive the memory's close
        self._tensors = {name: tensor for name, tensor in plan.tensors.items() if tensor.use == "step"}
        self._forecast = {n for n, tensor in self._tensors.items() if tensor.offset < plan.forecast_row_bytes}
        self._ahead = {
            name: np.zeros(tensor.shape, tensor.numpy_dtype)
            for name, tensor in plan.tensors.items()
            if tensor.use == "ahead"
        }

    def load(self, table: StepTable) -> None:
        """Keep the values of all steps."""
        for name, values in table.items():
            self._memory.table[name][: len(values)] = values

    def store(self, name: str, step: int, values: Buffer) -> None:
        """Keep the values of several steps."""
        steps = values.read().reshape(-1, *self._tensors[name].shape)
        self._memory.table[name][step : step + len(steps)] = steps

    def select(self, step: int, *, full: bool) -> None:
        """Write the values of ``step``."""
        for name in self._tensors if full else self._forecast:
            self._memory[name].write(self._memory.table[name][step])

    def look_ahead(self, target: str, source: str, steps: Sequence[int]) -> None:
        """Gather the rows here, for a device takes a whole tensor."""
        rows, table = self._ahead[target], self._memory.table[source]
        for row, step in enumerate(steps):
            rows[row] = table[step]
        self._memory[target].write(rows)


class _ReadProbe:
    def __init__(self, memory: OnnxRuntimeMemory, name: str) -> None:
        self._memory, self._name = memory, name

    def send(self) -> None:
        """Nothing to do: calls are synchronous."""

    def latest(self) -> float:
        """Read the number."""
        return float(self._memory[self._name].read()[0])

    def reset(self) -> None:
        """Zero the number."""
        self._memory[self._name].clear()


class WallClock:
    """Marks moments on the host: calls are synchronous."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def start(self) -> None:
        """Forget all marks, and mark this moment."""
        self._marks = [time.perf_counter()]

    def mark(self) -> None:
        """Mark this moment."""
        self._marks.append(time.perf_counter())

    def wait(self, mark: int | None = None) -> None:
        """Nothing to do: what was called has happened."""

    def seconds(self) -> NDArray[np.float64]:
        """Return the time between marks."""
        return np.diff(self._marks)


def host_memory(plan: MemoryPlan) -> OnnxRuntimeMemory:
    """Return zeroed host memory, one block; MemoryError when the machine has too little."""
    block = _block(plan.total_bytes)
    table = block[plan.table_offset : plan.table_offset + plan.steps * plan.row_bytes]
    return OnnxRuntimeMemory(plan, lambda tensor: ArrayBuffer(_view(block, tensor)), table)


def _block(size: int) -> NDArray[np.uint8]:
    """Return zeroed host memory that begins at a multiple of the plan's alignment.

    It is mapped for itself: what a session held goes back to the system with it, where malloc might keep it.
    """
    try:
        return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
    except (OSError, ValueError, OverflowError) as error:
        raise MemoryError(str(error)) from error


def _columns(plan: MemoryPlan, table: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the column [steps, ...] of each step input in a table of whole rows."""
    rows = table.reshape(plan.steps, plan.row_bytes)
    columns: dict[str, NDArray[Any]] = {}
    for name, tensor in plan.tensors.items():
        if tensor.use == "step":
            start = tensor.offset - plan.row_offset
            column = rows[:, start : start + tensor.nbytes].view(tensor.numpy_dtype)
            columns[name] = column.reshape(plan.steps, *tensor.shape)
    return columns


def _view(block: NDArray[np.uint8], tensor: PlannedTensor) -> NDArray[Any]:
    array: NDArray[Any] = block[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.numpy_dtype)
    return array.reshape(tensor.shape)
