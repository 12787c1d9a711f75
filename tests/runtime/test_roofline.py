"""The roofline: rates of the work that was really done, and nothing left on the device."""

import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from taylorseer.engines.gemm_graph import write_gemm_graph
from taylorseer.errors import MemoryPlanError
from taylorseer.runtime import roofline
from taylorseer.runtime.roofline import device_copy, device_gemm, host_copy, host_gemm
from taylorseer.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime.gpu import NullGpu
from tests.runtime.null_tensorrt import null_plan


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a millisecond whenever somebody looks at it."""
    ticks = iter(range(1000))
    monkeypatch.setattr("taylorseer.runtime.roofline.time.perf_counter", lambda: next(ticks) / 1000)


@pytest.mark.usefixtures("clock")
def test_a_copy_counts_what_is_read_and_what_is_written() -> None:
    assert host_copy(5_000_000) == pytest.approx(2 * 5e6 / 1e-3 / 1e9)


@pytest.mark.usefixtures("clock")
def test_a_product_counts_a_multiplication_and_an_addition_each() -> None:
    assert host_gemm(100) == pytest.approx(2 * 100**3 / 1e-3 / 1e12)


@pytest.mark.parametrize(
    ("measure", "function"), [(lambda: host_copy(1000), "copyto"), (lambda: host_gemm(10), "matmul")]
)
def test_the_work_is_done_as_often_as_it_is_timed(
    monkeypatch: pytest.MonkeyPatch, measure: Callable[[], float], function: str
) -> None:
    done, true = [], getattr(np, function)
    monkeypatch.setattr(np, function, lambda *arguments: done.append(true(*arguments)))
    assert measure() > 0
    assert len(done) == 8  # the first warms up


# On a device


@pytest.fixture
def backend(null_gpu: NullGpu) -> TensorRTBackend:
    return TensorRTBackend(null_gpu.bundle("dit-tiny"))


def test_a_copy_on_the_device(null_gpu: NullGpu, backend: TensorRTBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "COPY_BYTES", 1 << 20)
    with null_gpu.device.counting() as calls:
        assert device_copy(backend) > 0
    assert calls["cudaMemcpyAsync"] == 23  # three warm up


def test_a_copy_that_has_no_room(null_gpu: NullGpu, backend: TensorRTBackend) -> None:
    """Two times 1 GiB on a device of 1 GiB."""
    with pytest.raises(MemoryPlanError, match="memory"):
        device_copy(backend)


def test_a_product_on_the_device(null_gpu: NullGpu, backend: TensorRTBackend, tmp_path: pathlib.Path) -> None:
    size = 64
    spec = write_gemm_graph(tmp_path / "gemm.onnx", size, "fp16")
    engine = backend.engine_of("gemm", null_plan(tmp_path / "gemm.onnx", spec, (1, 1, 1), ()), spec)
    with null_gpu.device.counting() as calls:
        assert device_gemm(backend, engine, size) > 0
    assert calls["execute_async_v3"] == 23


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), "bfloat16"])
def test_the_numbers_that_are_multiplied_are_neither_zero_nor_infinite(
    null_gpu: NullGpu, backend: TensorRTBackend, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    """In both 16-bit types: a device is faster on zeros, and saves power on them."""
    written: list[Any] = []

    class Engine:
        scratch_bytes = 0

        def bind(self, tensors: Any) -> Any:
            written.extend(tensors[name].read() for name in ("left", "right"))
            return type("Call", (), {"run": lambda self: None})()

    device_gemm(backend, Engine(), 32)  # type: ignore[arg-type]
    values = [np.asarray(w).view(np.uint16).view(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for w in written]
    for value in values:
        magnitudes = np.abs(value.astype(np.float32))
        assert (magnitudes > 0).all() and (magnitudes <= 1).all() and len(np.unique(value.view(np.uint16))) > 100
