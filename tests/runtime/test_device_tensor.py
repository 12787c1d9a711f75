"""Results that stay on the GPU: others take them without a copy, and they are freed once."""

import ctypes
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.cuda import Cuda
from taylorseer.errors import DeviceError, MemoryPlanError
from taylorseer.runtime.device_tensor import DeviceTensor
from taylorseer.runtime.exchange import CUDA, DeviceArray, as_array
from tests.runtime.null_device import INVALID, OUT_OF_MEMORY, NullDevice

VALUES = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


@pytest.fixture
def device() -> Iterator[NullDevice]:
    device = NullDevice()
    yield device
    assert device.lost or (device.misuses, device.leaks()) == ([], {})


@pytest.fixture
def source(device: NullDevice) -> Iterator[int]:
    """The address of the values on the device."""
    address: int = device.cudaMalloc(VALUES.nbytes)[1]
    device.cudaMemcpy(address, VALUES.ctypes.data, VALUES.nbytes, device.cudaMemcpyKind.cudaMemcpyHostToDevice)
    yield address
    device.cudaFree(address)


def tensor_of(device: NullDevice, source: int, stream: int = 0) -> DeviceTensor:
    return DeviceTensor(Cuda(device), source, VALUES.shape, VALUES.dtype, stream)


class DlpackOnly:
    """An array of a library that knows DLPack alone."""

    def __init__(self, tensor: DeviceTensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return self.tensor.__dlpack__(stream=stream)


def content(device: NullDevice, array: DeviceArray) -> NDArray[np.float32]:
    return device.content(array.address, array.nbytes).view(np.float32).reshape(array.shape)


def test_it_is_a_copy_of_its_own(device: NullDevice, source: int) -> None:
    tensor = tensor_of(device, source)
    device.cudaMemsetAsync(source, 0, VALUES.nbytes, 0)
    assert (tensor.shape, tensor.dtype) == (VALUES.shape, VALUES.dtype)
    host = tensor.numpy()
    np.testing.assert_array_equal(host, VALUES)
    del tensor
    np.testing.assert_array_equal(host, VALUES)


def test_it_is_ready_when_it_is_given(device: NullDevice, source: int) -> None:
    """Although the stream still had to write what it copies."""
    stream = int(device.cudaStreamCreateWithFlags(1)[1])
    device.lazy = True
    device.cudaMemsetAsync(source, 0, 4, stream)
    tensor = tensor_of(device, source, stream)
    array = as_array(tensor)
    assert isinstance(array, DeviceArray)
    assert content(device, array).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    device.cudaMemsetAsync(source, 0xFF, VALUES.nbytes, stream)
    device.cudaStreamSynchronize(stream)
    np.testing.assert_array_equal(tensor.numpy(), VALUES)
    device.cudaStreamDestroy(stream)


def test_the_cuda_array_interface_is_read_back(device: NullDevice, source: int) -> None:
    tensor = tensor_of(device, source)
    interface = tensor.__cuda_array_interface__

    class WithoutDlpack:
        __cuda_array_interface__, owner = interface, tensor

    array = as_array(WithoutDlpack())
    assert isinstance(array, DeviceArray)
    assert array == DeviceArray(interface["data"][0], VALUES.shape, VALUES.dtype, None, None)
    assert array.address != source and interface["version"] == 3
    np.testing.assert_array_equal(content(device, array), VALUES)
    del tensor, interface
    assert device.leaks() == {"block": 2}, "the array keeps the tensor"
    np.testing.assert_array_equal(content(device, array), VALUES)


def test_dlpack_is_read_back() -> None:
    device = NullDevice()
    tensor, array = read_back(device)
    assert tensor.__dlpack_device__() == (CUDA, 0)
    address = tensor.__cuda_array_interface__["data"][0]
    assert (array.address, array.shape, array.dtype) == (address, VALUES.shape, VALUES.dtype)
    np.testing.assert_array_equal(content(device, array), VALUES)


def test_a_capsule_that_nobody_took_over_frees_its_tensor() -> None:
    device = NullDevice()
    tensor, array = read_back(device)
    del tensor, array
    assert device.leaks() == {"block": 1}


def read_back(device: NullDevice) -> tuple[DeviceTensor, DeviceArray]:
    """Return a tensor and what becomes of its capsule."""
    source = device.cudaMalloc(VALUES.nbytes)[1]
    device.cudaMemcpy(source, VALUES.ctypes.data, VALUES.nbytes, device.cudaMemcpyKind.cudaMemcpyHostToDevice)
    tensor = tensor_of(device, source)
    array = as_array(DlpackOnly(tensor))
    assert isinstance(array, DeviceArray)
    return tensor, array


def consume(capsule: Any) -> None:
    """Take a capsule over and let go of it, as its consumers do."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.restype, rename.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
    managed = pointer(capsule, b"dltensor")
    assert rename(capsule, b"used_dltensor") == 0
    deleter = ctypes.c_void_p.from_address(managed + 56).value  # behind DLTensor's 48 bytes and the manager
    assert deleter
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(deleter)(managed)


def test_a_consumer_of_dlpack_keeps_it_alive(device: NullDevice, source: int) -> None:
    tensor = tensor_of(device, source)
    capsule = tensor.__dlpack__()
    del tensor
    assert device.leaks() == {"block": 2}
    consume(capsule)
    assert device.leaks() == {"block": 1}
    del capsule
    assert device.misuses == []


@pytest.mark.parametrize("references", [1, 3])
def test_it_is_freed_with_the_last_reference(device: NullDevice, source: int, references: int) -> None:
    held: list[Any] = [tensor_of(device, source)] * references
    held.append(as_array(held[0]))
    while held:
        assert device.leaks() == {"block": 2}
        held.pop()
    with device.counting() as counter:
        assert device.leaks() == {"block": 1}
    assert not counter and device.calls.count("cudaFree") == 1


def test_no_memory_left(device: NullDevice, source: int) -> None:
    device.fail(OUT_OF_MEMORY, "cudaMalloc")
    with pytest.raises(MemoryPlanError, match=r"GPU has no memory left \(cudaMalloc\)"):
        tensor_of(device, source)


@pytest.mark.parametrize("function", ["cudaGetDevice", "cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_copy_that_fails_keeps_nothing(device: NullDevice, source: int, function: str) -> None:
    device.fail(INVALID, function)
    with pytest.raises(DeviceError, match=rf"{function} failed with cudaErrorInvalidValue \(1\)"):
        tensor_of(device, source)
    assert device.leaks() == {"block": 1}


def test_on_a_lost_device_nothing_is_freed(device: NullDevice, source: int) -> None:
    cuda = Cuda(device)
    tensor = DeviceTensor(cuda, source, VALUES.shape, VALUES.dtype, 0)
    device.fail(700, "cudaMemcpy")
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        tensor.numpy()
    with device.counting() as counter:
        del tensor
    assert cuda.poisoned and not counter


AT_EXIT = """
import sys, numpy as np
from taylorseer.cuda import Cuda
from taylorseer.runtime.device_memory import DeviceMemory
from taylorseer.runtime.device_tensor import DeviceTensor
from taylorseer.runtime.memory import MemoryPlan
from tests.runtime.null_device import NullDevice

cuda = Cuda(NullDevice())
places = dict.fromkeys(["row_bytes", "forecast_row_bytes", "row_offset", "table_offset", "scratch_offset"], 0)
plan = MemoryPlan(tensors={}, steps=1, scratch_bytes=256, **places)
sys.kept = [DeviceMemory(cuda, plan)]  # what lives there goes last
sys.kept.append(DeviceTensor(cuda, sys.kept[0].address, (4,), np.dtype("float32"), 0))
print("made")
"""


def test_the_end_of_the_process_frees_without_a_word() -> None:
    root = pathlib.Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", AT_EXIT], cwd=root, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "made\n", "")
