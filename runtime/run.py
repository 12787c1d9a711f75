"""A loop in progress and those whom it is for: one request, or several in one batch."""

import dataclasses

from taylorseer.runtime.batching import parted
from taylorseer.runtime.denoising import Denoising, Result
from taylorseer.runtime.job import Job, Progress, requested
from taylorseer.runtime.leases import Lease

__all__ = ["Run"]


@dataclasses.dataclass(eq=False)
class Run:
    """One thread at a time has it."""

    jobs: list[Job]
    """In the order of their images."""
    lease: Lease
    loop: Denoising
    on_device: bool
    """Whether the latent stays on the device; of one request alone."""
    reported: int = 0
    """Steps that the jobs were told of."""
    images: list[int] = dataclasses.field(init=False)
    """Of each job."""

    def __post_init__(self) -> None:
        """Keep the sizes, for jobs let go of their requests."""
        self.images = [requested(job).shape.batch for job in self.jobs]

    def advance(self, lag: int) -> bool:
        """Do the next step, and tell of those that have happened; return False, having done nothing, after the last.

        Args:
            lag: how many steps are enqueued behind the one that is waited for.
        """
        if not self.loop.advance():
            return False
        self._report(self.loop.begun - lag)
        return True

    def results(self) -> list[tuple[Job, Result]]:
        """Wait for the last step; return what it left to each job that still wants it."""
        self._report(self.loop.steps)
        parts = parted(self.loop.result(on_device=self.on_device), self.images)
        return [(job, part) for job, part in zip(self.jobs, parts, strict=True) if job.state == "running"]

    def _report(self, happened: int) -> None:
        for step in range(self.reported, happened):
            self.loop.wait(step)
            for job in self.jobs:
                job.report(Progress(step, self.loop.steps, self.loop.is_full(step)))
        self.reported = max(self.reported, happened)
