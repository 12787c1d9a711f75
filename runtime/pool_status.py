"""What a pool of sessions does and has done, as one record: for health checks and metrics."""

import dataclasses

__all__ = ["Counts", "PoolStatus"]


@dataclasses.dataclass(kw_only=True)
class Counts:
    """How requests ended that were taken."""

    finished: int = 0
    """Those that ended with a result."""
    failed: int = 0
    """Those that ended with an error, after they were admitted."""
    cancelled: int = 0
    """Those that were cancelled by their owners or by closing the pool."""
    timed_out: int = 0
    """Those that waited too long for their turn."""


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
    ended: Counts
    """How many requests ended in which way."""
    refused: int
    """Requests that were not taken: the queue was full, the pool closing, or the request itself unfit."""
    closing: bool
    """Whether it takes no requests any more because it is being closed."""
    lost: str | None
    """Why the device is not used any more, or None."""

    @property
    def ready(self) -> bool:
        """Whether a request would be taken, if the queue has room."""
        return not self.closing and self.lost is None
