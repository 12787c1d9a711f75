"""The ONNX Runtime builder: proves that every graph loads and runs here, and records what it was proven with."""

import pathlib
from typing import Any

import numpy as np

from taylorseer.errors import BackendError, DependencyError
from taylorseer.manifest import EngineSpec, Manifest

__all__ = ["build_onnxruntime", "load_onnxruntime"]

_DISABLED = ("SkipLayerNormFusion",)
"""The fused kernel is a scalar loop on the CPU, and slower than the whole rest of a forecast step."""


def build_onnxruntime(folder: pathlib.Path, manifest: Manifest, provider: str = "cpu") -> EngineSpec:
    """Load each graph of the bundle in ``folder`` with ONNX Runtime and run it once.

    ONNX Runtime optimizes a graph when it is loaded, for the machine it is loaded on; an optimized graph on disk would
    hold its own copy of the weights.  So nothing is written: the graphs are the engines.

    Args:
        folder: where the graphs lie.
        manifest: what the exporter wrote.
        provider: ``cpu`` or ``cuda``.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        BackendError: the provider is missing, it lacks an operator or a precision, or a graph gives NaN.
    """
    onnxruntime, name = load_onnxruntime(provider)
    for kind in manifest.graphs:
        _prove(onnxruntime, folder, kind, manifest, name)
    return EngineSpec(
        backend="onnxruntime", version=onnxruntime.__version__, provider=name, disabled_optimizers=_DISABLED
    )


def load_onnxruntime(provider: str) -> tuple[Any, str]:
    """Return the onnxruntime module and the full name of the provider ``cpu`` or ``cuda``.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        BackendError: this ONNX Runtime lacks the provider.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError("ONNX Runtime is not installed: `pip install 'taylorseer-trt[onnxruntime]'`.") from error
    name = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[provider]
    if name not in onnxruntime.get_available_providers():
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} has no {name} here, only "
            f"{', '.join(onnxruntime.get_available_providers())}: "
            "`pip install 'taylorseer-trt[onnxruntime-gpu]'`, or use --provider cpu."
        )
    return onnxruntime, name


def _prove(onnxruntime: Any, folder: pathlib.Path, kind: str, manifest: Manifest, provider: str) -> None:
    """Run one graph once as the runtime will, at a batch of two where the bundle serves that."""
    graph, options = manifest.graphs[kind], onnxruntime.SessionOptions()
    options.log_severity_level = 3
    random, batch = np.random.default_rng(0), min(2, manifest.sizes["max_batch"])
    inputs = {spec.name: _example(spec.shape, spec.dtype, batch, random) for spec in graph.inputs}
    try:
        session = onnxruntime.InferenceSession(
            folder / graph.file,
            options,
            providers=[provider],
            disabled_optimizers=list(_DISABLED),
            enable_fallback=False,
        )
        outputs = session.run(None, inputs)
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} ({provider}) cannot run the {kind} graph in {manifest.precision}: "
            f"{error} -- try --precision fp32, or another --backend."
        ) from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} did not start {provider}: check the driver, or use --provider cpu."
        )
    for spec, value in zip(graph.outputs, outputs, strict=True):
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise BackendError(
                f"The {kind} graph gives NaN or infinity in {spec.name!r} for ordinary inputs in {manifest.precision}: "
                "the checkpoint may be damaged, or needs --precision fp32."
            )


def _example(shape: tuple[int | str, ...], dtype: str, batch: int, random: np.random.Generator) -> Any:
    sizes = [batch if isinstance(size, str) else size for size in shape]
    if dtype == "int64":
        return np.ones(sizes, np.int64)
    return random.standard_normal(sizes).astype(dtype)
