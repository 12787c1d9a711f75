"""What a device can do at best, measured on the spot: a large copy, and a large matrix product."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.device_memory import DeviceMemory
from taylorseer.runtime.memory import MemoryPlan, PlannedTensor
from taylorseer.runtime.tensorrt_backend import TensorRTBackend, TensorRTEngine

__all__ = ["device_copy", "device_gemm", "host_copy", "host_gemm"]

COPY_BYTES = 1 << 30
"""Several times any cache, so that a copy is one of memory."""

_RUNS = 20


def host_copy(size: int = 1 << 28) -> float:
    """Return the GB/s of a copy of ``size`` bytes by NumPy, bytes read plus bytes written; the median of several."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    return 2 * size / _median(lambda: np.copyto(target, source), 7) / 1e9


def host_gemm(size: int = 1024) -> float:
    """Return the TFLOP/s of a float32 product [size, size] by NumPy, on all cores."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((size, size), np.float32) for _ in range(2))
    return 2 * size**3 / _median(lambda: np.matmul(left, right), 7) / 1e12


def device_copy(backend: TensorRTBackend) -> float:
    """Return the GB/s of a copy of 1 GiB on the device, bytes read plus bytes written; the median of several.

    Raises:
        MemoryPlanError: there is no room for it.
    """
    memory = DeviceMemory(backend.cuda, _tensors(("source", (COPY_BYTES // 2,)), ("target", (COPY_BYTES // 2,))))
    try:
        kind = backend.cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        arguments = (memory["target"].address, memory["source"].address, COPY_BYTES, kind, memory.stream)
        return 2 * COPY_BYTES / _device_median(memory, lambda: backend.cuda.call("cudaMemcpyAsync", *arguments)) / 1e9
    finally:
        memory.close()


def device_gemm(backend: TensorRTBackend, engine: TensorRTEngine, size: int, *, dtype: str = "float16") -> float:
    """Return the TFLOP/s of an engine of ``left @ right``, [size, size] of ``dtype``, on random numbers.

    Raises:
        MemoryPlanError: there is no room for it.
    """
    matrices = [(name, (size, size)) for name in ("left", "right", "product")]
    plan = _tensors(*matrices, scratch=engine.scratch_bytes, dtype=dtype)
    memory = DeviceMemory(backend.cuda, plan, backend.device.index)
    try:
        numbers = _random_bits(size, dtype)
        for name in ("left", "right"):
            memory[name].write(numbers)
        call = engine.bind({name: memory[name] for name, _ in matrices})
        return 2 * size**3 / _device_median(memory, call.run) / 1e12
    finally:
        memory.close()


def _random_bits(size: int, dtype: str) -> NDArray[Any]:
    random = np.random.default_rng(0)
    if dtype == "float32":
        return random.standard_normal((size, size), np.float32)
    # Below 1.0 in magnitude in fp16 and in bf16: sign and mantissa are random, the exponent is not.
    bits: NDArray[Any] = random.integers(0, 1 << 16, (size, size), np.uint16) & 0x83FF | 0x3800
    return bits


def _tensors(*wanted: tuple[str, tuple[int, ...]], scratch: int = 0, dtype: str = "float16") -> MemoryPlan:
    """A plan of tensors whose sizes are multiples of the alignment."""
    tensors, offset = {}, 0
    for name, shape in wanted:
        tensors[name] = PlannedTensor(name=name, shape=shape, dtype=dtype, use="request", offset=offset)
        offset += tensors[name].nbytes
    return MemoryPlan(
        tensors=tensors,
        steps=0,
        row_bytes=0,
        forecast_row_bytes=0,
        row_offset=0,
        table_offset=offset,
        scratch_offset=offset,
        scratch_bytes=scratch,
    )


def _device_median(memory: DeviceMemory, run: Callable[[], object]) -> float:
    for _ in range(3):
        run()
    clock = memory.clock(_RUNS + 1)
    clock.start()
    for _ in range(_RUNS):
        run()
        clock.mark()
    return float(np.median(clock.seconds()))


def _median(run: Callable[[], object], runs: int) -> float:
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
