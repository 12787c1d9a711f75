"""Arrays of other libraries: read without a copy where they lie, given away without a leak, refused with a reason.

No address of CUDA memory is looked at here, so memory of the host stands for it.
"""

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from taylorseer.errors import ShapeError
from taylorseer.runtime.exchange import CPU, CUDA, DeviceArray, as_array, dlpack_capsule

ADDRESS = 0xABC00

# DLPack as a consumer writes it down: dlpack.h of version 0.8.


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int),
        ("device_id", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("manager", ctypes.c_void_p), ("deleter", Deleter))


def api(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a function of Python's own C interface; ``[]`` gives one that nobody else's types can change."""
    function = ctypes.pythonapi[name]
    function.restype, function.argtypes = result, arguments
    return function


capsule_name = api("PyCapsule_GetName", ctypes.c_char_p, ctypes.py_object)
capsule_pointer = api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
rename_capsule = api("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
new_capsule = api("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

UNUSED, USED = b"dltensor", b"used_dltensor"  # kept here: a capsule has the pointer, not the text


def consume(capsule: Any) -> DLManagedTensor:
    """Take over a capsule as a consumer does."""
    assert capsule_name(capsule) == UNUSED
    managed = ctypes.cast(capsule_pointer(capsule, UNUSED), ctypes.POINTER(DLManagedTensor)).contents
    assert rename_capsule(capsule, USED) == 0
    return managed


class Owner:
    """What keeps the memory alive."""


def device_array(shape: tuple[int, ...] = (2, 3), dtype: str = "float32", owner: Any = None) -> DeviceArray:
    return DeviceArray(ADDRESS, shape, np.dtype(dtype), None, owner or Owner())


class Producer:
    """An array that offers DLPack only; ``asked`` notes the streams that it was asked to be ready on."""

    def __init__(self, capsule: Any, device: int = CUDA) -> None:
        self.capsule, self.device, self.asked = capsule, device, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: Any = None) -> Any:
        self.asked.append(stream)
        return self.capsule


class Interface:
    """An array that offers ``__cuda_array_interface__`` only."""

    def __init__(self, **entries: Any) -> None:
        default = {"shape": (2, 3), "typestr": "<f4", "data": (ADDRESS, False), "version": 3}
        self.__cuda_array_interface__ = default | entries


# Memory of the host


def test_numpy_arrays_come_in_as_they_are() -> None:
    array = np.arange(6.0).reshape(2, 3)[:, ::2]
    assert as_array(array) is array


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_tensors_of_torch_come_in_without_a_copy(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    array = as_array(tensor)
    assert isinstance(array, np.ndarray) and array.shape == (2, 3)
    assert array.ctypes.data == tensor.data_ptr() and str(array.dtype) == str(dtype).removeprefix("torch.")
    tensor[1, 2] = 50
    assert array[1, 2] == 50


@pytest.mark.parametrize("value", [None, 1.5, [1.0, 2.0], "array", object()])
def test_what_is_no_array_is_nothing(value: object) -> None:
    assert as_array(value) is None


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, requires_grad=True)])
def test_what_a_producer_cannot_give_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="DLPack"):
        as_array(tensor)


# __cuda_array_interface__


@pytest.mark.parametrize(
    ("entries", "stream"),
    [
        ({}, 1),  # version 2 knew no stream: the legacy default stream is the careful guess
        ({"stream": None}, None),
        ({"stream": 1}, 1),
        ({"stream": 2}, 2),
        ({"stream": 0x5550}, 0x5550),
    ],
)
def test_the_interface_says_where_an_array_lies_and_when_it_is_ready(entries: Any, stream: int | None) -> None:
    value = Interface(**entries)
    array = as_array(value)
    assert array == DeviceArray(ADDRESS, (2, 3), np.dtype("float32"), stream, None)
    assert isinstance(array, DeviceArray) and array.owner is value and array.nbytes == 24


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((2, 3), None), ((2, 3), (12, 4)), ((1, 3), (400, 4)), ((2, 1, 3), (12, 7, 4)), ((), ()), ((3,), (4,))],
)
def test_contiguous_strides_are_accepted(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    array = as_array(Interface(shape=shape, strides=strides))
    assert isinstance(array, DeviceArray) and array.shape == shape


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 3), (4, 8)), ((2, 3), (24, 4)), ((2, 3), (12, 8)), ((3,), (-4,)), ((2, 3), (0, 4))]
)
def test_strides_with_gaps_or_another_order_are_refused(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"shape \[.*3\] in CUDA memory is not contiguous: make it so first"):
        as_array(Interface(shape=shape, strides=strides))


def test_dlpack_goes_before_the_interface() -> None:
    """Its producer orders the stream that it is asked for, where the interface of torch names none."""

    class Both(Interface, Producer):
        def __init__(self) -> None:
            Interface.__init__(self, stream=7)
            Producer.__init__(self, dlpack_capsule(device_array((2, 3), "float32"), 0))

    value = Both()
    array = as_array(value)
    assert isinstance(array, DeviceArray) and array.stream == 1 and value.asked == [1]


# DLPack, in


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 3), "float32"), ((4,), "int64"), ((), "float16"), ((1, 2, 3), "uint8")]
)
def test_a_capsule_is_read_back(shape: tuple[int, ...], dtype: str) -> None:
    value = Producer(dlpack_capsule(device_array(shape, dtype), 0))
    array = as_array(value)
    assert array == DeviceArray(ADDRESS, shape, np.dtype(dtype), 1, None, 0)
    assert value.asked == [1]  # the producer makes the legacy default stream wait, and that is the stream of the array
    assert capsule_name(value.capsule) == UNUSED  # not taken over: its producer frees it with the capsule


def test_an_array_keeps_its_producer_alive() -> None:
    value = Producer(dlpack_capsule(device_array(), 0))
    alive = weakref.ref(value)
    array = as_array(value)
    del value
    gc.collect()
    assert alive() is not None and isinstance(array, DeviceArray)
    del array
    gc.collect()
    assert alive() is None


def handmade(**changes: Any) -> tuple[Any, Any]:
    """Return a capsule of a float32 [2, 3] tensor of another library with ``changes``, and what keeps it alive."""
    shape = (ctypes.c_int64 * 2)(2, 3)
    managed = DLManagedTensor(DLTensor(ADDRESS, CUDA, 0, 2, 2, 32, 1, shape, None, 0), None, Deleter(0))
    for name, value in changes.items():
        setattr(managed.tensor, name, value)
    return new_capsule(ctypes.addressof(managed), UNUSED, None), (managed, shape)


def test_a_view_begins_at_its_offset() -> None:
    capsule, kept = handmade(byte_offset=64)
    array = as_array(Producer(capsule))
    assert isinstance(array, DeviceArray) and array.address == ADDRESS + 64
    del kept


@pytest.mark.parametrize(("strides", "fits"), [((3, 1), True), ((1, 2), False), ((6, 1), False), ((3, 2), False)])
def test_strides_of_dlpack_count_elements(strides: tuple[int, int], fits: bool) -> None:
    capsule, kept = handmade(strides=(ctypes.c_int64 * 2)(*strides))
    if fits:
        assert isinstance(as_array(Producer(capsule)), DeviceArray)
    else:
        with pytest.raises(ShapeError, match=r"shape \[2, 3\] in CUDA memory is not contiguous"):
            as_array(Producer(capsule))
    del kept


@pytest.mark.parametrize(
    "changes", [{"code": 4, "bits": 16}, {"code": 5, "bits": 64}, {"code": 6, "bits": 8}, {"lanes": 2}]
)
def test_elements_that_numpy_does_not_have_are_refused(changes: dict[str, int]) -> None:
    """bfloat16, complex numbers, booleans, vectors."""
    capsule, kept = handmade(**changes)
    with pytest.raises(ShapeError, match=rf"elements of DLPack's type {changes.get('code', 2)}: give float32 or int64"):
        as_array(Producer(capsule))
    del kept


@pytest.mark.parametrize("device", [3, 7, 8, 10, 13, 14])
def test_memory_of_other_devices_is_refused(device: int) -> None:
    value = Producer(None, device)
    with pytest.raises(
        ShapeError, match=f"lies on a device of DLPack's type {device}: move it to the CPU or to the GPU"
    ):
        as_array(value)
    assert value.asked == [] and device not in (CPU, CUDA)


# DLPack, out


def test_a_consumer_finds_the_array_in_the_capsule() -> None:
    managed = consume(dlpack_capsule(device_array((2, 3, 5), "float16"), 3))
    tensor = managed.tensor
    assert (tensor.data, tensor.device_type, tensor.device_id, tensor.byte_offset) == (ADDRESS, CUDA, 3, 0)
    assert [tensor.shape[axis] for axis in range(tensor.ndim)] == [2, 3, 5] and not tensor.strides
    assert (tensor.code, tensor.bits, tensor.lanes) == (2, 16, 1)
    managed.deleter(ctypes.addressof(managed))


def test_the_array_lives_until_the_consumer_lets_go_of_it() -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack_capsule(device_array(owner=owner), 0)
    managed = consume(capsule)
    del owner, capsule  # a consumer keeps the structure, and not the capsule
    gc.collect()
    assert alive() is not None and managed.tensor.data == ADDRESS and managed.tensor.shape[1] == 3
    managed.deleter(ctypes.addressof(managed))
    gc.collect()
    assert alive() is None


def test_each_capsule_has_a_life_of_its_own() -> None:
    owners = [Owner() for _ in range(3)]
    alive = [weakref.ref(owner) for owner in owners]
    taken = [consume(dlpack_capsule(device_array(owner=owner), 0)) for owner in owners]
    owners.clear()
    for last in (1, 0, 2):
        taken[last].deleter(ctypes.addressof(taken[last]))
        gc.collect()
        assert alive[last]() is None
    assert [reference() for reference in alive] == [None] * 3


def test_a_capsule_that_nobody_uses_leaves_nothing() -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack_capsule(device_array(owner=owner), 0)
    del owner
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None
