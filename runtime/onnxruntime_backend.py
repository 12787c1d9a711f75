"""The ONNX Runtime backend: graphs run where they lie, inputs and outputs are bound by address."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.errors import BackendError, DependencyError
from taylorseer.runtime.backend import Buffer, Call, Engine

__all__ = ["HostBuffer", "OnnxRuntimeBackend"]

_DISABLED = ["SkipLayerNormFusion"]
"""The fused kernel is a scalar loop on the CPU, and slower than the whole rest of a forecast step."""


@dataclasses.dataclass(frozen=True)
class HostBuffer:
    """A C-contiguous NumPy array."""

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


class OnnxRuntimeBackend:
    """ONNX Runtime on the CPU."""

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        """Prepare to load the bundle's graphs.

        Args:
            bundle: a checked bundle.
            threads: threads per operator; 0 lets ONNX Runtime choose.

        Raises:
            DependencyError: ONNX Runtime is not installed.
            BackendError: the bundle holds graphs only, without weights.
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
        self._ort = onnxruntime
        self._bundle = bundle
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = 3

    def load(self, kind: str) -> Engine:
        """Return the engine of the graph ``full`` or ``forecast``.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
        """
        path = self._bundle.path(self._bundle.manifest.graphs[kind].file)
        try:
            session = self._ort.InferenceSession(
                path, self._options, providers=["CPUExecutionProvider"], disabled_optimizers=_DISABLED
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise BackendError(
                f"ONNX Runtime {self._ort.__version__} cannot load the {kind} graph {str(path)!r}: {error}"
            ) from error
        return _OnnxRuntimeEngine(session)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Return a zeroed buffer in host memory."""
        return HostBuffer(np.zeros(shape, dtype))


class _OnnxRuntimeEngine:
    def __init__(self, session: Any) -> None:
        self._session = session

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Bind every input and output by address; the call keeps the buffers alive."""
        binding = self._session.io_binding()
        for value in self._session.get_inputs():
            binding.bind_input(value.name, *_placement(tensors[value.name]))
        for value in self._session.get_outputs():
            binding.bind_output(value.name, *_placement(tensors[value.name]))
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


def _placement(buffer: Buffer) -> tuple[str, int, Any, tuple[int, ...], int]:
    return "cpu", 0, buffer.dtype, buffer.shape, buffer.host.ctypes.data
