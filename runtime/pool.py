"""One loaded bundle, many requests at a time: engines and weights are shared, state belongs to each request.

with SessionPool.open(bundle, concurrency=2) as pool:
    job = pool.submit(request)
    result = job.result()          # or, in a coroutine: result = await job, async for progress in job
"""

import dataclasses
from types import TracebackType
from typing import Self

from taylorseer.bundle import Bundle
from taylorseer.runtime.job import Job
from taylorseer.runtime.request import Request
from taylorseer.runtime.session import LoadedModel

__all__ = ["PoolStatus", "SessionPool"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """What a pool does at this moment, and has done."""

    queued: int
    """Requests that wait for their turn."""
    running: int
    """Requests between their first and last denoising step."""
    sessions: int
    """Sessions that have memory, idle ones included."""
    idle_sessions: int
    """Sessions that wait for a request of their shape; their memory is given up when another shape needs it."""
    budget_bytes: int
    """Memory that sessions may have."""
    used_bytes: int
    """Memory that they have, as planned."""
    peak_bytes: int
    """The most that they had at a time, as planned."""
    finished: int
    """Requests that ended with a result."""
    failed: int
    """Requests that ended with an error, after they were admitted."""
    cancelled: int
    """Requests that were cancelled by their owners or by closing the pool."""
    refused: int
    """Requests that were not taken: the queue was full, the pool closing, or the request itself unfit."""
    timed_out: int
    """Requests that waited too long for their turn."""
    closing: bool
    """Whether it takes no requests any more because it is being closed."""
    lost: str | None
    """Why the device is not used any more, or None."""

    @property
    def ready(self) -> bool:
        """Whether a request would be taken, if the queue has room."""
        return not self.closing and self.lost is None


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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    def status(self) -> PoolStatus:
        """Return what the pool does at this moment."""
        raise NotImplementedError

    def trim(self) -> None:
        """Free the memory of the idle sessions."""
        raise NotImplementedError

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, end those that are here, free all memory.  A second call does no harm.

        Args:
            drain: let all of them finish, the waiting ones included; otherwise cancel them.
            timeout: seconds after which those are cancelled that have not finished; None: any time.
        """
        raise NotImplementedError

    async def aclose(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Do as :meth:`close`, without blocking the event loop."""
        raise NotImplementedError

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
