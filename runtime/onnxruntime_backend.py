"""The ONNX Runtime backend: graphs run where they lie, inputs and outputs are bound by address."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.errors import BackendError, DependencyError
from taylorseer.runtime.backend import Buffer, Call, Engine, HostBuffer

__all__ = ["ArrayBuffer", "DeviceBuffer", "OnnxRuntimeBackend"]

Placement = tuple[str, int, Any, tuple[int, ...], int]
"""Device, its number, dtype, shape, address."""

_DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}


@dataclasses.dataclass(frozen=True)
class ArrayBuffer:
    """A C-contiguous NumPy array in host memory."""

    host: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tensor."""
        return self.host.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.host.dtype

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.host.nbytes

    def clear(self) -> None:
        """Fill with zeros."""
        self.host.fill(0)

    def placement(self) -> Placement:
        """Return what ONNX Runtime's bindings want to know."""
        return "cpu", 0, self.dtype, self.shape, self.host.ctypes.data


class DeviceBuffer:
    """A tensor in the memory of an execution provider's device."""

    def __init__(self, onnxruntime: Any, shape: tuple[int, ...], dtype: str, device: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._device = device
        self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), self.dtype.type, device, 0)
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def clear(self) -> None:
        """Fill with zeros."""
        self._value.update_inplace(np.zeros(self.shape, self.dtype))

    def placement(self) -> Placement:
        """Return what ONNX Runtime's bindings want to know."""
        return self._device, 0, self.dtype, self.shape, int(self._value.data_ptr())


class OnnxRuntimeBackend:
    """ONNX Runtime with the execution provider that the bundle was proven with."""

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        """Prepare to load the bundle's graphs.

        Args:
            bundle: a checked bundle.
            threads: threads per operator; 0 lets ONNX Runtime choose.

        Raises:
            DependencyError: ONNX Runtime is not installed.
            BackendError: the bundle holds graphs only, or its execution provider is not here.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise DependencyError(
                "ONNX Runtime is not installed: `pip install 'taylorseer-trt[onnxruntime]'`."
            ) from error
        if bundle.manifest.weights == "none":
            raise BackendError(
                f"The bundle {str(bundle.folder)!r} was built with --graphs-only and has no weights: build it without "
                "that option to run it."
            )
        self._provider = bundle.manifest.engine.provider or "CPUExecutionProvider"
        if self._provider not in _DEVICES or self._provider not in onnxruntime.get_available_providers():
            raise BackendError(
                f"The bundle was built for {self._provider}, ONNX Runtime {onnxruntime.__version__} here has "
                f"{', '.join(onnxruntime.get_available_providers())}: install the matching onnxruntime, or build with "
                "--provider cpu."
            )
        self._ort = onnxruntime
        self._bundle = bundle
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3
        # The engines take turns: a worker of one that still spins would hold a core that the other needs.
        self._options.add_session_config_entry("session.force_spinning_stop", "1")

    def load(self, kind: str) -> Engine:
        """Return the engine of the graph ``full`` or ``forecast``.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
        """
        path = self._bundle.path(self._bundle.manifest.graphs[kind].file)
        try:
            session = self._ort.InferenceSession(
                path,
                self._options,
                providers=[self._provider],
                disabled_optimizers=list(self._bundle.manifest.engine.disabled_optimizers),
                enable_fallback=False,
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} cannot load the {kind} graph {str(path)!r}: {error}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} did not start {self._provider}: check the driver, or build with "
                "--provider cpu."
            )
        return _OnnxRuntimeEngine(session)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """Return a zeroed buffer in host memory."""
        return ArrayBuffer(np.zeros(shape, dtype))

    def allocate_state(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Return a zeroed buffer on the provider's device."""
        device = _DEVICES[self._provider]
        return self.allocate(shape, dtype) if device == "cpu" else DeviceBuffer(self._ort, shape, dtype, device)


class _OnnxRuntimeEngine:
    def __init__(self, session: Any) -> None:
        self._session = session

    def bind(self, tensors: Mapping[str, Any]) -> Call:
        """Bind every input and output by address; the call keeps the buffers alive."""
        binding = self._session.io_binding()
        for value in self._session.get_inputs():
            binding.bind_input(value.name, *tensors[value.name].placement())
        for value in self._session.get_outputs():
            binding.bind_output(value.name, *tensors[value.name].placement())
        return _OnnxRuntimeCall(self._session, binding, tuple(tensors.values()))


class _OnnxRuntimeCall:
    def __init__(self, session: Any, binding: Any, buffers: tuple[Buffer, ...]) -> None:
        self._session, self._binding, self._buffers = session, binding, buffers

    def run(self) -> None:
        """Execute the graph on its buffers.

        Raises:
            BackendError: ONNX Runtime stopped at an input's value, such as an index that a table does not have.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise BackendError(f"ONNX Runtime stopped: {error} -- check the values of the condition inputs.") from error
