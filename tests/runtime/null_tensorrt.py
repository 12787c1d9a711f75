"""A TensorRT whose engines are ONNX Runtime's, on the memory of a null device; its plans name an ONNX graph.

It has what the runtime uses of the API, and TensorRT's habits: tensors on multiples of 256 bytes and working memory on
512, shapes inside an optimization profile, contexts that cannot be captured before they ran once, reasons in the log.
"""

import enum
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from taylorseer.manifest import GraphSpec
from tests.runtime.null_device import Fault, NullDevice

__all__ = ["VERSION", "null_plan", "null_tensorrt"]

VERSION = "1.7.1.116"

_SCRATCH = 4096 + 100
_MAGIC = b"null plan: "


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64 = range(4)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class Strategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Specialization(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class ComputeCapability(enum.Enum):
    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120 = range(7)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


_TYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(int64)": (DataType.INT64, np.int64),
}


def null_plan(
    graph: pathlib.Path, spec: GraphSpec, rows: Sequence[int], disabled_optimizers: Sequence[str], step_rows: int = 1
) -> bytes:
    """Return the plan of an ONNX file, for ``rows`` of the batch: at the least, best, at the most."""
    bounds = [
        {"batch": batch, "step_batch": steps} for batch, steps in zip(rows, (1, step_rows, step_rows), strict=True)
    ]
    profile = {
        tensor.name: [[sizes[size] if isinstance(size, str) else size for size in tensor.shape] for sizes in bounds]
        for tensor in spec.inputs
    }
    plan = {"graph": str(graph), "profile": profile, "disabled_optimizers": list(disabled_optimizers)}
    return _MAGIC + json.dumps(plan).encode()


def null_tensorrt(device: NullDevice, flavor: str = "tensorrt-rtx") -> Any:
    """Return the module; regular TensorRT knows nothing of compute capabilities and of specialized kernels."""
    module = SimpleNamespace(
        __version__=VERSION,
        ILogger=ILogger,
        TensorIOMode=TensorIOMode,
        ExecutionContextAllocationStrategy=Strategy,
        Runtime=lambda logger: NullRuntime(device, logger, is_rtx=flavor == "tensorrt-rtx"),
    )
    if flavor == "tensorrt-rtx":
        module.ComputeCapability = ComputeCapability
        module.DynamicShapesKernelSpecializationStrategy = Specialization
    return module


class NullRuntime:
    def __init__(self, device: NullDevice, logger: ILogger, *, is_rtx: bool) -> None:
        self.device, self.logger, self.is_rtx = device, logger, is_rtx

    def deserialize_cuda_engine(self, plan: Any) -> "NullEngine | None":
        content = bytes(plan)
        if not content.startswith(_MAGIC):
            self.logger.log(ILogger.ERROR, "Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None
        return NullEngine(self, json.loads(content.removeprefix(_MAGIC)))


class NullEngine:
    def __init__(self, runtime: NullRuntime, plan: Mapping[str, Any]) -> None:
        self.runtime, self.profile = runtime, plan["profile"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            plan["graph"],
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=plan["disabled_optimizers"],
        )
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.names: list[str] = [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _TYPES[self.value(name).type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.profile and self.profile[name][0] == self.profile[name][2]:
            return tuple(self.profile[name][0])
        return tuple(size if isinstance(size, int) else -1 for size in self.value(name).shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profile[name]]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return _SCRATCH

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(strategy=Strategy.STATIC, dynamic_shapes_kernel_specialization_strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, how: Any) -> "NullContext":
        """Take a strategy (TensorRT) or a runtime config (TensorRT-RTX)."""
        if self.runtime.is_rtx:
            assert how.dynamic_shapes_kernel_specialization_strategy == Specialization.EAGER
            how = how.strategy
        assert how == Strategy.USER_MANAGED
        context = NullContext(self)
        if self.runtime.is_rtx:
            context.is_stream_capturable = lambda stream: self.runtime.device.capturable
        self.runtime.device.contexts.add(context)
        return context

    def value(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]


class NullContext:
    name = "Unnamed Execution Context 0"
    is_stream_capturable: Any

    def __init__(self, engine: NullEngine) -> None:
        self.engine, self.device = engine, engine.runtime.device
        self.addresses: dict[str, int] = {}
        self.shapes = {name: self.engine.get_tensor_shape(name) for name in engine.inputs}
        self.scratch = 0
        self.has_run = False

    def set_device_memory(self, memory: int, size: int) -> None:
        if size < _SCRATCH or memory % 512 or self.device.view(memory, size) is None:
            self.device.misuse(f"{size} bytes of working memory at {memory:#x}")
        self.scratch = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        self.shapes[name] = tuple(shape)
        return len(low) == len(shape) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine.names

    def execute_async_v3(self, stream_handle: int) -> bool:
        code = self.device.begin("execute_async_v3")
        if code:
            return self._refuse(f"CUDA error {code}")
        if self.device.is_capturing(stream_handle) and not self.has_run:
            self.device.break_captures("an execution context is captured that never ran")
            return self._refuse("operation not permitted when stream is capturing")
        shapes = {name: self._shape(name) for name in self.engine.names}
        for name, shape in shapes.items():
            address, size = self.addresses.get(name, 0), _bytes(self.engine.value(name), shape)
            if address % 256 or self.device.view(address, size) is None:
                return self._refuse(f"Tensor {name!r} has no address of {size} bytes, or not one on 256 bytes")
        self.has_run = True
        addresses = dict(self.addresses)
        self.device.enqueue(stream_handle, lambda: self._run(addresses, shapes))
        return True

    def _refuse(self, reason: str) -> bool:
        self.engine.runtime.logger.log(ILogger.ERROR, f"IExecutionContext::enqueueV3: Error Code 3: {reason}")
        return False

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; an output's sizes have the names of the inputs'."""
        if name in self.shapes:
            return self.shapes[name]
        sizes = {s: n for key, shape in self.shapes.items() for s, n in zip(self._symbols(key), shape, strict=True)}
        return tuple(size if isinstance(size, int) else sizes[size] for size in self._symbols(name))

    def _symbols(self, name: str) -> list[Any]:
        shape: list[Any] = self.engine.value(name).shape
        return shape

    def _run(self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
        binding = self.engine.session.io_binding()
        for name, shape in shapes.items():
            value = self.engine.value(name)
            if self.device.view(addresses[name], _bytes(value, shape)) is None:
                raise Fault(f"{name!r} was used after it was freed")
            bind = binding.bind_input if name in self.engine.inputs else binding.bind_output
            bind(name, "cpu", 0, _TYPES[value.type][1], shape, addresses[name])
        scratch = self.device.view(self.scratch, _SCRATCH)
        if scratch is None:
            raise Fault("the working memory was used after it was freed")
        scratch.fill(0xFF)  # whatever else lies there is lost
        try:
            self.engine.session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise Fault(f"the engine stopped: {error}") from error


def _bytes(value: Any, shape: Sequence[int]) -> int:
    return math.prod(shape) * int(np.dtype(_TYPES[value.type][1]).itemsize)
