"""The ONNX Runtime backend: graphs run where they lie, inputs and outputs are bound by address."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from taylorseer.bundle import Bundle
from taylorseer.errors import BackendError, DependencyError, MemoryPlanError
from taylorseer.manifest import GraphSpec
from taylorseer.runtime.backend import Buffer, Call, CallSequence, Engine, Memory
from taylorseer.runtime.memory import MemoryPlan
from taylorseer.runtime.onnxruntime_memory import DeviceBuffer, OnnxRuntimeMemory, host_memory

__all__ = ["OnnxRuntimeBackend"]

_DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}

_FEW_NUMBERS = 1 << 18
"""A forecast or an update on tensors of no more numbers is over before the threads that could help have woken up."""


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
        if bundle.manifest.engine.backend == "none":
            raise BackendError(
                f"The bundle {str(bundle.folder)!r} was built with --backend none and has no engines: build it with "
                "--backend onnxruntime to run it here."
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
        self._threads = threads

    def load(self, kind: str) -> Engine:
        """Return the engine of the graph ``prepare``, ``full``, ``forecast`` or ``update``.

        Raises:
            BackendError: ONNX Runtime refuses the graph.
        """
        graph = self._bundle.manifest.graphs[kind]
        path = self._bundle.path(graph.file)
        try:
            session = self._ort.InferenceSession(
                path,
                self._options(kind, graph),
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

    def _options(self, kind: str, graph: GraphSpec) -> Any:
        options = self._ort.SessionOptions()
        small = kind in ("forecast", "update") and _numbers(graph) <= _FEW_NUMBERS
        options.intra_op_num_threads = self._threads or int(small)
        options.log_severity_level = 3
        # The engines take turns: a worker of one that still spins would hold a core that the other needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def reserve(self, plan: MemoryPlan) -> Memory:
        """Allocate all memory of a session, zeroed.

        Raises:
            MemoryPlanError: the machine has too little memory.
        """
        device = _DEVICES[self._provider]
        try:
            if device != "cpu":
                return OnnxRuntimeMemory(plan, lambda tensor: DeviceBuffer(self._ort, tensor, device))
            return host_memory(plan)
        except (MemoryError, RuntimeError) as error:
            raise MemoryPlanError(
                f"{plan.total_bytes / 1e9:.2f} GB could not be reserved on the {device.upper()}: {error}. "
                "Ask for fewer images at a time, or a lower order."
            ) from error

    def sequence(self, calls: Sequence[Call]) -> Call:
        """Return one call that does ``calls`` one after another."""
        return CallSequence(tuple(calls))

    def scratch_bytes(self) -> int:
        """Return 0: ONNX Runtime keeps its working memory to itself."""
        return 0


def _numbers(graph: GraphSpec) -> int:
    """Return the numbers of the largest input or output, for one row of the batch."""
    specs = (*graph.inputs, *graph.outputs)
    return max(math.prod(size for size in spec.shape if isinstance(size, int)) for spec in specs)


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
