"""Engines timed one by one, in the session that they serve and on its own memory, state and all."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.backend import Call
from taylorseer.runtime.device_memory import DeviceMemory
from taylorseer.runtime.session import Session
from taylorseer.runtime.tensorrt_backend import TensorRTCall, TensorRTEngine

__all__ = ["inspector_text", "layer_reports", "time_engine"]

_WARM_UP = 3

_TOGETHER, _MOST_TOGETHER = 1e-3, 50
"""Seconds that the runs between two marks take together, and the most of them."""


def time_engine(session: Session, kind: str, runs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the milliseconds [runs] that the engine takes, and that the host takes to ask for it.

    Run a request before, so that the state is that of a real one.

    Args:
        session: idle.
        kind: ``prepare``, ``full``, ``forecast`` or ``update``.
        runs: timed runs, after a few that are not.
    """
    call = session.model.backend.sequence(session.calls(kind))
    clock, asked = session.memory.clock(runs + 1), np.zeros(runs)
    repeat = _launches_between_marks(session, call)
    clock.start()
    for run in range(runs):
        start = time.perf_counter()
        for _ in range(repeat):
            call.run()
        asked[run] = time.perf_counter() - start
        clock.mark()
    return clock.seconds() * 1e3 / repeat, asked * 1e3 / repeat


def _launches_between_marks(session: Session, call: Call) -> int:
    """Return how many runs are timed together: an engine shorter than a launch would else be timed by the host."""
    clock = session.memory.clock(_WARM_UP + 1)
    clock.start()
    for _ in range(_WARM_UP):
        call.run()
        clock.mark()
    return min(_MOST_TOGETHER, max(1, math.ceil(_TOGETHER / max(float(clock.seconds()[-1]), 1e-9))))


def layer_reports(session: Session, kind: str, runs: int) -> Iterator[tuple[str, float]]:
    """Yield (layer, milliseconds) of a TensorRT engine, run by run; empty for other backends.

    The layers are run one by one, so that their sum is more than the engine takes.
    """
    engine, memory = session.model.engines[kind], session.memory
    if not isinstance(engine, TensorRTEngine) or not isinstance(memory, DeviceMemory):
        return
    tensors, recorder = session.tensors(kind), _recorder(engine.library.module)
    call = TensorRTCall(memory, engine.new_context(memory, tensors), engine.addresses(tensors))
    call.context.profiler = recorder
    for run in range(_WARM_UP + runs):
        recorder.reports.clear()
        call.run()
        memory.synchronize()
        if run >= _WARM_UP:
            yield from recorder.reports


def inspector_text(session: Session, kind: str) -> str:
    """Return what TensorRT's engine inspector says of an engine, as JSON; empty for other backends."""
    engine = session.model.engines[kind]
    if not isinstance(engine, TensorRTEngine):
        return ""
    form = engine.library.module.LayerInformationFormat.JSON
    return str(engine.engine.create_engine_inspector().get_engine_information(form))


def _recorder(trt: Any) -> Any:
    class Recorder(trt.IProfiler):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.reports: list[tuple[str, float]] = []

        def report_layer_time(self, name: str, ms: float) -> None:
            self.reports.append((name, ms))

    return Recorder()
