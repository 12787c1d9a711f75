"""Requests that wait for their turn: first come, first served, each no longer than it may."""

import collections
import time
from collections.abc import Iterator, Sequence

from taylorseer.errors import QueueFullError
from taylorseer.runtime.batching import can_share_a_batch
from taylorseer.runtime.job import Job, requested
from taylorseer.runtime.request import Shape

__all__ = ["RequestQueue", "next_batch", "shape_of"]


class RequestQueue:
    """A queue with a limit, whose entries have deadlines.  Its owner's lock protects it."""

    def __init__(self, limit: int) -> None:
        """Begin empty; ``limit`` is the most that may wait."""
        self.limit = limit
        self._jobs: collections.deque[Job] = collections.deque()
        self._deadlines: dict[Job, float] = {}

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        """Give those that wait, the next one first."""
        return iter(tuple(self._jobs))

    def put(self, job: Job, seconds: float | None) -> None:
        """Let a job wait, behind all others, for at most so many seconds; None: any time."""
        self._jobs.append(job)
        if seconds is not None:
            self._deadlines[job] = time.monotonic() + seconds

    def put_first(self, jobs: list[Job]) -> None:
        """Let jobs wait that have had a turn already: before all others, and as long as it takes."""
        self._jobs.extendleft(reversed(jobs))

    def require_room(self) -> None:
        """Refuse one more than may wait.

        Raises:
            QueueFullError: so many wait already.
        """
        if len(self._jobs) >= self.limit:
            raise QueueFullError(
                f"{len(self._jobs)} requests wait already, and no more than {self.limit} may: ask again later."
            )

    def remove(self, job: Job) -> bool:
        """Take a job out; return whether it was waiting."""
        self._deadlines.pop(job, None)
        try:
            self._jobs.remove(job)
        except ValueError:
            return False
        return True

    def take_expired(self) -> list[Job]:
        """Take out those that have waited too long."""
        now = time.monotonic()
        expired = [job for job, deadline in self._deadlines.items() if deadline <= now]
        for job in expired:
            self.remove(job)
        return expired

    def take_all(self) -> list[Job]:
        """Take out everything."""
        jobs = list(self._jobs)
        self._jobs.clear()
        self._deadlines.clear()
        return jobs

    def seconds_left(self) -> float | None:
        """Return the seconds until somebody has waited too long; None: nobody will."""
        return max(0.0, min(self._deadlines.values()) - time.monotonic()) if self._deadlines else None


def shape_of(jobs: Sequence[Job]) -> Shape:
    """Return the shape of the session that serves jobs in one batch."""
    shapes = [requested(job).shape for job in jobs]
    return Shape(sum(shape.batch for shape in shapes), shapes[0].steps)


def next_batch(queue: RequestQueue, images: int) -> list[Job]:
    """Return the first that waits, and those behind it that can share its batch of at most ``images``."""
    first, *others = queue
    jobs = [first]
    for job in () if images == 1 or first.alone else others:
        fits = shape_of([*jobs, job]).batch <= images
        if fits and not job.alone and can_share_a_batch(requested(first), requested(job)):
            jobs.append(job)
    return jobs
