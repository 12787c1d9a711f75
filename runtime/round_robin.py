"""Requests in turn, one denoising step each: begun when there is memory, advanced, ended; by one thread or several."""

import collections
import functools
import threading
from collections.abc import Callable, Sequence

from taylorseer.errors import (
    DeviceError,
    MemoryPlanError,
    PoolClosedError,
    QueueTimeoutError,
    RequestCancelledError,
    TaylorSeerError,
)
from taylorseer.runtime.batching import merged
from taylorseer.runtime.free_memory import is_lost
from taylorseer.runtime.job import Job, requested
from taylorseer.runtime.leases import Lease, SessionLeases, close_all
from taylorseer.runtime.pool_status import Counts
from taylorseer.runtime.request_queue import RequestQueue, next_batch, shape_of
from taylorseer.runtime.run import Run
from taylorseer.runtime.session import LoadedModel, Session

__all__ = ["RoundRobin"]


class RoundRobin:
    """What a pool's threads do.  :attr:`changed` protects everything that more than one thread sees."""

    def __init__(
        self, model: LoadedModel, queue: RequestQueue, leases: SessionLeases, *, concurrency: int, lag: int, images: int
    ) -> None:
        """Begin without a request.

        Args:
            model: the loaded bundle.
            queue: of requests that wait.
            leases: of sessions.
            concurrency: loops in progress at most.
            lag: steps that a loop may be ahead of what is known to have happened: 1 keeps a GPU busy, 0 is for
                backends that do not enqueue.
            images: of several requests in one batch at most.
        """
        self.queue, self.leases, self.counts, self.changed = queue, leases, Counts(), threading.Condition()
        self.jobs: set[Job] = set()
        """Those that have begun and not ended."""
        self.lost: str | None = None
        """Why the device is not used any more."""
        self._stopping = False
        self._model, self._concurrency, self._lag, self._images = model, concurrency, lag, images
        self._starting: collections.deque[tuple[list[Job], Lease]] = collections.deque()
        self._ring: collections.deque[Run] = collections.deque()
        """Loops whose next step nobody is at."""
        self._loops = 0
        """In progress, those that are being started included."""

    # For the pool

    def put(self, job: Job, seconds: float | None) -> None:
        """Start a job if nobody is before it and there is memory for it, or let it wait so many seconds.

        Raises:
            QueueFullError: it would have to wait, and no more may.
            PoolClosedError: the threads are to end.
            DeviceError: the device was lost.
        """
        with self.changed:
            if self.lost is not None:
                raise _lost(self.lost)
            if self._stopping:
                raise PoolClosedError("The pool is closing or closed: send the request to another one.")
            if len(self.queue) or not self._begin([job]):
                self.queue.require_room()
                self.queue.put(job, seconds)
            self.changed.notify()

    def cancel(self, job: Job) -> None:
        """End a job that waits; one that has begun ends at its next turn."""
        with self.changed:
            waited = self.queue.remove(job)
            self.counts.cancelled += waited
        if waited:
            job.fail(RequestCancelledError("The request was cancelled before its turn."))

    def cancel_all(self) -> None:
        """End all that wait, and let what has begun end at its next turn."""
        with self.changed:
            waiting, begun = self.queue.take_all(), tuple(self.jobs)
            self.counts.cancelled += len(waiting)
        for job in waiting:
            job.fail(PoolClosedError("The pool was closed before the request's turn: send it to another."))
        for job in begun:
            job.cancel()

    def stop(self) -> None:
        """Let the threads end once there is nothing left to do."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()

    def work(self) -> None:
        """Do what is to be done, until it is time to stop."""
        while True:
            with self.changed:
                while (task := self._choose()) is None:
                    if self._stopping and not self._loops and not len(self.queue):
                        return
                    self.changed.wait(self.queue.seconds_left())
            task()

    # What is next

    def _choose(self) -> Callable[[], None] | None:
        """Return what is most urgent: to tell who waited too long, to start what fits, a step of the next loop."""
        expired = self.queue.take_expired()
        if expired:
            return functools.partial(self._expire, expired)
        if len(self.queue):
            self._begin(next_batch(self.queue, self._images))
        if self._starting:
            return functools.partial(self._start, *self._starting.popleft())
        if self._ring:
            return functools.partial(self._advance, self._ring.popleft())
        return None

    def _begin(self, jobs: list[Job]) -> bool:
        """Take jobs from the queue into a loop, or the first few of them; return False while not even one fits."""
        if self._loops == self._concurrency:
            return False
        while (lease := self.leases.lease(shape_of(jobs))) is None:
            jobs = jobs[:-1]
            if not jobs:
                return False
        for job in jobs:
            self.queue.remove(job)
            job.begin()
        self.jobs.update(jobs)
        self._loops += 1
        self._starting.append((jobs, lease))
        return True

    def _expire(self, jobs: Sequence[Job]) -> None:
        with self.changed:
            self.counts.timed_out += len(jobs)
        for job in jobs:
            job.fail(QueueTimeoutError("The request waited for its turn as long as it may: ask again later."))

    # A loop's life

    def _start(self, jobs: list[Job], lease: Lease) -> None:
        try:
            request = merged([requested(job) for job in jobs], self._model.manifest.rows_per_image)
            run = Run(jobs, lease, self._open(lease).begin(**request.arguments()), request.on_device)
        except BaseException as error:
            self._fail(jobs, lease, error)
            return
        with self.changed:
            self._ring.append(run)
            self.changed.notify()

    def _open(self, lease: Lease) -> Session:
        try:
            return self.leases.open(lease)
        except MemoryPlanError:
            if not self.trim():
                raise
            return self.leases.open(lease)  # somebody else took memory: what was idle here makes up for it

    def trim(self) -> int:
        """Close the idle sessions; return how many."""
        with self.changed:
            idle = self.leases.take_idle()
        count = len(idle)
        close_all(idle)
        return count

    def _advance(self, run: Run) -> None:
        """Give a loop its turn."""
        try:
            self._drop_cancelled(run)
            if all(job.state == "cancelled" for job in run.jobs):
                return
            if run.advance(self._lag):
                with self.changed:
                    self._ring.append(run)
            else:
                self._finish(run)
        except BaseException as error:
            run.loop.close()
            self._fail(run.jobs, run.lease, error)

    def _drop_cancelled(self, run: Run) -> None:
        """End those whose owners want it, and the loop if it is for nobody any more."""
        dropped = [job for job in run.jobs if job.cancel_asked and job.state == "running"]
        if not dropped:
            return
        left = any(job.state == "running" and job not in dropped for job in run.jobs)
        self._settle(dropped, "cancelled", None if left else run)
        for job in dropped:
            job.fail(RequestCancelledError(f"The request was cancelled after {run.loop.begun} of its steps."))

    def _finish(self, run: Run) -> None:
        results = run.results()
        self._settle([job for job, _ in results], "finished", run)
        for job, result in results:
            job.finish(result)

    def _settle(self, jobs: Sequence[Job], how: str, run: Run | None) -> None:
        """Count how jobs end; let go of the loop if that was all of it.  Afterwards their owners may be told."""
        if run is not None:
            run.loop.close()
        with self.changed:
            self.jobs.difference_update(jobs)
            setattr(self.counts, how, getattr(self.counts, how) + len(jobs))
            if run is not None:
                self.leases.give_back(run.lease)
                self._loops -= 1
            self.changed.notify_all()

    def _fail(self, jobs: Sequence[Job], lease: Lease, error: BaseException) -> None:
        """Free the session of a loop that failed; of a batch each gets another turn, for the fault is one's."""
        close_all([*lease.evicted, *([lease.session] if lease.session else [])])
        left = [job for job in jobs if job.state == "running"]
        lost = is_lost(self._model.backend)
        again = len(jobs) > 1 and not lost
        with self.changed:
            self.leases.drop(lease)
            self._loops -= 1
            self.jobs.difference_update(left)
            if again:
                for job in left:
                    job.wait_alone()
                self.queue.put_first(left)
            else:
                self.counts.failed += len(left)
            self.changed.notify_all()
        if lost:
            self._lose(str(error))
        if not again:
            for job in left:
                job.fail(_without_frames(error))

    def _lose(self, reason: str) -> None:
        """Never use the device again; end everything."""
        with self.changed:
            self.lost = reason
            runs, starting = tuple(self._ring), tuple(self._starting)
            self._ring.clear()
            self._starting.clear()
            jobs = [*self.queue.take_all(), *(job for run in runs for job in run.jobs)]
            jobs += [job for some, _ in starting for job in some]
            for lease in (*(run.lease for run in runs), *(lease for _, lease in starting)):
                self.leases.drop(lease)
            self._loops -= len(runs) + len(starting)
            self.jobs.difference_update(jobs)
            self.counts.failed += len(jobs)
        for run in runs:
            run.loop.close()
        for job in jobs:
            if job.state in ("queued", "running"):
                job.fail(_lost(reason))


def _without_frames(error: BaseException) -> BaseException:
    """Return a user's error without its traceback, whose frames would keep the request's state; a bug keeps it."""
    return error.with_traceback(None) if isinstance(error, TaylorSeerError) else error


def _lost(reason: str) -> DeviceError:
    return DeviceError(f"The GPU was lost, and no request is served here any more: {reason}")
