"""A denoising loop that is advanced from outside, one step at a time, and may be abandoned between any two."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import InputError
from taylorseer.runtime.backend import Clock, Memory
from taylorseer.runtime.step_plan import StepPlan

__all__ = ["Denoising", "Result"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a denoising loop leaves behind."""

    latent: Any
    """float32, the caller's own copy: a NumPy array, or what the device gives to DLPack (``on_device``)."""
    step_seconds: NDArray[np.float64]
    """[steps] time from the end of the step before to the end of this one, on the device where there is one; what else
    is done in between, such as steps of other requests, counts."""
    full_steps: NDArray[np.bool_]
    """[steps] which of them were full."""


class Denoising:
    """An admitted request on its session, which serves no other until this is closed or left.

    Steps are enqueued without waiting for the device: who wants to know that one has happened calls :meth:`wait`.
    """

    def __init__(
        self,
        plan: Sequence[StepPlan],
        loop: Generator[bool, None, None],
        memory: Memory,
        clock: Clock,
        finish: Callable[[int, bool], Any],
        release: Callable[[], None],
    ) -> None:
        """Take over a session.

        Args:
            plan: of every step.
            loop: does a step each time that it is resumed, and yields whether it was full.
            memory: of the session.
            clock: marks the end of every step.
            finish: returns the latent after so many steps, on the device or not.
            release: lets the session serve others.
        """
        self._plan, self._loop, self._memory, self._clock = plan, loop, memory, clock
        self._finish, self._release = finish, contextlib.ExitStack()
        self._release.callback(release)
        self._turn, self._is_open = threading.Lock(), True
        self.begun = 0
        """Steps that were run, or enqueued where the backend is asynchronous."""

    @property
    def steps(self) -> int:
        """Steps of the whole loop."""
        return len(self._plan)

    def is_full(self, step: int) -> bool:
        """Whether a step, counted up from 0, is full."""
        return self._plan[step].is_full

    def advance(self) -> bool:
        """Run the next step, or enqueue it; return False, having done nothing, after the last one.

        Any thread may ask for any step, though not two at once.

        Raises:
            NonFiniteError: NaN or infinity in the prediction of a full step.
            BackendError: the backend failed.
            InputError: another thread is at it, or the loop was closed.
        """
        with self._exclusively():
            self._require_open()
            self._memory.activate()
            step = next(self._loop, None)
            self.begun += step is not None
            return step is not None

    def __iter__(self) -> Iterator[bool]:
        """Run all steps that are left, in this thread; give after each whether it was full."""
        self._require_open()
        self._memory.activate()
        for is_full in self._loop:
            self.begun += 1
            yield is_full

    def wait(self, step: int | None = None) -> None:
        """Wait until a step that was begun has happened on the device; None: the latest."""
        self._clock.wait(self.begun if step is None else step + 1)

    def result(self, *, on_device: bool = False) -> Result:
        """Wait for the last step; return what it left.

        Args:
            on_device: give the latent where the device has it.

        Raises:
            NonFiniteError: NaN or infinity in what the loop made.
            InputError: there are steps left, or the loop was closed.
        """
        self._require_open()
        if self.begun < self.steps:
            raise InputError(f"The loop has done {self.begun} of its {self.steps} steps: advance it to its end first.")
        seconds = self._clock.seconds()
        latent = self._finish(self.steps, on_device)
        return Result(latent, seconds, np.array([step.is_full for step in self._plan]))

    def close(self) -> None:
        """Abandon what is left, and let the session serve other requests; a second call does no harm.

        Raises:
            InputError: another thread is advancing the loop.
        """
        with self._exclusively(), self._release:
            self._is_open = False
            self._loop.close()

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise InputError("Another thread is advancing this loop: let one thread at a time work with it.")
        try:
            yield
        finally:
            self._turn.release()

    def _require_open(self) -> None:
        if not self._is_open:
            raise InputError("This loop was closed: begin another one.")

    def __enter__(self) -> Self:
        """Return the loop itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the session serve other requests."""
        self.close()

    def __del__(self) -> None:
        """Let the session serve others if the owner forgot to."""
        self.close()
