"""Runs cells in worker processes, tells how far it is, and ends cleanly when it is interrupted.

A worker has one thread of ONNX Runtime, so as many workers as cores do more than one process with as many threads, and
several studies or other work on the machine slow it down without stopping it.  On Ctrl-C the cells in flight, a few
seconds of work, are finished and recorded; none is begun any more.
"""

import concurrent.futures
import itertools
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tools.quality_results import Record

__all__ = ["Progress", "Work", "run_all"]

_SHOWN_EVERY, _LOGGED_EVERY = 1.0, 30.0
"""Seconds between two lines of progress, on a terminal and elsewhere, as in a log."""


class Work(Protocol):
    """Something that takes a while."""

    def run(self) -> Record | None:
        """Return what is to be recorded, if anything is."""


class Progress:
    """Tells on standard error what share is done, and the time that the rest will take at the same rate."""

    def __init__(self) -> None:
        """Start the clock."""
        self._total, self._done = 0.0, 0.0
        self._start, self._shown = time.monotonic(), 0.0
        self._terminal = sys.stderr.isatty()

    def plan(self, total: float) -> None:
        """Set how much there is to do, in seconds as estimated, of which only the ratios matter; the clock restarts."""
        self._total, self._start = total, time.monotonic()

    def advance(self, cost: float, what: str) -> None:
        """Count ``cost`` as done, and show it now and then."""
        self._done += cost
        self.show(what)

    def show(self, what: str, *, within: float = 0.0, always: bool = False) -> None:
        """Show where the study is.

        Args:
            what: is being done.
            within: seconds, as estimated, that are done of something that is not counted yet.
            always: not only now and then.
        """
        now = time.monotonic()
        if not always and now - self._shown < (_SHOWN_EVERY if self._terminal else _LOGGED_EVERY):
            return
        self._shown = now
        share = min((self._done + within) / self._total, 1.0) if self._total else 0.0
        spent = now - self._start
        left = _minutes(spent * (1 - share) / share) if share else "?"
        text = f"{share:6.1%}  {_minutes(spent)} gone, {left} left  {what}"
        print(f"\r{text:78.78}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()


def run_all(
    work: Sequence[Work],
    *,
    workers: int,
    on_done: Callable[[int, Record | None], None],
) -> None:
    """Run every item; ``on_done`` is called in this process with its place and what it returned, as each is finished.

    Args:
        work: what can be sent to another process.
        workers: processes; 0: this one.
        on_done: called when an item is finished, in the order in which they are.
    """
    if workers == 0:
        for place, item in enumerate(work):
            on_done(place, item.run())
        return
    context = multiprocessing.get_context("spawn")  # forked threads of a loaded library would hang
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts) as pool:
        waiting = iter(enumerate(work))
        running = _begin(pool, itertools.islice(waiting, 2 * workers))  # one in work and one ready
        try:
            while running:
                done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    on_done(running.pop(future), future.result())
                running |= _begin(pool, itertools.islice(waiting, len(done)))
        except KeyboardInterrupt:
            for future, place in running.items():
                if not future.cancel():
                    on_done(place, future.result())
            raise


Running = dict["concurrent.futures.Future[Record | None]", int]


def _begin(pool: concurrent.futures.ProcessPoolExecutor, work: Iterable[tuple[int, Work]]) -> Running:
    return {pool.submit(item.run): place for place, item in work}


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that records."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
