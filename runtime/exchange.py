"""Arrays of other libraries, without importing any: NumPy, ``__cuda_array_interface__`` and DLPack, in and out.

The DLPack structures follow dlpack.h of DLPack 0.8; ``__cuda_array_interface__`` is version 3 of Numba's document.
"""

import ctypes
import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import ShapeError

__all__ = ["CPU", "CUDA", "DeviceArray", "as_array", "dlpack_capsule"]

CPU, CUDA = 1, 2
"""DLPack's device types."""

_LEGACY_STREAM = 1
"""The number of CUDA's default stream, in both protocols."""

_CODES = {0: "i", 1: "u", 2: "f"}
"""DLPack's type codes -> NumPy's kinds."""


@dataclasses.dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in CUDA memory that somebody else owns."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None
    """The stream that its content is ready on; None: it is ready."""
    owner: Any = dataclasses.field(repr=False, compare=False)
    """Kept alive as long as the array is."""
    device: int | None = None
    """The GPU's number; None: its producer does not say."""

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def as_array(value: Any) -> NDArray[Any] | DeviceArray | None:
    """Return ``value`` as a NumPy array or a device array without a copy, or None when it is neither.

    Raises:
        ShapeError: an array in CUDA memory that is not C-contiguous, memory of another device, or an array that its
            library or NumPy cannot exchange.
    """
    if isinstance(value, np.ndarray):
        return value
    # DLPack first: its producer orders the stream that is named to it, where torch's array interface names none.
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(value)
    return _from_interface(value) if hasattr(value, "__cuda_array_interface__") else None


def _from_dlpack(value: Any) -> NDArray[Any] | DeviceArray:
    kind, number = (int(part) for part in value.__dlpack_device__())
    if kind not in (CPU, CUDA):
        raise ShapeError(f"An array lies on a device of DLPack's type {kind}: move it to the CPU or to the GPU.")
    try:
        if kind == CUDA:
            return _from_capsule(value.__dlpack__(stream=_LEGACY_STREAM), value, number)
        array: NDArray[Any] = np.from_dlpack(value)
    except (BufferError, RuntimeError) as error:  # bfloat16, for example, or a tensor that requires a gradient
        raise ShapeError(f"An array cannot be taken over through DLPack ({error}): give float32 or int64.") from error
    return array


def _from_interface(value: Any) -> DeviceArray:
    interface = value.__cuda_array_interface__
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    _require_contiguous(shape, None if strides is None else [stride // dtype.itemsize for stride in strides])
    return DeviceArray(int(interface["data"][0]), shape, dtype, interface.get("stream", _LEGACY_STREAM), value)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_ManagedTensor))
_ManagedTensor._fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _Deleter))

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

_NAME = b"dltensor"

_is_unused = ctypes.pythonapi["PyCapsule_IsValid"]
_unused_pointer = ctypes.pythonapi["PyCapsule_GetPointer"]
for _function, _result in ((_is_unused, ctypes.c_int), (_unused_pointer, ctypes.c_void_p)):
    _function.restype, _function.argtypes = _result, (ctypes.c_void_p, ctypes.c_char_p)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # type: ignore[untyped-decorator]  # ctypes has no types for it
def _discard(capsule: Any) -> None:
    """Let go of what a capsule points to that nobody took over; by address, for the capsule may not live again."""
    if _is_unused(capsule, _NAME):
        _exported.pop(_unused_pointer(capsule, _NAME), None)


_exported: dict[int, tuple[Any, ...]] = {}
"""Everything that a capsule in other hands points to, by the address of its structure, until its deleter is called."""


def _from_capsule(capsule: Any, owner: Any, device: int) -> DeviceArray:
    """Read an unused capsule; it keeps its tensor, and frees it with itself, for it was not taken over."""
    tensor = ctypes.cast(_get_pointer(capsule, _NAME), ctypes.POINTER(_ManagedTensor)).contents.tensor
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.lanes != 1 or tensor.code not in _CODES:
        raise ShapeError(f"An array has elements of DLPack's type {tensor.code}: give float32 or int64.")
    dtype = np.dtype(f"{_CODES[tensor.code]}{tensor.bits // 8}")
    _require_contiguous(shape, [tensor.strides[axis] for axis in range(tensor.ndim)] if tensor.strides else None)
    return DeviceArray(tensor.data + tensor.byte_offset, shape, dtype, _LEGACY_STREAM, (capsule, owner), device)


def dlpack_capsule(array: DeviceArray, device: int) -> Any:
    """Return a DLPack capsule of ``array``, which stays alive until the consumer lets go of it."""
    sizes = (ctypes.c_int64 * len(array.shape))(*array.shape)
    codes = {kind: code for code, kind in _CODES.items()}
    tensor = _Tensor(
        array.address, CUDA, device, len(array.shape), codes[array.dtype.kind], array.dtype.itemsize * 8, 1, sizes
    )
    managed = _ManagedTensor(tensor, None, _release)
    _exported[ctypes.addressof(managed)] = (managed, sizes, array)
    return _new_capsule(ctypes.addressof(managed), _NAME, ctypes.cast(_discard, ctypes.c_void_p))


@_Deleter  # type: ignore[untyped-decorator]  # ctypes has no types for it
def _release(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _require_contiguous(shape: tuple[int, ...], strides: list[int] | None) -> None:
    expected = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if strides is not None and any(
        size > 1 and found != wanted for size, found, wanted in zip(shape, strides, expected, strict=True)
    ):
        raise ShapeError(f"An array of shape {list(shape)} in CUDA memory is not contiguous: make it so first.")
