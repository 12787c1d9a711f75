"""The backend that a bundle was built for."""

from taylorseer.bundle import Bundle
from taylorseer.errors import BackendError
from taylorseer.runtime.backend import Backend
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["open_backend"]


def open_backend(bundle: Bundle, *, threads: int = 0, device: int = 0) -> Backend:
    """Return the backend of a bundle, ready to load its engines.

    Args:
        bundle: a checked bundle.
        threads: ONNX Runtime: threads per operator; 0 lets it choose.
        device: TensorRT: the GPU's number.

    Raises:
        BackendError: the bundle has no engines, or not for this machine.
        DependencyError: the backend's library is not installed.
        DeviceError: TensorRT: no driver, or no such GPU.
    """
    backend = bundle.manifest.engine.backend
    if backend in FLAVORS:
        from taylorseer.runtime.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(bundle, device=device)
    if backend not in ("onnxruntime", "none"):
        raise BackendError(f"The bundle was built for {backend!r}, which this version does not know: build it again.")
    from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads)
