"""The TensorRT backend: plans on one GPU, every step of a session captured as a CUDA graph before its first request."""

import contextlib
import mmap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from taylorseer.bundle import Bundle
from taylorseer.cuda import Cuda, Device, load_cuda
from taylorseer.errors import BackendError, DeviceError, MemoryPlanError
from taylorseer.manifest import GraphSpec, PlanSpec
from taylorseer.runtime.backend import Buffer, Call, CallSequence
from taylorseer.runtime.device_memory import DeviceBuffer, DeviceMemory
from taylorseer.runtime.memory import MemoryPlan
from taylorseer.runtime.what_fits import what_fits
from taylorseer.tensorrt_library import Messages, TensorRT, load_tensorrt, without_collector

__all__ = ["TensorRTBackend", "TensorRTCall", "TensorRTEngine", "plan_for"]


class TensorRTBackend:
    """TensorRT of the flavor and version that built the bundle's plans, on one GPU."""

    def __init__(self, bundle: Bundle, *, device: int = 0, cuda_graphs: bool = True) -> None:
        """Prepare to load the bundle's plans.

        Args:
            bundle: a checked bundle.
            device: the GPU's number.
            cuda_graphs: capture the calls; without, every call is enqueued layer by layer.

        Raises:
            DependencyError: TensorRT or cuda-python is not installed.
            DeviceError: no driver, one that is too old, or no such GPU.
            BackendError: another version of TensorRT built the plans, or for other GPUs.
        """
        spec = bundle.manifest.engine
        self.library: TensorRT = load_tensorrt(spec.backend)
        _require_version(self.library, spec.version, compatible=bool(spec.options.get("version_compatible")))
        self.cuda: Cuda = load_cuda()
        self.device: Device = self.cuda.device(device)
        self._bundle, self._cuda_graphs = bundle, cuda_graphs
        self._messages = self.library.messages()
        self._runtime = self.library.module.Runtime(self._messages)
        if spec.options.get("version_compatible"):
            # Such a plan brings the runtime of its own version; its digest was checked when the bundle was opened.
            self._runtime.engine_host_code_allowed = True
        self._engines: dict[str, TensorRTEngine] = {}

    def load(self, kind: str) -> "TensorRTEngine":
        """Return the engine of the graph ``prepare``, ``full``, ``forecast`` or ``update``.

        Raises:
            BackendError: there is no plan for this GPU, or TensorRT refuses it.
            MemoryPlanError: its weights do not fit the device.
        """
        manifest = self._bundle.manifest
        plan = plan_for(manifest.engine.plans, kind, self.device, self.library)
        with open(self._bundle.path(plan.file), "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._engines[kind] = self.engine_of(kind, content, manifest.graphs[kind])
        return self._engines[kind]

    def engine_of(self, kind: str, plan: Any, graph: GraphSpec) -> "TensorRTEngine":
        """Return the engine of a serialized plan, whose inputs and outputs are those of ``graph``.

        Raises:
            BackendError: TensorRT refuses the plan, or it is of another graph.
            MemoryPlanError: its weights do not fit the device.
        """
        self._require_room(kind, len(plan))
        self._messages.begin()
        with without_collector():
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{self.library.flavor} {self.library.version} refuses the {kind} plan on {self.device.name} "
                f"(compute capability {self.device.compute_capability}): {self._messages.reason()} -- build the bundle "
                "again on this machine."
            )
        if self._bundle.manifest.engine.options.get("weight_streaming") and engine.streamable_weights_size:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return TensorRTEngine(kind, engine, graph, self.library, self._messages)

    def _require_room(self, kind: str, size: int) -> None:
        """A plan is its weights, but for little; they go to the device when it is loaded, unless they are streamed."""
        self.cuda.call("cudaSetDevice", self.device.index)
        free = self.cuda.free_bytes()
        if size > free and not self._bundle.manifest.engine.options.get("weight_streaming"):
            raise MemoryPlanError(
                f"The {kind} plan has {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on {self.device.name}: free "
                "memory there, use a larger GPU, or build with --weight-streaming."
            )

    def scratch_bytes(self) -> int:
        """Return the working memory of the engine that needs most; they take turns."""
        return max((engine.scratch_bytes for engine in self._engines.values()), default=0)

    def reserve(self, plan: MemoryPlan) -> DeviceMemory:
        """Allocate all memory of a session, in one piece.

        Raises:
            MemoryPlanError: it does not fit; the message names what would.
        """
        free = self.cuda.free_bytes()
        plan.require_fits(free, what_fits(self._bundle.manifest, plan, free))
        return DeviceMemory(self.cuda, plan, self.device.index)

    def sequence(self, calls: Sequence[Call]) -> Call:
        """Return one call that does ``calls`` one after another: a CUDA graph, unless an engine cannot be captured."""
        sequence = CallSequence(tuple(calls))
        bound = [call for call in calls if isinstance(call, TensorRTCall)]
        if not self._cuda_graphs or len(bound) < len(calls):
            return sequence
        if not all(call.capturable() for call in bound):
            warnings.warn(
                f"{self.library.flavor} cannot capture an engine of this bundle as a CUDA graph: its layers are "
                "enqueued one by one, which costs host time at every step.",
                RuntimeWarning,
                stacklevel=2,
            )
            return sequence
        return _capture(bound)


def plan_for(plans: Sequence[PlanSpec], kind: str, device: Device, library: TensorRT) -> PlanSpec:
    """Return the plan of a graph that runs on ``device``.

    TensorRT-RTX names the GPUs that it builds for; on a GPU of the data center that it does not name, plans of an older
    compute capability run, though not as fast as ones made for it would.

    Raises:
        BackendError: there is none.
    """
    mine = {plan.compute_capability: plan for plan in plans if plan.kind == kind}
    if device.compute_capability in mine:
        return mine[device.compute_capability]
    named = library.ahead_of_time
    if named and device.compute_capability not in named:
        older = [c for c in mine if _number(c) <= _number(device.compute_capability)]
        if older:
            return mine[max(older, key=_number)]
    raise BackendError(
        f"The bundle's {kind} plan was built for compute capability {', '.join(sorted(mine)) or '(none)'}, and "
        f"{device.name} has {device.compute_capability}: build with --compute-capability {device.compute_capability}, "
        "or on this machine."
    )


def _number(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)


def _require_version(library: TensorRT, built_with: str, *, compatible: bool) -> None:
    if library.version != built_with and not compatible:
        raise BackendError(
            f"The plans were built with {library.flavor} {built_with}, {library.version} is installed, and a plan runs "
            f"on the version that built it: install {library.flavor} {built_with}, or build the bundle again."
        )


class TensorRTEngine:
    """A deserialized plan; every session has its own execution context of it."""

    def __init__(self, kind: str, engine: Any, graph: GraphSpec, library: TensorRT, messages: Messages) -> None:
        self.kind, self.engine, self.library, self._messages = kind, engine, library, messages
        self.scratch_bytes = int(engine.get_device_memory_size_for_profile_v2(0))
        self.tensors = tuple(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
        inputs = [n for n in self.tensors if engine.get_tensor_mode(n) == library.module.TensorIOMode.INPUT]
        self._dynamic = [name for name in inputs if -1 in tuple(engine.get_tensor_shape(name))]
        _require_same_tensors(kind, graph, {n: library.dtype_name(engine.get_tensor_dtype(n)) for n in self.tensors})

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Bind inputs and outputs, by name, to buffers of one session.

        Raises:
            BackendError: a shape outside the plan's optimization profile.
        """
        memory = next(buffer.memory for buffer in tensors.values() if isinstance(buffer, DeviceBuffer))
        key = (self.kind, *(tensors[name].shape for name in self._dynamic))
        if key not in memory.contexts:
            memory.contexts[key] = self.new_context(memory, tensors)
        return TensorRTCall(memory, memory.contexts[key], self.addresses(tensors), self._messages)

    def addresses(self, tensors: Mapping[str, Buffer]) -> tuple[tuple[str, int], ...]:
        """Return where every input and output lies."""
        return tuple((name, tensors[name].address) for name in self.tensors)

    def new_context(self, memory: DeviceMemory, tensors: Mapping[str, Buffer]) -> Any:
        """Return an execution context with its shapes set and its working memory in the session's scratch."""
        with without_collector():
            context = self._empty_context()
        if context is None:
            raise BackendError(
                f"TensorRT makes no execution context of the {self.kind} plan: {self._messages.reason()} -- free "
                "memory on the device."
            )
        context.set_device_memory(memory.scratch, self.scratch_bytes)
        for name in self._dynamic:
            low, _, high = self.engine.get_tensor_profile_shape(name, 0)
            shape = tensors[name].shape
            fits = all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            if not fits or not context.set_input_shape(name, shape):
                raise BackendError(
                    f"The {self.kind} plan takes {name!r} from {list(low)} to {list(high)}, not {list(shape)}: ask for "
                    "fewer images at a time, or build with a larger --batch."
                )
        return context

    def _empty_context(self) -> Any:
        trt = self.library.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self.engine.create_execution_context(strategy)
        # TensorRT-RTX compiles kernels for the shapes at hand; EAGER does so now and not in the midst of a request.
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return self.engine.create_execution_context(config)


def _require_same_tensors(kind: str, graph: GraphSpec, found: Mapping[str, str]) -> None:
    wanted = {spec.name: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    if wanted != dict(found):
        different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise BackendError(
            f"The {kind} plan does not belong to the bundle's {kind} graph: {different[0]!r} is "
            f"{found.get(different[0], 'missing')} there and {wanted.get(different[0], 'missing')} in the manifest. "
            "Build the bundle again."
        )


class TensorRTCall:
    """An engine on the buffers of one session."""

    def __init__(
        self,
        memory: DeviceMemory,
        context: Any,
        addresses: tuple[tuple[str, int], ...],
        messages: Messages | None = None,
    ) -> None:
        self.memory, self.context, self._addresses, self._messages = memory, context, addresses, messages

    def run(self) -> None:
        """Enqueue the engine on its buffers.

        Raises:
            DeviceError: CUDA failed.
            BackendError: TensorRT refuses the call.
        """
        for name, address in self._addresses:
            self.context.set_tensor_address(name, address)
        if not self.context.execute_async_v3(self.memory.stream):
            self.memory.cuda.call("cudaGetLastError")
            reason = self._messages.reason() if self._messages else "TensorRT gave no reason"
            raise BackendError(f"TensorRT refuses to enqueue an engine: {reason} -- build the bundle again.")

    def capturable(self) -> bool:
        """Whether a CUDA graph can hold this call; regular TensorRT says so only by trying."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return ask is None or bool(ask(self.memory.stream))


class _CapturedCalls:
    """A CUDA graph of several calls."""

    def __init__(self, memory: DeviceMemory, graph: Any) -> None:
        self._memory, self._graph, self._launch = memory, graph, memory.cuda.runtime.cudaGraphLaunch

    def run(self) -> None:
        """Launch the graph.

        Raises:
            DeviceError: CUDA failed.
        """
        (code,) = self._launch(self._graph, self._memory.stream)
        if code:
            self._memory.cuda.check(code, "cudaGraphLaunch")


def _capture(calls: Sequence[TensorRTCall]) -> _CapturedCalls:
    """Capture the calls; each runs once before, for TensorRT sets itself up in a context's first call."""
    memory = calls[0].memory
    cuda, stream = memory.cuda, memory.stream
    for call in calls:
        call.run()
    memory.synchronize()
    cuda.call("cudaStreamBeginCapture", stream, cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        for call in calls:
            call.run()
    except BaseException:
        with contextlib.suppress(DeviceError):  # the error that counts is the call's
            cuda.call("cudaGraphDestroy", cuda.call("cudaStreamEndCapture", stream))
        raise
    graph = cuda.call("cudaStreamEndCapture", stream)
    try:
        executable = cuda.call("cudaGraphInstantiate", graph, 0)
        memory.graphs.append(executable)
    finally:
        cuda.call("cudaGraphDestroy", graph)
    cuda.call("cudaGraphUpload", executable, stream)
    return _CapturedCalls(memory, executable)
