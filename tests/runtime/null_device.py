"""A GPU of host memory: the functions of ``cuda.bindings.runtime`` that the runtime uses, with CUDA's own rules.

Memory is zero nowhere until somebody writes it, addresses are real, so that ONNX Runtime can work on them.  Whatever
CUDA would leave undefined is refused and kept in :attr:`NullDevice.misuses`.  A lazy device does nothing before the
host waits for it, as late as a real one may.
"""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

__all__ = ["INVALID", "LOST", "NOT_ALLOWED_IN_CAPTURE", "OUT_OF_MEMORY", "Fault", "NullDevice"]

INVALID, OUT_OF_MEMORY, LOST, NOT_ALLOWED_IN_CAPTURE = 1, 2, 700, 900
"""cudaErrorInvalidValue, cudaErrorMemoryAllocation, cudaErrorIllegalAddress, cudaErrorStreamCaptureUnsupported."""

_NOT_READY, _INVALIDATED, _INVALID_HANDLE = 600, 901, 400
_ALIGNMENT = 512
_DEFAULT_STREAMS = (0, 1, 2)

Work = Callable[[], None]


@dataclasses.dataclass
class Event:
    """A moment in a stream."""

    stream: int | None = None
    seconds: float | None = None


class Fault(Exception):
    """What would make a real device lose its context."""


def entry(results: int = 0, *, in_capture: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of the CUDA runtime: counted, able to fail, its result code first in a tuple.

    Args:
        results: how many results follow the code.
        in_capture: whether it may be called while a stream of this thread is captured.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(device: "NullDevice", *arguments: Any) -> tuple[Any, ...]:
            code = device.begin(function.__name__, in_capture=in_capture)
            given: Any = None
            releases = "Free" in function.__name__ or "Destroy" in function.__name__
            if code == 0 or (releases and not device.lost):  # a failing release tells of earlier work: it has happened
                given = function(device, *arguments)
                code = code or (given.code if isinstance(given, Refusal) else 0)
            return (cudart.cudaError_t(code), *_results(given, results, failed=code != 0))

        return call

    return decorate


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What a function gives in place of its results."""

    code: int


def _results(given: Any, count: int, *, failed: bool) -> tuple[Any, ...]:
    if failed or isinstance(given, Refusal):
        return (None,) * count
    return given if count > 1 else (given,) * count


class NullDevice:
    """One device, in the place of the module ``cuda.bindings.runtime``."""

    cudaError_t = cudart.cudaError_t
    cudaMemcpyKind = cudart.cudaMemcpyKind
    cudaStreamCaptureMode = cudart.cudaStreamCaptureMode
    cudaGetErrorName = staticmethod(cudart.cudaGetErrorName)

    def __init__(self, *, capability: str = "8.9", total_bytes: int = 2**30, lazy: bool = False) -> None:
        self.capability, self.total_bytes, self.lazy = capability, total_bytes, lazy
        self.count, self.driver, self.name = 1, 13040, "Null Device"
        self.calls: list[str] = []
        """Names of the functions that were called."""
        self.misuses: list[str] = []
        """What CUDA leaves undefined, and somebody did."""
        self.capturable = True
        """What execution contexts say when they are asked whether they can be captured."""
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        """Execution contexts that somebody still holds."""
        self.lost = 0
        """The sticky error that every call gives from now on."""
        self._last_error = 0
        self._planned: list[tuple[str | None, int, int]] = []
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._handles: dict[int, tuple[str, Any]] = {}
        self._queues: dict[int, collections.deque[Work]] = {stream: collections.deque() for stream in _DEFAULT_STREAMS}
        self._capturing: dict[int, list[Work]] = {}
        self._broken_captures: set[int] = set()

    # What tests ask

    def fail(self, code: int, function: str | None = None, *, nth: int = 1) -> None:
        """Let the ``nth`` call from now on, of ``function`` or of any, give ``code``."""
        self._planned.append((function, nth, code))

    @contextlib.contextmanager
    def counting(self) -> Iterator[collections.Counter[str]]:
        """Count the calls of a block, by function."""
        counter: collections.Counter[str] = collections.Counter()
        start = len(self.calls)
        try:
            yield counter
        finally:
            counter.update(self.calls[start:])

    def leaks(self) -> dict[str, int]:
        """Return how many of what were made and never freed."""
        gc.collect()  # what a destructor frees, too
        kinds = collections.Counter(kind for kind, _ in self._handles.values())
        contexts = len(self.contexts)
        kinds.update({"block": len(self._blocks), "pinned block": len(self._pinned), "execution context": contexts})
        return {kind: count for kind, count in kinds.items() if count}

    @property
    def used_bytes(self) -> int:
        """Bytes that are allocated."""
        return sum(block.nbytes - _ALIGNMENT for block in self._blocks.values())

    def content(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return the device's bytes at an address, as they are now, without a call."""
        view = self.view(address, size)
        if view is None:
            raise AssertionError(f"{address:#x} is no memory of this device")
        return view.copy()

    # What other parts of the device ask

    def begin(self, name: str, *, in_capture: bool = True) -> int:
        """Count a call; return the code that it has to give, or 0."""
        self.calls.append(name)
        self._planned = [(wanted, nth - (wanted in (None, name)), code) for wanted, nth, code in self._planned]
        due = [code for wanted, nth, code in self._planned if nth == 0 and wanted in (None, name)]
        self._planned = [plan for plan in self._planned if plan[1] > 0]
        if due:
            self._last_error = due[0]
            self.lost = self.lost or (due[0] if 700 <= due[0] < 800 else 0)
        if self.lost or due:
            if name == "cudaStreamEndCapture":  # the capture ends in any case
                self._capturing.clear()
            return self.lost or due[0]
        if self._capturing and not in_capture:
            self.break_captures(f"{name} during a capture")
            return NOT_ALLOWED_IN_CAPTURE
        return 0

    def view(self, address: int, size: int) -> NDArray[np.uint8] | None:
        """Return the device's memory from ``address`` on, or None where it has none or less than ``size``."""
        return _view(self._blocks, address, size)

    def is_pinned(self, address: int, size: int) -> bool:
        """Whether it is page-locked host memory."""
        return _view(self._pinned, address, size) is not None

    def enqueue(self, stream: int, work: Work) -> None:
        """Do ``work`` in its turn: when its stream is waited for, or at once if the device is not lazy."""
        if stream in self._capturing:
            self._capturing[stream].append(work)
            return
        self._queues[stream].append(work)
        if not self.lazy:
            self.drain(stream)

    def drain(self, stream: int, until: Event | None = None) -> None:
        """Do what a stream was given, up to an event."""
        queue = self._queues[stream]
        while queue and not (until and until.seconds is not None):
            work = queue.popleft()
            if self.lost:
                continue
            try:
                work()
            except Fault as fault:
                self.misuse(str(fault))
                self.lost = LOST

    def is_capturing(self, stream: int) -> bool:
        """Whether a stream is being captured."""
        return stream in self._capturing

    def break_captures(self, reason: str) -> None:
        """Make every capture in progress useless."""
        self.misuse(reason)
        self._broken_captures |= self._capturing.keys()

    def misuse(self, what: str) -> Refusal:
        """Keep what was done wrong."""
        self.misuses.append(what)
        return Refusal(INVALID)

    # The CUDA runtime: devices

    @entry(1)
    def cudaGetDeviceCount(self) -> Any:
        if self.driver < 13000:
            return Refusal(35)
        return self.count or Refusal(100)

    @entry()
    def cudaSetDevice(self, index: int) -> Any:
        return None if index < self.count else Refusal(101)

    @entry(1)
    def cudaGetDevice(self) -> Any:
        return 0

    @entry(1)
    def cudaGetDeviceProperties(self, index: int) -> Any:
        major, minor = map(int, self.capability.split("."))
        name = self.name.encode().ljust(256, b"\0")
        return SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=self.total_bytes)

    @entry(1)
    def cudaDriverGetVersion(self) -> Any:
        return self.driver

    @entry(1)
    def cudaRuntimeGetVersion(self) -> Any:
        return 13040

    @entry(2)
    def cudaMemGetInfo(self) -> Any:
        return self.total_bytes - self.used_bytes, self.total_bytes

    @entry()
    def cudaGetLastError(self) -> Any:
        code, self._last_error = self._last_error, 0
        return Refusal(code) if code else None

    # Memory

    @entry(1, in_capture=False)
    def cudaMalloc(self, size: int) -> Any:
        if size > self.total_bytes - self.used_bytes:
            return Refusal(OUT_OF_MEMORY)
        return _allocate(self._blocks, size)

    @entry(1, in_capture=False)
    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return _allocate(self._pinned, size)

    @entry(in_capture=False)
    def cudaFree(self, address: int) -> Any:
        for queue in self._queues:  # as CUDA's, it waits for everything
            self.drain(queue)
        return None if self._blocks.pop(address, None) is not None else self.misuse(f"{address:#x} was freed twice")

    @entry(in_capture=False)
    def cudaFreeHost(self, address: int) -> Any:
        return None if self._pinned.pop(address, None) is not None else self.misuse(f"{address:#x} was freed twice")

    @entry(in_capture=False)
    def cudaMemcpy(self, target: int, source: int, size: int, kind: Any) -> Any:
        refusal = self._copy(0, target, source, size, kind)
        self.drain(0)
        return refusal

    @entry()
    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:
        return self._copy(int(stream), target, source, size, kind)

    @entry()
    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: Any,
        stream: int,
    ) -> Any:
        if width > min(target_pitch, source_pitch):
            return Refusal(12)  # cudaErrorInvalidPitchValue
        for row in range(height):
            places = target + row * target_pitch, source + row * source_pitch
            refusal = self._copy(int(stream), *places, width, kind)
            if refusal:
                return refusal
        return None

    @entry()
    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:
        if self.view(address, size) is None:
            return self.misuse(f"{size} bytes at {address:#x} are set, and are not the device's")
        self.enqueue(int(stream), lambda: self._require(address, size).fill(value))
        return None

    def _copy(self, stream: int, target: int, source: int, size: int, kind: Any) -> Any:
        to_host, from_host = (kind == getattr(self.cudaMemcpyKind, f"cudaMemcpy{name}") for name in _HOST_COPIES)
        for address, on_host in ((target, to_host), (source, from_host)):
            found = self.view(address, 1) is not None and self.view(address, size) is not None
            if found == on_host:
                return self.misuse(f"{size} bytes are copied ({kind.name}), and {address:#x} is not such memory")
        pinned = self.is_pinned(source if from_host else target, size)
        if from_host and not pinned:  # pageable memory is staged before the call returns
            staged = _host(source, size).copy()
            self.enqueue(stream, lambda: np.copyto(self._require(target, size), staged))
        else:
            get = functools.partial(_host if from_host else self._require, source, size)
            put = functools.partial(_host if to_host else self._require, target, size)
            self.enqueue(stream, lambda: np.copyto(put(), get()))
        if to_host and not pinned and not self.is_capturing(stream):
            self.drain(stream)
        return None

    def _require(self, address: int, size: int) -> NDArray[np.uint8]:
        view = self.view(address, size)
        if view is None:
            raise Fault(f"{address:#x} was used after it was freed")
        return view

    # Streams and events

    @entry(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        handle = self._new("stream", None)
        self._queues[handle] = collections.deque()
        return cudart.cudaStream_t(handle)

    @entry()
    def cudaStreamDestroy(self, stream: int) -> Any:
        return self._drop("stream", stream)

    @entry(in_capture=False)
    def cudaStreamSynchronize(self, stream: int) -> Any:
        if int(stream) not in self._queues:
            return self.misuse("a stream that does not exist is waited for")
        self.drain(int(stream))
        return Refusal(self.lost) if self.lost else None

    @entry()
    def cudaStreamWaitEvent(self, stream: int, event: Any, flags: int) -> Any:
        found = self._get("event", event)
        if found is None or found.stream is None:
            return Refusal(_INVALID_HANDLE)
        self.enqueue(int(stream), lambda: self.drain(found.stream, found))
        return None

    @entry(1)
    def cudaEventCreate(self) -> Any:
        return cudart.cudaEvent_t(self._new("event", Event()))

    @entry()
    def cudaEventDestroy(self, event: Any) -> Any:
        return self._drop("event", event)

    @entry()
    def cudaEventRecord(self, event: Any, stream: int) -> Any:
        found = self._get("event", event)
        if found is None:
            return Refusal(_INVALID_HANDLE)
        found.stream, found.seconds = int(stream), None
        self.enqueue(int(stream), lambda: setattr(found, "seconds", time.perf_counter()))
        return None

    @entry(in_capture=False)
    def cudaEventSynchronize(self, event: Any) -> Any:
        found = self._get("event", event)
        if found is None:
            return Refusal(_INVALID_HANDLE)
        if found.stream is not None:
            self.drain(found.stream, found)
        return Refusal(self.lost) if self.lost else None

    @entry(1)
    def cudaEventElapsedTime(self, start: Any, end: Any) -> Any:
        events = self._get("event", start), self._get("event", end)
        if any(event is None or event.stream is None for event in events):
            return Refusal(_INVALID_HANDLE)
        if any(event.seconds is None for event in events):
            return Refusal(_NOT_READY)
        return (events[1].seconds - events[0].seconds) * 1e3

    # CUDA graphs

    @entry()
    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:
        if int(stream) in self._capturing:
            return self.misuse("a stream is captured twice")
        self._capturing[int(stream)] = []
        return None

    @entry(1)
    def cudaStreamEndCapture(self, stream: int) -> Any:
        work = self._capturing.pop(int(stream), None)
        if work is None:
            return self.misuse("a stream is not being captured")
        if self.lost or int(stream) in self._broken_captures:
            self._broken_captures.discard(int(stream))
            return Refusal(_INVALIDATED)
        return cudart.cudaGraph_t(self._new("graph", tuple(work)))

    @entry(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        work = self._get("graph", graph)
        return Refusal(INVALID) if work is None else cudart.cudaGraphExec_t(self._new("executable graph", work))

    @entry()
    def cudaGraphDestroy(self, graph: Any) -> Any:
        return self._drop("graph", graph)

    @entry()
    def cudaGraphUpload(self, graph: Any, stream: int) -> Any:
        return None if self._get("executable graph", graph) is not None else Refusal(INVALID)

    @entry()
    def cudaGraphLaunch(self, graph: Any, stream: int) -> Any:
        work = self._get("executable graph", graph)
        if work is None:
            return self.misuse("a graph is launched that does not exist")
        for one in work:
            self.enqueue(int(stream), one)
        return None

    @entry()
    def cudaGraphExecDestroy(self, graph: Any) -> Any:
        return self._drop("executable graph", graph)

    # Handles

    def _new(self, kind: str, value: Any) -> int:
        handle = 0x1000 + 0x10 * len(self.calls)  # a call makes one handle at most, so none is ever used again
        self._handles[handle] = (kind, value)
        return handle

    def _get(self, kind: str, handle: Any) -> Any:
        found, value = self._handles.get(int(handle), ("", None))
        return value if found == kind else None

    def _drop(self, kind: str, handle: Any) -> Any:
        if self._handles.get(int(handle), ("", None))[0] != kind:
            return self.misuse(f"a {kind} that does not exist is destroyed")
        del self._handles[int(handle)]
        if kind == "stream":
            self.drain(int(handle))
            del self._queues[int(handle)]
        return None


_HOST_COPIES = ("DeviceToHost", "HostToDevice")


def _allocate(blocks: dict[int, NDArray[np.uint8]], size: int) -> int:
    """Return the address of a new block; its content is NaN, read as float32."""
    block = np.full(size + _ALIGNMENT, 0xFF, np.uint8)
    address = int(block.ctypes.data) + -int(block.ctypes.data) % _ALIGNMENT
    blocks[address] = block
    return address


def _view(blocks: dict[int, NDArray[np.uint8]], address: int, size: int) -> NDArray[np.uint8] | None:
    for start, block in blocks.items():
        if start <= address and address + size <= start + block.nbytes - _ALIGNMENT:
            offset = address - int(block.ctypes.data)
            return block[offset : offset + size]
    return None


def _host(address: int, size: int) -> NDArray[np.uint8]:
    """Return host memory that is nobody's here."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
