"""CUDA through cuda-python, with errors that say what to do; the one place where it is imported.

A *sticky* error (an illegal address, a launch that failed) leaves the process's CUDA context useless: from then on
every call here raises at once, so that no session ever works on a poisoned device.
"""

import dataclasses
import importlib
from typing import Any

from taylorseer.errors import DependencyError, DeviceError, MemoryPlanError

__all__ = ["Cuda", "Device", "load_cuda"]

_STICKY = frozenset({214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721})
"""Errors after which the driver's context is lost, by their numbers in ``driver_types.h`` of CUDA 13: uncorrectable
ECC and NVLink errors, illegal address, time-out, assertion, stack, instruction, address space, program counter and
launch failures."""

_NO_DRIVER, _NO_DEVICE, _OUT_OF_MEMORY = 35, 100, 2


@dataclasses.dataclass(frozen=True)
class Device:
    """One GPU."""

    index: int
    name: str
    compute_capability: str
    """Such as ``8.9``."""
    total_bytes: int
    driver_version: str
    """The newest CUDA that the driver serves, such as ``13.0``."""


class Cuda:
    """The CUDA runtime of this process."""

    def __init__(self, runtime: Any) -> None:
        """Take the module ``cuda.bindings.runtime``, or one with its functions."""
        self.runtime = runtime
        self._poison: str | None = None

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; return its result, or None, or a tuple where it has several.

        Raises:
            DeviceError: it failed, or an earlier call failed for good.
            MemoryPlanError: the device has no memory left.
        """
        if self._poison is not None:
            raise DeviceError(f"The GPU is not used any more in this process: {self._poison} Start a new process.")
        code, *results = getattr(self.runtime, function)(*arguments)
        if int(code) != 0:
            raise self._error(function, int(code))
        return results[0] if len(results) == 1 else tuple(results) or None

    def check(self, code: Any, function: str) -> None:
        """Raise as :meth:`call` does for a result code that was returned on the loop's hot path."""
        if int(code) != 0:
            raise self._error(function, int(code))

    @property
    def poisoned(self) -> bool:
        """Whether a sticky error has happened."""
        return self._poison is not None

    def device(self, index: int = 0) -> Device:
        """Return a GPU of this machine and make it the current one.

        Raises:
            DeviceError: there is no driver, it is too old, or there is no such GPU.
        """
        count = self.call("cudaGetDeviceCount")
        if index >= count:
            raise DeviceError(f"There is no GPU number {index} here: give one from 0 to {count - 1}.")
        self.call("cudaSetDevice", index)
        properties = self.call("cudaGetDeviceProperties", index)
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        driver = self.call("cudaDriverGetVersion")
        return Device(
            index,
            name.rstrip("\0"),
            f"{properties.major}.{properties.minor}",
            int(properties.totalGlobalMem),
            f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def free_bytes(self) -> int:
        """Return the bytes that are free on the current device."""
        return int(self.call("cudaMemGetInfo")[0])

    def _error(self, function: str, code: int) -> DeviceError | MemoryPlanError:
        if code == _NO_DRIVER:
            return DeviceError(self._driver_message())
        if code == _NO_DEVICE:
            return DeviceError(
                "There is no GPU on this machine, or none is visible (CUDA_VISIBLE_DEVICES): build with "
                "--compute-capability and run elsewhere, or use --backend onnxruntime."
            )
        if code == _OUT_OF_MEMORY:
            return MemoryPlanError(
                f"The GPU has no memory left ({function}): another process took it since the session was planned. Free "
                "memory there, or ask for fewer images at a time."
            )
        name = self.runtime.cudaGetErrorName(self.runtime.cudaError_t(code))[1]
        what = f"{function} failed with {name.decode() if isinstance(name, bytes) else name} ({code})."
        if code in _STICKY:
            self._poison = what
            return DeviceError(f"{what} The GPU is lost to this process: nothing was returned. Start a new process.")
        return DeviceError(f"{what} Run `taylorseer doctor` to see what this machine has.")

    def _driver_message(self) -> str:
        _, driver = self.runtime.cudaDriverGetVersion()
        _, runtime = self.runtime.cudaRuntimeGetVersion()
        needed = f"{runtime // 1000}.{runtime % 1000 // 10}"
        if driver == 0:
            return (
                "There is no NVIDIA driver on this machine: install one that serves CUDA "
                f"{needed}, or use --backend onnxruntime."
            )
        return (
            f"The NVIDIA driver is too old: it serves CUDA {driver // 1000}.{driver % 1000 // 10}, CUDA {needed} is "
            "needed. Install a newer driver, or an older cuda-python."
        )


_loaded: Cuda | None = None


def load_cuda() -> Cuda:
    """Return the CUDA runtime, the same object every time: a poisoned device stays so for the whole process.

    Raises:
        DependencyError: cuda-python is not installed.
    """
    global _loaded
    if _loaded is None:
        try:
            _loaded = Cuda(importlib.import_module("cuda.bindings.runtime"))
        except (ImportError, OSError) as error:
            raise DependencyError(
                f"cuda-python cannot be imported ({error}): `pip install 'taylorseer-trt[tensorrt-rtx]'` or "
                "'taylorseer-trt[tensorrt]'."
            ) from error
    return _loaded
