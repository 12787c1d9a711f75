"""A request on its way through a pool, as its owner sees it: to wait for, to follow, to cancel; with asyncio or not."""

import dataclasses
from collections.abc import AsyncIterator, Generator
from typing import Any, Literal

from taylorseer.runtime.session import Result

__all__ = ["Job", "JobState", "Progress"]

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
    """What :meth:`SessionPool.submit` returns.  Every method may be called from any thread."""

    @property
    def state(self) -> JobState:
        """Where the request is."""
        raise NotImplementedError

    @property
    def latest(self) -> Progress | None:
        """The newest step that has happened; None before the first."""
        raise NotImplementedError

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
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask for the end: no further step begins but one that is being enqueued now, and the state is let go.

        A request that has ended already is not changed by it.
        """
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, Result]:
        """Wait for the result without blocking the event loop; raises what :meth:`result` raises.

        Cancelling the wait cancels the request, as with a task: ``asyncio.shield(job)`` keeps it.
        """
        raise NotImplementedError

    def __aiter__(self) -> AsyncIterator[Progress]:
        """Give every step in turn, those before the call included, without blocking the event loop.

        The iteration ends with the loop, and raises what :meth:`result` raises if the request ends without a result.
        Leaving it early does not cancel the request.
        """
        raise NotImplementedError
