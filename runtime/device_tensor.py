"""A result that stays on the GPU: other libraries take it without a copy."""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.cuda import Cuda
from taylorseer.errors import TaylorSeerError
from taylorseer.runtime.exchange import CUDA, DeviceArray, dlpack_capsule

__all__ = ["DeviceTensor"]


class DeviceTensor:
    """A C-contiguous tensor in CUDA memory of its own, freed with the last reference to it.

    ``torch.from_dlpack``, ``cupy.asarray`` and everything else that knows DLPack or ``__cuda_array_interface__`` takes
    it as it is.
    """

    def __init__(self, cuda: Cuda, source: int, shape: tuple[int, ...], dtype: np.dtype[Any], stream: int) -> None:
        """Copy ``source``, an address on the device, after what ``stream`` has been given so far; waits for it.

        Raises:
            MemoryPlanError: the device has no memory left.
        """
        self._cuda, self._address = cuda, 0
        self.shape, self.dtype = shape, dtype
        self._device = int(cuda.call("cudaGetDevice"))
        array = DeviceArray(source, shape, dtype, None, None)
        self._address = int(cuda.call("cudaMalloc", array.nbytes))
        kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        cuda.call("cudaMemcpyAsync", self._address, source, array.nbytes, kind, stream)
        cuda.call("cudaStreamSynchronize", stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; the content is ready, so no stream is named."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """(CUDA, the GPU's number)."""
        return CUDA, self._device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule; it keeps this tensor alive until its consumer lets go of it.

        Raises:
            BufferError: a copy, or another device, which DLPack lets a producer refuse.
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("This tensor is given where it is and without a copy: ask for its own device.")
        return dlpack_capsule(DeviceArray(self._address, self.shape, self.dtype, None, self), self._device)

    def numpy(self) -> NDArray[Any]:
        """Return a copy on the host."""
        host = np.empty(self.shape, self.dtype)
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpy", host.ctypes.data, self._address, host.nbytes, kind)
        return host

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Free the memory, unless the process ends, which frees it too."""
        if not is_finalizing() and self._address and not self._cuda.poisoned:
            with contextlib.suppress(TaylorSeerError):
                self._cuda.call("cudaFree", self._address)
