"""The ONNX Runtime builder: proves that every graph loads and runs here, and records what it was proven with."""

import pathlib
from typing import Any

import numpy as np

from taylorseer.errors import BackendError, DependencyError
from taylorseer.manifest import EngineSpec, GraphSpec, Manifest

__all__ = ["build_onnxruntime", "load_onnxruntime"]


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
    for kind, graph in manifest.graphs.items():
        _prove(onnxruntime, folder / graph.file, kind, graph, name, manifest.precision)
    return EngineSpec(backend="onnxruntime", version=onnxruntime.__version__, provider=name)


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


def _prove(onnxruntime: Any, path: pathlib.Path, kind: str, graph: GraphSpec, provider: str, precision: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        random = np.random.default_rng(0)
        outputs = session.run(None, {spec.name: _example(spec.shape, spec.dtype, random) for spec in graph.inputs})
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise BackendError(
            f"ONNX Runtime {onnxruntime.__version__} ({provider}) cannot run the {kind} graph in {precision}: {error} "
            "-- try --precision fp32, or another --backend."
        ) from error
    for spec, value in zip(graph.outputs, outputs, strict=True):
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise BackendError(
                f"The {kind} graph gives NaN or infinity in {spec.name!r} for ordinary inputs in {precision}: the "
                "checkpoint may be damaged, or needs --precision fp32."
            )


def _example(shape: tuple[int | str, ...], dtype: str, random: np.random.Generator) -> Any:
    sizes = [1 if size == "batch" else int(size) for size in shape]
    if dtype == "int64":
        return np.ones(sizes, np.int64)
    return random.standard_normal(sizes).astype(dtype)
