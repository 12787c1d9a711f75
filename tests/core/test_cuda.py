"""CUDA: a typed message for each kind of failure, and a device that is lost stays lost."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import taylorseer.cuda
from taylorseer.cuda import Cuda, Device, load_cuda
from taylorseer.errors import BackendError, DependencyError, DeviceError, MemoryPlanError

STICKY = [214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721]


class Scripted:
    """A CUDA runtime whose results are set beforehand, by function; a name for each error."""

    def __init__(self, **results: tuple[Any, ...]) -> None:
        self.results: dict[str, tuple[Any, ...]] = {
            "cudaDriverGetVersion": (0, 13000),
            "cudaRuntimeGetVersion": (0, 13040),
            **results,
        }
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return self.results.get(name, (0,))

        return function

    def cudaError_t(self, code: int) -> int:
        return code

    def cudaGetErrorName(self, code: int) -> tuple[int, bytes]:
        return 0, f"cudaErrorNumber{code}".encode()


@pytest.mark.parametrize(
    ("returned", "expected"), [((0,), None), ((0, 7), 7), ((0, 0), 0), ((0, 1, 2), (1, 2)), ((0, None), None)]
)
def test_results_come_without_the_code(returned: tuple[Any, ...], expected: Any) -> None:
    runtime = Scripted(cudaThis=returned)
    assert Cuda(runtime).call("cudaThis", 3, "x") == expected
    assert runtime.calls == [("cudaThis", 3, "x")]


def test_an_error_names_the_function_and_itself() -> None:
    cuda = Cuda(Scripted(cudaThis=(1, None)))
    with pytest.raises(
        DeviceError, match=r"^cudaThis failed with cudaErrorNumber1 \(1\)\. Run `taylorseer doctor` to see"
    ):
        cuda.call("cudaThis")
    assert not cuda.poisoned and cuda.call("cudaThat") is None


def test_out_of_memory_is_of_its_own_kind() -> None:
    with pytest.raises(
        MemoryPlanError, match=r"^The GPU has no memory left \(cudaMalloc\): another process took it .*fewer images"
    ):
        Cuda(Scripted(cudaMalloc=(2, None))).call("cudaMalloc", 1)


def test_no_driver() -> None:
    runtime = Scripted(cudaGetDeviceCount=(35, None), cudaDriverGetVersion=(0, 0))
    with pytest.raises(
        DeviceError,
        match=r"no NVIDIA driver on this machine: install one that serves CUDA 13\.4, or use --backend",
    ):
        Cuda(runtime).device()


def test_a_driver_that_is_too_old() -> None:
    runtime = Scripted(cudaGetDeviceCount=(35, None), cudaDriverGetVersion=(0, 12080))
    with pytest.raises(
        DeviceError, match=r"too old: it serves CUDA 12\.8, CUDA 13\.4 is needed\. Install a newer driver, or an older"
    ):
        Cuda(runtime).device()


def test_no_gpu() -> None:
    with pytest.raises(DeviceError, match=r"no GPU on this machine, or none is visible \(CUDA_VISIBLE_DEVICES\):"):
        Cuda(Scripted(cudaGetDeviceCount=(100, None))).device()


@pytest.mark.parametrize(("index", "count"), [(2, 2), (5, 1)])
def test_no_gpu_of_that_number(index: int, count: int) -> None:
    with pytest.raises(DeviceError, match=rf"There is no GPU number {index} here: give one from 0 to {count - 1}\."):
        Cuda(Scripted(cudaGetDeviceCount=(0, count))).device(index)


@pytest.mark.parametrize("name", [b"NVIDIA Something" + b"\0" * 240, "NVIDIA Something"])
def test_a_device_is_described_and_made_current(name: Any) -> None:
    properties = SimpleNamespace(name=name, major=12, minor=1, totalGlobalMem=2**34)
    runtime = Scripted(
        cudaGetDeviceCount=(0, 2), cudaGetDeviceProperties=(0, properties), cudaDriverGetVersion=(0, 12090)
    )
    assert Cuda(runtime).device(1) == Device(1, "NVIDIA Something", "12.1", 2**34, "12.9")
    assert ("cudaSetDevice", 1) in runtime.calls and ("cudaGetDeviceProperties", 1) in runtime.calls


def test_free_bytes() -> None:
    assert Cuda(Scripted(cudaMemGetInfo=(0, 123, 456))).free_bytes() == 123


@pytest.mark.parametrize("code", STICKY)
def test_a_sticky_error_ends_the_use_of_the_gpu(code: int) -> None:
    runtime = Scripted(cudaThis=(code,))
    cuda = Cuda(runtime)
    with pytest.raises(
        DeviceError, match=rf"cudaThis failed with cudaErrorNumber{code} \({code}\)\. The GPU is lost to this process"
    ):
        cuda.call("cudaThis")
    assert cuda.poisoned
    runtime.calls.clear()
    for _ in range(2):
        with pytest.raises(
            DeviceError,
            match=rf"not used any more in this process: cudaThis failed with cudaErrorNumber{code} .* Start a new",
        ):
            cuda.call("cudaThat")
    assert runtime.calls == [], "the driver is not asked again"


@pytest.mark.parametrize("code", [1, 2, 35, 46, 100, 400, 600, 700, 900])
def test_only_sticky_errors_are_for_good(code: int) -> None:
    cuda = Cuda(Scripted(cudaThis=(code,)))
    with pytest.raises(BackendError):
        cuda.call("cudaThis")
    assert cuda.poisoned == (code in STICKY)


def test_the_hot_path_checks_as_calls_do() -> None:
    cuda = Cuda(Scripted())
    cuda.check(0, "cudaThis")
    with pytest.raises(DeviceError, match=r"cudaThis failed with cudaErrorNumber1 \(1\)"):
        cuda.check(1, "cudaThis")
    with pytest.raises(MemoryPlanError, match=r"no memory left \(cudaThis\)"):
        cuda.check(2, "cudaThis")
    assert not cuda.poisoned
    with pytest.raises(DeviceError, match="The GPU is lost to this process"):
        cuda.check(719, "cudaThis")
    with pytest.raises(DeviceError, match="not used any more in this process: cudaThis failed"):
        cuda.call("cudaThat")


# The real library, which needs no GPU to say that there is none


def test_there_is_one_runtime_in_a_process() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    assert load_cuda() is load_cuda()


@pytest.mark.parametrize("code", [*STICKY, 1, 35, 46, 100])
def test_the_numbers_are_those_of_the_real_library(code: int) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    name = runtime.cudaError_t(code).name
    cuda = Cuda(SimpleNamespace(**{n: getattr(runtime, n) for n in ("cudaError_t", "cudaGetErrorName")}))
    expected = {1: "cudaErrorInvalidValue", 35: "cudaErrorInsufficientDriver", 100: "cudaErrorNoDevice"}
    assert name == expected.get(code, name)
    if code not in (35, 100):
        with pytest.raises(DeviceError, match=rf"cudaThis failed with {name} \({code}\)"):
            cuda.check(runtime.cudaError_t(code), "cudaThis")


def test_without_cuda_python_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setattr(taylorseer.cuda, "_loaded", None)
    monkeypatch.setitem(modules, "cuda.bindings.runtime", None)
    with pytest.raises(
        DependencyError, match=r"cuda-python cannot be imported \(.*\): `pip install 'taylorseer-trt\[tensorrt-rtx\]'`"
    ):
        load_cuda()
