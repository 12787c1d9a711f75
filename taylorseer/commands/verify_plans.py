"""Plans against ONNX Runtime, tensor by tensor: the same graph and weights in float32, on the session's own inputs."""

import math
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.errors import DependencyError

if TYPE_CHECKING:
    from taylorseer.runtime.session import Session

__all__ = ["TOLERANCE", "tensor_errors"]

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1e-2}
"""Relative error allowed for one tensor.  fp16 and bf16 round every operation to 11 and 8 bits; errors of a few dozen
operations in a row add up to about two units of that.  fp32 engines may use the TF32 units of their GPU, or not."""


def tensor_errors(session: "Session", bundle: Bundle, kind: str) -> dict[str, float]:
    """Run an engine once and return the relative error of each of its outputs, by name; NaN where one is not finite.

    Run a request before: the engine then sees the inputs and the state that the request left.

    Args:
        session: idle, of a backend of reduced or full precision.
        bundle: its bundle.
        kind: ``prepare``, ``full``, ``forecast`` or ``update``.

    Raises:
        DependencyError: onnx-ir, ONNX Runtime or Polygraphy is not installed.
    """
    compare, results, quiet = _polygraphy()
    tensors, graph = session.tensors(kind), bundle.manifest.graphs[kind]
    inputs = {spec.name: _float32(tensors[spec.name].read(), spec.dtype) for spec in graph.inputs}
    session.model.engines[kind].bind(tensors).run()
    ours = {spec.name: _float32(tensors[spec.name].read(), spec.dtype) for spec in graph.outputs}
    theirs = _reference(bundle, kind, inputs)
    with quiet():
        found = compare()(results(outputs=theirs), results(outputs=ours))
    # A signal-to-noise ratio of s dB is a relative error ||ours - theirs|| / ||theirs|| of 10^(-s/20).
    return {n: 10 ** (-result.snr / 20) if np.isfinite(ours[n]).all() else math.nan for n, result in found.items()}


def _float32(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":  # its bits are the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if dtype == "float16" else values


def _reference(bundle: Bundle, kind: str, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run the widened graph in ONNX Runtime; its weights go to a temporary file, for they can be larger than memory."""
    try:
        import onnx_ir as ir
        import onnxruntime

        from taylorseer.exporter.data_files import load_graph
        from taylorseer.exporter.passes.widen import widen
    except ImportError as error:
        raise DependencyError(
            f"Comparing plans needs {error.name}: `pip install 'taylorseer-trt[export,onnxruntime]'`."
        ) from error
    model = load_graph(bundle, kind)
    widen(model)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "graph.onnx"
        ir.save(model, path, external_data="weights.data")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


def _polygraphy() -> tuple[Any, Any, Any]:
    try:
        from polygraphy.comparator import IterationResult
        from polygraphy.comparator.compare import SnrCompareFunc
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise DependencyError(f"Comparing plans needs polygraphy ({error}): `pip install polygraphy`.") from error
    return SnrCompareFunc, IterationResult, lambda: G_LOGGER.verbosity(G_LOGGER.CRITICAL)
