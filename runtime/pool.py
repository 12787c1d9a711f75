"""One loaded bundle, many requests at a time: engines and weights are shared, state belongs to each request.

with SessionPool.open(bundle, concurrency=2) as pool:
    job = pool.submit(request)
    result = job.result()          # or, in a coroutine: result = await job, async for progress in job
"""

import asyncio
import atexit
import dataclasses
import os
import threading
import time
from types import TracebackType
from typing import Self

from taylorseer.bundle import Bundle
from taylorseer.errors import InputError, PoolClosedError, TaylorSeerError
from taylorseer.runtime.batching import require_equal_in_batches
from taylorseer.runtime.footprint import BESIDE_BYTES, LATER_BESIDE_BYTES
from taylorseer.runtime.free_memory import free_bytes
from taylorseer.runtime.job import Job
from taylorseer.runtime.leases import SessionLeases
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.pool_status import PoolStatus
from taylorseer.runtime.request import Request, check_request
from taylorseer.runtime.request_queue import RequestQueue
from taylorseer.runtime.round_robin import RoundRobin
from taylorseer.runtime.session import LoadedModel
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["PoolStatus", "SessionPool"]

_ON_A_GPU = 4
"""Requests in turn on a GPU: they fill each other's gaps, and each is that many times slower."""


class SessionPool:
    """Admits requests, interleaves them step by step, and gives every one a session of its own while it runs."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        concurrency: int | None = None,
        memory_budget: int | None = None,
        queue_limit: int = 64,
        queue_timeout: float | None = None,
        max_batch: int = 1,
    ) -> None:
        """Start the pool's threads; no session is opened before a request needs it.

        Args:
            model: a loaded bundle, which the caller may use for sessions of its own as well.
            concurrency: requests that are denoised at a time.  On the CPU each has a thread, and None means one for
                each core; on a GPU one thread takes them in turn, step by step, and None means 4.
            memory_budget: bytes that all sessions together may have; None: what is free now, on the GPU after the
                engines were loaded, and on the CPU half of it.
            queue_limit: requests that may wait; 0: a request is refused unless it starts at once.
            queue_timeout: seconds that a request may wait for its turn; None: any time.
            max_batch: images of several requests that are denoised in one batch; 1: every request by itself.

        Raises:
            InputError: a number below its least.
        """
        on_gpu = model.manifest.engine.backend in FLAVORS
        concurrency = (_ON_A_GPU if on_gpu else _cores()) if concurrency is None else concurrency
        budget = _free_for_sessions(model, on_gpu=on_gpu) if memory_budget is None else memory_budget
        for name, number, least in (
            ("concurrency", concurrency, 1),
            ("memory_budget", budget, 0),
            ("queue_limit", queue_limit, 0),
            ("queue_timeout", queue_timeout or 0, 0),
            ("max_batch", max_batch, 1),
        ):
            if number < least:
                raise InputError(f"{name} is {number}: give {least} or more.")
        if max_batch > 1:
            require_equal_in_batches(model, max_batch)
        self._model, self._queue_timeout = model, queue_timeout
        self._process, self._closing, self._refused = os.getpid(), False, 0
        self._leases = SessionLeases(model, budget)
        self._work = RoundRobin(
            model,
            RequestQueue(queue_limit),
            self._leases,
            concurrency=concurrency,
            lag=1 if on_gpu else 0,
            images=max_batch,
        )
        self._threads = [
            threading.Thread(target=self._work.work, name=f"taylorseer-pool-{number}", daemon=True)
            for number in range(1 if on_gpu else concurrency)
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self._close_at_exit)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        *,
        threads: int = 1,
        device: int = 0,
        concurrency: int | None = None,
        memory_budget: int | None = None,
        queue_limit: int = 64,
        queue_timeout: float | None = None,
        max_batch: int = 1,
    ) -> Self:
        """Load a bundle and return a pool of it; ``threads`` (ONNX Runtime: per operator) and ``device`` (TensorRT)
        as in :func:`~taylorseer.runtime.open_backend.open_backend`, the rest as in the constructor.

        Raises:
            BackendError: the engines cannot be loaded here.
            InputError: a number below its least.
        """
        model = LoadedModel(bundle.manifest, open_backend(bundle, threads=threads, device=device))
        return cls(
            model,
            concurrency=concurrency,
            memory_budget=memory_budget,
            queue_limit=queue_limit,
            queue_timeout=queue_timeout,
            max_batch=max_batch,
        )

    def submit(self, request: Request, *, queue_timeout: float | None = None) -> Job:
        """Check a request, and start it or let it wait; returns at once.

        Args:
            request: one loop.
            queue_timeout: seconds that it may wait for its turn; None: the pool's.

        Raises:
            InputError: it does not fit the bundle (ShapeError, NonFiniteError and others derive from it).
            ScheduleError: a cache configuration that the bundle cannot serve.
            MemoryPlanError: its session alone is larger than the memory budget, so waiting would not help.
            QueueFullError: too many wait already.
            PoolClosedError: the pool is closing.
            DeviceError: the device was lost; no request will be served again.
        """
        try:
            self._require_open()
            shape = request.shape
            self._leases.require_possible(shape)
            check_request(self._model.manifest, self._leases.plan(shape), request)
            job = Job(request, self._work.cancel)
            self._work.put(job, self._queue_timeout if queue_timeout is None else queue_timeout)
        except TaylorSeerError:
            with self._work.changed:
                self._refused += 1
            raise
        return job

    def status(self) -> PoolStatus:
        """Return what the pool does at this moment."""
        work, leases = self._work, self._leases
        with work.changed:
            return PoolStatus(
                queued=len(work.queue),
                running=len(work.jobs),
                sessions=leases.count,
                idle_sessions=leases.idle,
                budget_bytes=leases.budget,
                used_bytes=leases.used,
                peak_bytes=leases.peak,
                ended=dataclasses.replace(work.counts),
                refused=self._refused,
                closing=self._closing,
                lost=work.lost,
            )

    def trim(self) -> None:
        """Free the memory of the idle sessions."""
        self._work.trim()

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, end those that are here, free all memory.  A second call does no harm.

        Args:
            drain: let all of them finish, the waiting ones included; otherwise cancel them.
            timeout: seconds after which those are cancelled that have not finished; None: any time.
        """
        self._closing = True
        if os.getpid() != self._process:
            return  # its threads are not in this process, and what they use is not to be freed under them
        self._work.stop()
        if not drain:
            self._work.cancel_all()
        if not self._join(timeout):
            self._work.cancel_all()
            self._join(None)
        self._work.trim()
        atexit.unregister(self._close_at_exit)

    async def aclose(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Do as :meth:`close`, without blocking the event loop."""
        await asyncio.to_thread(self.close, drain=drain, timeout=timeout)

    def _require_open(self) -> None:
        if self._closing:
            raise PoolClosedError("The pool is closing or closed: send the request to another one.")
        if os.getpid() != self._process:
            raise PoolClosedError("The pool was opened before this process was forked: open one in this process.")

    def _join(self, timeout: float | None) -> bool:
        """Wait for the threads to end; return whether they have."""
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _close_at_exit(self) -> None:
        self.close(drain=False)

    def __enter__(self) -> Self:
        """Return the pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool: let its requests finish, or cancel them if the block failed."""
        self.close(drain=error is None)

    async def __aenter__(self) -> Self:
        """Return the pool itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool as :meth:`__exit__` does, without blocking the event loop."""
        await self.aclose(drain=error is None)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_for_sessions(model: LoadedModel, *, on_gpu: bool) -> int:
    """Return what sessions may have: on a GPU all but what its first one brings besides, elsewhere half."""
    free = free_bytes(model.backend)
    return max(0, free - BESIDE_BYTES + LATER_BESIDE_BYTES) if on_gpu else free // 2
