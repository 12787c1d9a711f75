"""A session's memory for ONNX Runtime: tensors that stay where they are and are bound by address."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.backend import Buffer, Clock, Probe, StepInputs, StepTable
from taylorseer.runtime.memory import ALIGNMENT, MemoryPlan, PlannedTensor

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

    def placement(self) -> Placement:
        """Return what ONNX Runtime's bindings want to know."""
        return "cpu", 0, self.dtype, self.shape, self.address


class DeviceBuffer:
    """A tensor in the memory of an execution provider's device."""

    def __init__(self, onnxruntime: Any, tensor: PlannedTensor, device: str) -> None:
        self.shape, self.dtype, self.nbytes = tensor.shape, tensor.numpy_dtype, tensor.nbytes
        self._device = device
        self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(self.shape), self.dtype.type, device, 0)
        self.address = int(self._value.data_ptr())
        self.clear()

    def write(self, values: Any, *, repeat: int = 1) -> None:
        """Copy in an array, several times along the first axis if asked."""
        whole = np.concatenate([values] * repeat) if repeat > 1 else values
        self._value.update_inplace(np.ascontiguousarray(whole, self.dtype))

    def read(self, rows: int | None = None) -> NDArray[Any]:
        """Return a copy of the first rows, or of all, on the host."""
        array: NDArray[Any] = self._value.numpy()[:rows]
        return array

    def export(self, rows: int) -> NDArray[Any]:
        """Return a copy of the first rows on the host: NumPy's arrays offer DLPack."""
        return self.read(rows)

    def clear(self) -> None:
        """Fill with zeros."""
        self.write(np.zeros(self.shape, self.dtype))

    def placement(self) -> Placement:
        """Return what ONNX Runtime's bindings want to know."""
        return self._device, 0, self.dtype, self.shape, self.address


OnnxRuntimeBuffer = ArrayBuffer | DeviceBuffer


class OnnxRuntimeMemory:
    """The buffers of a session: one block on the CPU, a tensor each on another device."""

    def __init__(self, plan: MemoryPlan, allocate: Callable[[PlannedTensor], OnnxRuntimeBuffer]) -> None:
        self._plan = plan
        self._buffers = {name: allocate(tensor) for name, tensor in plan.tensors.items()}

    def __getitem__(self, name: str) -> OnnxRuntimeBuffer:
        """Return a buffer."""
        return self._buffers[name]

    def step_inputs(self) -> StepInputs:
        """Return what feeds the plan's step inputs."""
        return _WrittenInputs({name: self[name] for name, t in self._plan.tensors.items() if t.use == "step"})

    def probe(self, name: str) -> Probe:
        """Return a probe of the buffer ``name``."""
        return _ReadProbe(self[name])

    def clock(self, marks: int) -> Clock:
        """Return a clock of the host's time: calls are synchronous."""
        return WallClock()

    def close(self) -> None:
        """Let the buffers go."""
        self._buffers.clear()


class _WrittenInputs:
    def __init__(self, buffers: Mapping[str, Buffer]) -> None:
        self._buffers = buffers
        self._table: StepTable = {}

    def load(self, table: StepTable) -> None:
        """Keep the values of all steps."""
        self._table = table

    def select(self, step: int) -> None:
        """Write the values of ``step``."""
        for name, buffer in self._buffers.items():
            buffer.write(self._table[name][step])


class _ReadProbe:
    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer

    def send(self) -> None:
        """Nothing to do: calls are synchronous."""

    def latest(self) -> float:
        """Read the number."""
        return float(self._buffer.read()[0])

    def reset(self) -> None:
        """Zero the number."""
        self._buffer.clear()


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

    def wait(self) -> None:
        """Nothing to do: what was called has happened."""

    def seconds(self) -> NDArray[np.float64]:
        """Return the time between marks."""
        return np.diff(self._marks)


def host_memory(plan: MemoryPlan) -> OnnxRuntimeMemory:
    """Return zeroed host memory, one block; MemoryError when the machine has too little."""
    block = _aligned_block(plan.total_bytes)
    return OnnxRuntimeMemory(plan, lambda tensor: ArrayBuffer(_view(block, tensor)))


def _aligned_block(size: int) -> NDArray[np.uint8]:
    """Return zeroed host memory that begins at a multiple of the plan's alignment."""
    block = np.zeros(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


def _view(block: NDArray[np.uint8], tensor: PlannedTensor) -> NDArray[Any]:
    array: NDArray[Any] = block[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.numpy_dtype)
    return array.reshape(tensor.shape)
