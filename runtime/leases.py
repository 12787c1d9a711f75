"""Sessions for requests within a memory budget: used again by requests of their shape, given up for those of others."""

import collections
import contextlib
import dataclasses
import functools

from taylorseer.errors import InputError, MemoryPlanError, ShapeError, TaylorSeerError
from taylorseer.runtime.footprint import HOST_BESIDE_BYTES, later_footprint
from taylorseer.runtime.memory import MemoryPlan, plan_memory
from taylorseer.runtime.request import Shape
from taylorseer.runtime.session import LoadedModel, Session
from taylorseer.runtime.what_fits import what_fits
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["Lease", "SessionLeases", "close_all"]


@dataclasses.dataclass(eq=False)
class Lease:
    """The right to a session of a shape, whose bytes are counted from now on."""

    shape: Shape
    size: int
    """Bytes that are counted for it."""
    session: Session | None = None
    """None until it is opened."""
    evicted: list[Session] = dataclasses.field(default_factory=list)
    """Idle sessions whose bytes it has taken over, to be closed before it is opened."""


class SessionLeases:
    """Counts the bytes of all sessions of a pool.

    Its owner's lock protects it; :meth:`open` alone takes long, and is called without the lock.
    """

    def __init__(self, model: LoadedModel, budget: int) -> None:
        """Begin with no session.

        Args:
            model: opens the sessions.
            budget: bytes that they may occupy together.
        """
        self._model, self.budget = model, budget
        self.used, self.peak, self.count = 0, 0, 0
        self._idle: collections.deque[Lease] = collections.deque()
        """Those that were used last at the end."""
        self.plan = functools.lru_cache(maxsize=64)(self._plan)
        """Returns the memory plan of a session of a shape, as :meth:`_plan` does."""

    def _plan(self, shape: Shape) -> MemoryPlan:
        """Return the memory plan of a session of a shape.

        Raises:
            ShapeError: more images than the bundle serves, or none.
            InputError: fewer than one step.
        """
        manifest = self._model.manifest
        rows, largest = shape.batch * manifest.rows_per_image, manifest.sizes["max_batch"]
        if not 1 <= rows <= largest:
            raise ShapeError(
                f"A batch of {shape.batch} needs {rows} rows of the model, this bundle serves up to {largest}: ask "
                f"for fewer images at a time, or build with --batch {rows}."
            )
        if shape.steps < 1:
            raise InputError(f"A request of {shape.steps} steps makes nothing: give 1 or more.")
        return plan_memory(manifest, rows=rows, steps=shape.steps, scratch_bytes=self._model.backend.scratch_bytes())

    def size(self, shape: Shape) -> int:
        """Return the bytes that a session of a shape occupies."""
        total = self.plan(shape).total_bytes
        return later_footprint(total) if self._model.manifest.engine.backend in FLAVORS else total + HOST_BESIDE_BYTES

    def require_possible(self, shape: Shape) -> None:
        """Refuse what would not fit if nothing else were there.

        Raises:
            MemoryPlanError: the budget is smaller; the message names what would fit.
            ShapeError: more images than the bundle serves, or none.
        """
        size, plan = self.size(shape), self.plan(shape)
        if size > self.budget:
            advice = "Ask for fewer images at a time."
            if shape.batch == 1:
                advice = what_fits(self._model.manifest, plan, max(0, self.budget - (size - plan.total_bytes)))
            raise MemoryPlanError(
                f"The request's session needs {size / 1e6:.2f} MB and the memory budget of all sessions is "
                f"{self.budget / 1e6:.2f} MB, so waiting would not help: give the pool a larger budget. {advice}"
            )

    @property
    def idle(self) -> int:
        """Sessions that nobody uses."""
        return len(self._idle)

    def lease(self, shape: Shape) -> Lease | None:
        """Return the right to a session, or None while too much is in use."""
        for lease in reversed(self._idle):
            if lease.shape == shape:
                self._idle.remove(lease)
                return lease
        lease = Lease(shape, self.size(shape))
        if self.used - sum(idle.size for idle in self._idle) + lease.size > self.budget:
            return None
        while self.used + lease.size > self.budget:
            lease.evicted += self._take(self._idle.popleft())
        self.used, self.count = self.used + lease.size, self.count + 1
        self.peak = max(self.peak, self.used)
        return lease

    def open(self, lease: Lease) -> Session:
        """Return the session of a lease, opened if it is a new one; called without the lock.

        Raises:
            MemoryPlanError: the device has less memory left than the budget says.
            BackendError: the backend failed.
        """
        close_all(lease.evicted)
        if lease.session is None:
            lease.session = self._model.session(lease.shape.batch, steps=lease.shape.steps)
        return lease.session

    def give_back(self, lease: Lease) -> None:
        """Keep a session for the next request of its shape."""
        self._idle.append(lease)

    def drop(self, lease: Lease) -> None:
        """Count a session no more that was closed, or that could not be opened."""
        self.used, self.count = self.used - lease.size, self.count - 1

    def take_idle(self) -> list[Session]:
        """Count the idle sessions no more; return them, to be closed."""
        taken = [session for lease in self._idle for session in self._take(lease)]
        self._idle.clear()
        return taken

    def _take(self, lease: Lease) -> list[Session]:
        self.drop(lease)
        return [] if lease.session is None else [lease.session]


def close_all(sessions: list[Session]) -> None:
    """Close sessions; of a lost GPU nothing is freed before the process ends, and nothing is to be said of it again."""
    while sessions:
        with contextlib.suppress(TaylorSeerError):
            sessions.pop().close()
