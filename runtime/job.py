"""A request on its way through a pool, as its owner sees it: to wait for, to follow, to cancel; with asyncio or not."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Literal

from taylorseer.errors import RequestCancelledError
from taylorseer.runtime.request import Request
from taylorseer.runtime.session import Result

__all__ = ["Job", "JobState", "Progress", "requested"]

JobState = Literal["queued", "running", "finished", "failed", "cancelled"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """One denoising step that has happened, on the device too."""

    step: int
    """Counted up from 0."""
    steps: int
    """Of the whole loop."""
    is_full: bool
    """Whether the step was full or a forecast."""


class Job:
    """What :meth:`~taylorseer.runtime.pool.SessionPool.submit` returns.  Any thread may call any method."""

    def __init__(self, request: Request, on_cancel: Callable[["Job"], None]) -> None:
        """Begin in the queue; the pool alone makes jobs.

        Args:
            request: what was asked for; let go of at the end.
            on_cancel: told that the owner asked for the end.
        """
        self.request: Request | None = request
        """What was asked for; None after the end, so that its arrays are not kept."""
        self.cancel_asked = False
        """Whether the owner wants no more of it."""
        self.alone = False
        """Whether it may not share a batch: one that it was in has failed."""
        self._on_cancel = on_cancel
        self._state: JobState = "queued"
        self._steps: list[Progress] = []
        self._watchers: list[Callable[[], None]] = []
        self._end: concurrent.futures.Future[Result] = concurrent.futures.Future()
        self._end.set_running_or_notify_cancel()  # so that nobody but the pool ends it

    # For its owner

    @property
    def state(self) -> JobState:
        """Where the request is."""
        return self._state

    @property
    def latest(self) -> Progress | None:
        """The newest step that has happened; None before the first."""
        return self._steps[-1] if self._steps else None

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end of the loop and return what it left.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.  The request goes on afterwards.

        Raises:
            TimeoutError: it has not ended by then.
            RequestCancelledError: it was cancelled.
            QueueTimeoutError: it waited too long for its turn.
            PoolClosedError: the pool was closed before its turn.
            MemoryPlanError: the device has less memory left than the budget says.
            NonFiniteError: NaN or infinity in a prediction.
            DeviceError: the GPU failed.
            BackendError: the backend stopped at a value of an input.
        """
        return self._end.result(timeout)

    def cancel(self) -> None:
        """Ask for the end: no further step begins but one that is being enqueued now, and the state is let go.

        A request that has ended already is not changed by it.
        """
        self.cancel_asked = True
        self._on_cancel(self)

    def add_done_callback(self, function: Callable[["Job"], object]) -> None:
        """Call ``function`` with this job once it has ended, in the thread that ends it: at once if it has already."""
        self._end.add_done_callback(lambda _: function(self))

    def __await__(self) -> Generator[Any, None, Result]:
        """Wait for the result without blocking the event loop; raises what :meth:`result` raises.

        Cancelling the wait cancels the request, as with a task: ``asyncio.shield(job)`` keeps it.
        """
        return self._wait().__await__()

    async def _wait(self) -> Result:
        try:
            return await asyncio.wrap_future(self._end)
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """Give every step in turn, those before the call included, without blocking the event loop.

        The iteration ends with the loop, and raises what :meth:`result` raises if the request ends without a result.
        Leaving it early does not cancel the request.
        """
        events, changed, seen = asyncio.get_running_loop(), asyncio.Event(), 0

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
                events.call_soon_threadsafe(changed.set)

        self._watchers.append(wake)
        try:
            while True:
                changed.clear()
                has_ended = self._end.done()  # asked before the steps are looked at, so that none is missed
                for progress in self._steps[seen:]:
                    yield progress
                    seen += 1
                if has_ended:
                    break
                await changed.wait()
        finally:
            self._watchers.remove(wake)
        self._end.result()

    # For the pool

    def begin(self) -> None:
        """Its first step is next."""
        self._state = "running"

    def wait_alone(self) -> None:
        """Wait once more, after a batch that it was in has failed."""
        self._state, self.alone = "queued", True

    def report(self, progress: Progress) -> None:
        """Tell of a step that has happened, unless that was told before or the job has ended."""
        if progress.step == len(self._steps) and not self._end.done():
            self._steps.append(progress)
            self._wake()

    def finish(self, result: Result) -> None:
        """End with a result."""
        self._state, self.request = "finished", None
        self._end.set_result(result)
        self._wake()

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._state = "cancelled" if isinstance(error, RequestCancelledError) else "failed"
        self.request = None
        self._end.set_exception(error)
        self._wake()

    def _wake(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()


def requested(job: Job) -> Request:
    """Return what a job that has not ended was asked for."""
    assert job.request is not None
    return job.request
