"""Plans against ONNX Runtime, tensor by tensor: the same graph and weights in float32, on a request's own inputs."""

import math
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import DependencyError

if TYPE_CHECKING:
    import onnx_ir as ir

    from taylorseer.runtime.session import Session

__all__ = ["TOLERANCE", "PlanComparison", "compared_steps", "tensor_errors"]

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1e-2}
"""Relative error allowed for one tensor.  fp16 and bf16 round every operation to 11 and 8 bits; errors of a few dozen
operations in a row add up to about two units of that.  fp32 engines may use the TF32 units of their GPU, or not."""


class PlanComparison:
    """Compares every plan at two steps of a request: a full one, then the first forecast after it."""

    def __init__(self, session: "Session", bundle: Bundle, config: CacheConfig) -> None:
        """Choose the steps.

        Args:
            session: that runs the request.
            bundle: its bundle.
            config: of the request.
        """
        from taylorseer.runtime.step_plan import BuiltState, plan_steps

        self.errors: dict[str, dict[str, float]] = {}
        """By the kind of the plan, as :func:`tensor_errors` gives them."""
        self._session, self._bundle = session, bundle
        self._plan = plan_steps(config, BuiltState.of_bundle(bundle.manifest))
        full, forecast = compared_steps(config)
        self._kinds = {full: ("full",), forecast: ("prepare", "forecast", "update")}

    def after_step(self, step: int) -> None:
        """Compare the plans that are to be compared at ``step``, which was the last to run.

        A call never writes what it reads, so that its repetition finds the same inputs and leaves the loop as it was.
        """
        for kind in self._kinds.get(step, ()):
            variant = self._plan[step].variant if kind in ("full", "forecast") else 0
            self.errors[kind] = tensor_errors(self._session, self._bundle, kind, variant=variant, turn=step % 2)


def compared_steps(config: CacheConfig) -> tuple[int, int]:
    """Return the last of the full steps that most forecasts use, and the first of those forecasts.

    A folded full step then has something to add to every accumulator.
    """
    users: dict[int, list[int]] = {}
    for step, row in config.weights().items():
        for source, weight in row.items():
            if weight:
                users.setdefault(source, []).append(step)
    full = max(users, key=lambda source: (len(users[source]), source))
    return full, min(users[full])


def tensor_errors(
    session: "Session", bundle: Bundle, kind: str, *, variant: int = 0, turn: int = 0
) -> dict[str, float]:
    """Run an engine once and return the relative error of each of its outputs, by name; NaN where one is not finite.

    The engine sees what the last step left in the session.  An input that the graph begins by rounding is rounded for
    the reference too: a plan answers for its own arithmetic, not for what the model makes of an error in its input.

    Args:
        session: of a backend of reduced or full precision, after a request or after a step of one.
        bundle: its bundle.
        kind: ``prepare``, ``full``, ``forecast`` or ``update``.
        variant: as in :meth:`taylorseer.runtime.session.Session.tensors`.
        turn: likewise.

    Raises:
        DependencyError: onnx-ir, ONNX Runtime or Polygraphy is not installed.
    """
    compare, results, quiet = _polygraphy()
    tensors, graph = session.tensors(kind, variant, turn), bundle.manifest.graphs[kind]
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
    inputs = inputs | _rounded(inputs, model.graph)
    widen(model)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "graph.onnx"
        ir.save(model, path, external_data="weights.data")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))


def _rounded(inputs: dict[str, NDArray[Any]], graph: "ir.Graph") -> dict[str, NDArray[Any]]:
    """Return the inputs that are cast to 16 bits before all else, as float32 of the numbers that the cast gives."""
    rounded = {}
    for value in graph.inputs:
        readers = [user for user, _ in value.uses()]
        targets = {user.outputs[0].dtype if user.op_type == "Cast" else value.dtype for user in readers}
        if len(targets) == 1 and (dtype := targets.pop()) is not None and dtype.is_floating_point():
            rounded[str(value.name)] = inputs[str(value.name)].astype(dtype.numpy()).astype(np.float32)
    return rounded


def _polygraphy() -> tuple[Any, Any, Any]:
    try:
        from polygraphy.comparator import IterationResult
        from polygraphy.comparator.compare import SnrCompareFunc
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise DependencyError(f"Comparing plans needs polygraphy ({error}): `pip install polygraphy`.") from error
    return SnrCompareFunc, IterationResult, lambda: G_LOGGER.verbosity(G_LOGGER.CRITICAL)
