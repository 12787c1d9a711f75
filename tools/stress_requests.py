"""Many mixed requests on one pool: right images, no leak, cancellation within a step, clear errors.

    python -m tools.stress_requests bundles/flux-emoji --requests 2000

draws a catalogue of random requests (noise, conditions, order, schedule, steps, batch), lets a fresh process make each
of them, and then asks one pool for them again and again, the first half by threads and the second by tasks: some are
cancelled at a random step, some fail on purpose.  Prints what was found beside what was allowed; exit code 1 when a
check fails.
"""

import argparse
import asyncio
import collections
import dataclasses
import gc
import json
import pathlib
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.errors import InputError, NonFiniteError, RequestCancelledError
from taylorseer.runtime.job import Job
from taylorseer.runtime.leases import SessionLeases
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.request import Request
from taylorseer.runtime.session import LoadedModel
from tools.stress_catalogue import catalogue, digest, diverging, references

LARGEST_SLOPE = 1024
"""Bytes that the process may grow by with each request."""

_SETTLING = 0.3
"""Share of the requests after which memory is measured: allocators and engines have by then what they keep."""

Kind = Literal["complete", "cancel", "fail"]


@dataclasses.dataclass
class Findings:
    """What the campaign has seen; one lock protects it."""

    images: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Ends of requests, by name."""
    wrong: list[int] = dataclasses.field(default_factory=list)
    """Requests whose image was another one than a fresh process's."""
    unexpected: list[str] = dataclasses.field(default_factory=list)
    """What should not have happened."""
    steps_after_cancel: list[int] = dataclasses.field(default_factory=list)
    """Steps that were still done after a request was cancelled."""
    memory: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Requests done, bytes of the process."""
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class Campaign:
    """Asks a pool for the requests of a catalogue."""

    def __init__(self, pool: SessionPool, requests: Sequence[Request], expected: Sequence[str], seed: int) -> None:
        self.pool, self.requests, self.expected, self.findings = pool, requests, expected, Findings()
        self._seed, self._done = seed, 0

    def threads(self, numbers: Sequence[int], clients: int) -> None:
        """Let so many threads ask, each for one request at a time."""
        with ThreadPoolExecutor(clients) as executor:
            for done in [executor.submit(self._by_thread, number) for number in numbers]:
                done.result()

    def tasks(self, numbers: Sequence[int], clients: int) -> None:
        """Let so many tasks of one event loop ask, each for one request at a time."""

        async def client(part: Sequence[int]) -> None:
            for number in part:
                await self._by_task(number)

        async def all_clients() -> None:
            await asyncio.gather(*(client(numbers[start::clients]) for start in range(clients)))

        asyncio.run(all_clients())

    def _draw(self, number: int) -> tuple[int, Kind, int, Request]:
        """Return which request of the catalogue, what becomes of it, at which step, and the request."""
        random = np.random.default_rng([self._seed, number])
        which = int(random.integers(len(self.requests)))
        share, request = random.random(), self.requests[which]
        step = int(random.integers(0, request.shape.steps - 1))
        if share < 0.30:
            return which, "cancel", step, request
        if share < 0.35:
            return which, "fail", step, diverging(request, step)
        return which, "complete", step, request

    def _by_thread(self, number: int) -> None:
        which, kind, step, request = self._draw(number)
        job = self.pool.submit(request)
        counted: list[int] = []
        if kind == "cancel":
            while (job.latest.step if job.latest else -1) < step - 1 and job.state in ("queued", "running"):
                time.sleep(0.0005)
            counted.append(_cancel(job))
        try:
            self._ended(number, which, kind, job, job.result(), counted)
        except Exception as error:
            self._ended(number, which, kind, job, error, counted)

    async def _by_task(self, number: int) -> None:
        which, kind, step, request = self._draw(number)
        job = self.pool.submit(request)
        counted: list[int] = []
        try:
            if kind == "cancel" and step == 0:
                counted.append(_cancel(job))
            async for progress in job:
                if kind == "cancel" and progress.step >= step - 1 and not counted:
                    counted.append(_cancel(job))
            self._ended(number, which, kind, job, await job, counted)
        except Exception as error:
            self._ended(number, which, kind, job, error, counted)

    def _ended(self, number: int, which: int, kind: Kind, job: Job, outcome: object, counted: list[int]) -> None:
        expected = {"complete": None, "cancel": RequestCancelledError, "fail": NonFiniteError}[kind]
        found = self.findings
        with found.lock:
            self._done += 1
            if not isinstance(outcome, Exception):
                found.images["finished" if kind == "complete" else f"finished before: {kind}"] += 1
                if digest(outcome) != self.expected[which]:  # type: ignore[arg-type]
                    found.wrong.append(number)
                if kind == "fail":
                    found.unexpected.append(f"request {number} was to fail and did not")
            elif expected is not None and isinstance(outcome, expected):
                found.images[kind] += 1
            else:
                found.unexpected.append(f"request {number} ({kind}): {type(outcome).__name__}: {outcome}")
            if counted and isinstance(outcome, RequestCancelledError):
                found.steps_after_cancel.append((job.latest.step if job.latest else -1) - counted[0])
            if self._done % 20 == 0:
                gc.collect()
                found.memory.append((self._done, resident_bytes()))


def _cancel(job: Job) -> int:
    """Cancel; return the last step that is known to have happened by then."""
    job.cancel()
    return job.latest.step if job.latest else -1


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory."""
    pages = int(pathlib.Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096


def slope(memory: Sequence[tuple[int, int]]) -> float:
    """Return the bytes by which the process grows with each request: the median of the slopes of all pairs.

    One step up, such as an allocator's, does not tilt it as it would a least-squares line.
    """
    settled = np.array(memory[int(len(memory) * _SETTLING) :], np.float64)
    first, second = np.triu_indices(len(settled), 1)
    rise = settled[second] - settled[first]
    return float(np.median(rise[:, 1] / rise[:, 0])) if len(rise) else 0.0


def two_threads(model: LoadedModel, request: Request) -> list[str]:
    """Let a second thread use a session while it runs; return what it was told."""
    told: list[str] = []

    def interfere() -> None:
        try:
            session.denoise(**request.arguments())
        except InputError as error:
            told.append(str(error))

    def on_step(step: int, full: bool) -> None:
        if step % 4 == 0:
            thread = threading.Thread(target=interfere)
            thread.start()
            thread.join()

    with model.session(request.shape.batch, steps=request.shape.steps) as session:
        session.denoise(**request.arguments(), on_step=on_step)
    return told


def run(
    bundle: Bundle, requests: Sequence[Request], expected: Sequence[str], *, count: int, clients: int, seed: int
) -> dict[str, object]:
    """Run the campaign in this process.

    Args:
        bundle: a checked bundle.
        requests: the catalogue.
        expected: digest of every image in it.
        count: requests.
        clients: threads, and then tasks, that ask at a time; the pool does two fewer at a time, so that some wait.
        seed: of what becomes of which request.
    """
    model = LoadedModel(bundle.manifest, open_backend(bundle, threads=1))
    sizes = SessionLeases(model, 0)
    largest = sorted(sizes.size(request.shape) for request in requests)[-clients:]
    began = time.perf_counter()
    with SessionPool(model, concurrency=max(1, clients - 2), memory_budget=sum(largest)) as pool:
        campaign = Campaign(pool, requests, expected, seed)
        campaign.threads(range(count // 2), clients)
        campaign.tasks(range(count // 2, count), clients)
        during = pool.status()
    found, told = campaign.findings, two_threads(model, requests[0])
    late = max(found.steps_after_cancel, default=0)
    growth = slope(found.memory)
    checks = {
        "every image is that of a fresh process": not found.wrong,
        "every request ended as it was to": not found.unexpected and found.images.total() == count,
        "no more than one step after a cancellation": late <= 1,
        f"less than {LARGEST_SLOPE} bytes a request": growth < LARGEST_SLOPE,
        "a second thread on a session is refused": bool(told) and all("is running a request" in text for text in told),
        "the memory budget was kept": during.peak_bytes <= during.budget_bytes,
        "nothing is left": pool.status().used_bytes == pool.status().sessions == during.running == during.queued == 0,
    }
    return {
        "requests": count,
        "in_the_catalogue": len(requests),
        "ended": dict(found.images),
        "pool": dataclasses.asdict(during.ended),
        "wrong_images": len(found.wrong),
        "unexpected": found.unexpected[:5],
        "cancelled_in_midst": len(found.steps_after_cancel),
        "most_steps_after_a_cancellation": late,
        "bytes_a_request": round(growth),
        "resident_mb": [round(size / 1e6, 1) for _, size in found.memory[:: max(1, len(found.memory) // 10)]],
        "sessions_mb": {"budget": round(during.budget_bytes / 1e6, 1), "most": round(during.peak_bytes / 1e6, 1)},
        "refusals_of_a_second_thread": len(told),
        "seconds": round(time.perf_counter() - began, 1),
        "checks": checks,
    }


def main() -> int:
    """Run the campaign; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--catalogue", type=int, default=100, help="different requests, a fresh process for each")
    parser.add_argument("--clients", type=int, default=8, help="threads, and then tasks, that ask at a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    expected = references(options.bundle, options.catalogue, options.seed)
    requests = catalogue(bundle.manifest, options.catalogue, options.seed)
    found = run(bundle, requests, expected, count=options.requests, clients=options.clients, seed=options.seed)
    print(json.dumps(found, indent=1))
    return 0 if all(found["checks"].values()) else 1  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
