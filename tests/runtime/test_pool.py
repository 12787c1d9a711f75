"""Many requests on one loaded bundle: each has the image that it has alone, whatever happens to the others."""

import asyncio
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.errors import (
    InputError,
    MemoryPlanError,
    NonFiniteError,
    PoolClosedError,
    QueueFullError,
    QueueTimeoutError,
    RequestCancelledError,
    ScheduleError,
    ShapeError,
    TaylorSeerError,
)
from taylorseer.runtime import onnxruntime_memory
from taylorseer.runtime.batching import merged
from taylorseer.runtime.footprint import HOST_BESIDE_BYTES
from taylorseer.runtime.job import Job
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.session import LoadedModel, Session
from tests.runtime.pools import Steps, alone, diverging, request_of

Load = Callable[..., LoadedModel]


@pytest.fixture
def model(load: Load) -> LoadedModel:
    return load("flux-tiny", "folded")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    held = Steps(monkeypatch, held=True)
    yield held
    held.allow_all()


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread; the limit is there for a test that fails."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# Images


@pytest.mark.parametrize(("name", "layout"), [("flux-tiny", "folded"), ("dit-tiny", "history")])
def test_every_image_is_the_one_of_its_request_alone(load: Load, name: str, layout: str) -> None:
    model = load(name, layout)
    requests = [request_of(model, seed, steps=9 + seed % 3, order=seed % 3) for seed in range(8)]
    requests.append(merged([requests[0], request_of(model, 9, steps=9, order=0)], model.manifest.rows_per_image))
    with SessionPool(model, concurrency=3) as pool:
        jobs = [pool.submit(request) for request in requests]
        for job, request in zip(jobs, requests, strict=True):
            np.testing.assert_array_equal(job.result().latent, alone(model, request))
        assert pool.status().ended.finished == 9 and [job.state for job in jobs] == ["finished"] * 9


def test_the_result_tells_which_steps_were_full(model: LoadedModel) -> None:
    with SessionPool(model) as pool:
        request = request_of(model)
        result = pool.submit(request).result()
        assert result.full_steps.tolist() == [request.cache.schedule().is_full(step) for step in range(12)]
        assert pool.submit(request_of(model, every_step_full=True)).result().full_steps.all()


# Turns


def test_no_more_are_denoised_at_a_time_than_may(model: LoadedModel, steps: Steps) -> None:
    steps.allow_all()
    with SessionPool(model, concurrency=2) as pool:
        jobs = [pool.submit(request_of(model, seed)) for seed in range(6)]
        most = 0
        while not all(job.state == "finished" for job in jobs):
            most = max(most, pool.status().running)
    assert 1 <= steps.most_at_once <= 2 and most <= 2


def test_who_came_first_is_served_first(model: LoadedModel) -> None:
    ended: list[int] = []

    def tell(number: int, job: Job) -> None:
        ended.append(number)

    with SessionPool(model, concurrency=1) as pool:
        for number in range(4):
            job = pool.submit(request_of(model, number, steps=12 - number))
            job.add_done_callback(functools.partial(tell, number))
    assert ended == [0, 1, 2, 3]


# Sessions


class Opened:
    """Counts the sessions of a model that are opened and closed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.closed = 0
        opening, closing = LoadedModel.session, Session.close

        def open_session(model: LoadedModel, batch: int = 1, *, steps: int | None = None) -> Session:
            self.shapes.append((batch, steps or 0))
            return opening(model, batch, steps=steps)

        def close(session: Session) -> None:
            self.closed += 1
            closing(session)

        patch.setattr(LoadedModel, "session", open_session)
        patch.setattr(Session, "close", close)


def test_a_session_serves_the_next_request_of_its_shape(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request_of(model, seed, steps=9 + seed % 2, order=2 - seed % 3) for seed in range(6)]
    expected = [alone(model, request) for request in requests]
    opened = Opened(monkeypatch)
    with SessionPool(model, concurrency=1) as pool:
        for request, latent in zip(requests, expected, strict=True):
            np.testing.assert_array_equal(pool.submit(request).result().latent, latent)
        assert opened.shapes == [(1, 9), (1, 10)] and opened.closed == 0
        assert pool.status().sessions == pool.status().idle_sessions == 2
    assert opened.closed == 2 and pool.status().sessions == pool.status().used_bytes == 0


def session_bytes(model: LoadedModel, *shapes: tuple[int, int]) -> int:
    total = 0
    for batch, steps in shapes:
        with model.session(batch, steps=steps) as session:
            total += session.memory_plan.total_bytes + HOST_BESIDE_BYTES
    return total


def test_idle_sessions_make_room_for_another_shape(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = session_bytes(model, (1, 10), (1, 12))
    opened = Opened(monkeypatch)
    with SessionPool(model, concurrency=2, memory_budget=budget) as pool:
        for steps in (9, 10, 9, 11, 10):  # 11 takes the place of 10, which was used before 9
            pool.submit(request_of(model, steps=steps)).result()
            assert pool.status().used_bytes <= budget
        assert [steps for _, steps in opened.shapes] == [9, 10, 11, 10] and pool.status().sessions == 2
        pool.trim()
        assert (pool.status().sessions, pool.status().used_bytes, opened.closed) == (0, 0, 4)
    assert session_bytes(model, (1, 10), (1, 11)) < pool.status().peak_bytes + 1 <= budget + 1


def test_a_request_waits_for_memory(model: LoadedModel, steps: Steps) -> None:
    with SessionPool(model, concurrency=4, memory_budget=session_bytes(model, (1, 12))) as pool:
        jobs = [pool.submit(request_of(model, seed)) for seed in range(2)]
        steps.allow(5)
        until(lambda: len(steps.order) == 5)
        assert [job.state for job in jobs] == ["running", "queued"] and pool.status().queued == 1
        steps.allow_all()
        for seed, job in enumerate(jobs):
            np.testing.assert_array_equal(job.result().latent, alone(model, request_of(model, seed)))


# Refusals


def test_what_would_never_fit_is_refused_at_once(model: LoadedModel) -> None:
    with SessionPool(model, memory_budget=session_bytes(model, (1, 12))) as pool:
        message = "so waiting would not help: give the pool a larger budget. Ask for fewer images at a time"
        pair = merged([request_of(model, 0), request_of(model, 1)], model.manifest.rows_per_image)
        with pytest.raises(MemoryPlanError, match=message):
            pool.submit(pair)
        pool.submit(request_of(model)).result()
        with pytest.raises(
            MemoryPlanError, match=r"give the pool a larger budget\. (What fits: |Nothing of this model)"
        ):
            pool.submit(request_of(model, steps=60))
        assert pool.status().refused == 2


def test_what_is_unfit_is_refused_before_it_waits(model: LoadedModel) -> None:
    good = request_of(model)
    nan = np.full_like(good.latent, np.nan)
    unfit: list[tuple[type[TaylorSeerError], dict[str, Any], str]] = [
        (ShapeError, {"latent": good.latent[:, :7]}, r"'latent' is float32 \[1, 7, 12\], this bundle was built for"),
        (ShapeError, {"latent": None}, "The latent is NoneType without a batch"),
        (ShapeError, {"latent": np.zeros((9, 48, 12), np.float32)}, "A batch of 9 needs 9 rows"),
        (ShapeError, {"latent": good.latent[:0]}, "A batch of 0 needs 0 rows"),
        (ShapeError, {"conditions": {}}, "'encoder_hidden_states' is missing"),
        (NonFiniteError, {"latent": nan}, "'latent' holds NaN"),
        (NonFiniteError, {"guidance": np.inf}, "The guidance is inf"),
        (ScheduleError, {"cache": request_of(model, steps=8).cache}, "with 8 steps or fewer"),
        (InputError, {"sampler": request_of(model, steps=13).sampler}, "The sampler has 13 steps, the schedule 12"),
    ]
    with SessionPool(model) as pool:
        for kind, changes, message in unfit:
            with pytest.raises(kind, match=message):
                pool.submit(request_of(model, **changes))
        assert pool.status().refused == len(unfit) and pool.status().sessions == 0


def test_a_full_queue_refuses(model: LoadedModel, steps: Steps) -> None:
    with SessionPool(model, concurrency=1, queue_limit=2) as pool:
        jobs = [pool.submit(request_of(model, seed)) for seed in range(3)]
        with pytest.raises(QueueFullError, match="2 requests wait already, and no more than 2 may: ask again later"):
            pool.submit(request_of(model))
        assert (pool.status().queued, pool.status().running, pool.status().refused) == (2, 1, 1)
        steps.allow_all()
        for job in jobs:
            job.result()
        pool.submit(request_of(model)).result()


def test_without_a_queue_a_request_starts_at_once_or_is_refused(model: LoadedModel, steps: Steps) -> None:
    with SessionPool(model, concurrency=2, queue_limit=0) as pool:
        jobs = [pool.submit(request_of(model, seed)) for seed in range(2)]
        with pytest.raises(QueueFullError, match="0 requests wait already, and no more than 0 may"):
            pool.submit(request_of(model))
        steps.allow_all()
        for job in jobs:
            job.result()
        pool.submit(request_of(model)).result()


def test_who_waits_too_long_is_told_so(model: LoadedModel, steps: Steps) -> None:
    with SessionPool(model, concurrency=1, queue_timeout=600) as pool:
        running = pool.submit(request_of(model))
        patient = pool.submit(request_of(model, 1))
        steps.allow(1)
        late = pool.submit(request_of(model), queue_timeout=0)
        steps.allow_all()
        with pytest.raises(QueueTimeoutError, match="waited for its turn as long as it may: ask again later"):
            late.result()
        running.result()
        patient.result()
        assert late.state == "failed" and pool.status().ended.timed_out == 1


def test_an_idle_pool_watches_the_deadlines_too(model: LoadedModel, steps: Steps) -> None:
    """A thread that sleeps while the only session is in use by another one."""
    with SessionPool(model, concurrency=2, memory_budget=session_bytes(model, (1, 12))) as pool:
        pool.submit(request_of(model))
        with pytest.raises(QueueTimeoutError):
            pool.submit(request_of(model), queue_timeout=0.01).result()
        steps.allow_all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency is 0: give 1 or more"),
        ({"memory_budget": -1}, "memory_budget is -1: give 0 or more"),
        ({"queue_limit": -1}, "queue_limit is -1: give 0 or more"),
        ({"queue_timeout": -0.5}, "queue_timeout is -0.5: give 0 or more"),
        ({"max_batch": 0}, "max_batch is 0: give 1 or more"),
    ],
)
def test_numbers_that_make_no_pool(model: LoadedModel, options: dict[str, Any], message: str) -> None:
    before = threading.active_count()
    with pytest.raises(InputError, match=message):
        SessionPool(model, **options)
    assert threading.active_count() == before


# Cancelling and failing


@pytest.mark.parametrize("at", [0, 1, 6, 11])
def test_a_request_is_cancelled_within_a_step(model: LoadedModel, steps: Steps, at: int) -> None:
    with SessionPool(model, concurrency=1) as pool:
        job = pool.submit(request_of(model, 1))
        steps.allow(at)
        until(lambda: len(steps.order) == at and (job.latest.step if job.latest else -1) == at - 1)
        job.cancel()
        steps.allow_all()
        with pytest.raises(RequestCancelledError, match=r"cancelled after \d+ of its steps"):
            job.result()
        assert at <= len(steps.order) <= at + 1 and job.state == "cancelled" and job.request is None
        assert pool.status().running == 0 and pool.status().idle_sessions == 1
        np.testing.assert_array_equal(pool.submit(request_of(model)).result().latent, alone(model, request_of(model)))
        job.cancel()  # too late, and without harm
        assert pool.status().ended.cancelled == 1


def test_a_waiting_request_is_cancelled_at_once(model: LoadedModel, steps: Steps) -> None:
    with SessionPool(model, concurrency=1) as pool:
        jobs = [pool.submit(request_of(model, seed)) for seed in range(3)]
        jobs[1].cancel()
        with pytest.raises(RequestCancelledError, match="cancelled before its turn"):
            jobs[1].result(timeout=0)
        assert pool.status().queued == 1
        steps.allow_all()
        np.testing.assert_array_equal(jobs[2].result().latent, alone(model, request_of(model, 2)))


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_a_failed_request_leaves_nothing(load: Load, layout: str) -> None:
    model = load("flux-tiny", layout)
    with SessionPool(model, concurrency=2) as pool:
        jobs = [pool.submit(diverging(request_of(model, seed), 3 + seed)) for seed in range(3)]
        good = pool.submit(request_of(model, 7))
        for job in jobs:
            with pytest.raises(NonFiniteError, match=r"prediction of denoising step \d+ holds NaN"):
                job.result()
            assert job.state == "failed" and job.request is None
        np.testing.assert_array_equal(good.result().latent, alone(model, request_of(model, 7)))
        np.testing.assert_array_equal(pool.submit(request_of(model)).result().latent, alone(model, request_of(model)))
        assert pool.status().ended.failed == 3 and pool.status().running == 0
        assert pool.status().sessions == pool.status().idle_sessions


def test_our_own_mistake_fails_its_request_alone_and_keeps_its_traceback(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionPool(model, concurrency=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(Session, "begin", lambda session, **arguments: 1 // 0)
            job = pool.submit(request_of(model))
            with pytest.raises(ZeroDivisionError) as caught:
                job.result()
        assert any(entry.name == "_start" for entry in caught.traceback)
        pool.submit(request_of(model)).result()


def test_memory_that_cannot_be_had_fails_the_request_and_the_next_one_works(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int) -> Any:
        raise MemoryError(f"{size} bytes")

    with SessionPool(model, concurrency=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("taylorseer.runtime.onnxruntime_memory._block", refuse)
            with pytest.raises(MemoryPlanError, match="could not be reserved on the CPU"):
                pool.submit(request_of(model)).result()
        assert pool.status().sessions == pool.status().used_bytes == 0
        pool.submit(request_of(model)).result()


def test_what_is_idle_makes_up_for_memory_that_others_took(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, failures = onnxruntime_memory._block, [MemoryError("taken")]

    def once(size: int) -> Any:
        if failures:
            raise failures.pop()
        return allocate(size)

    with SessionPool(model, concurrency=1) as pool:
        pool.submit(request_of(model, steps=9)).result()
        monkeypatch.setattr(onnxruntime_memory, "_block", once)
        pool.submit(request_of(model, steps=10)).result()
        assert not failures and pool.status().sessions == 1, "the idle one was closed"


# Closing


def test_closing_lets_everything_finish(model: LoadedModel) -> None:
    pool = SessionPool(model, concurrency=1)
    jobs = [pool.submit(request_of(model, seed)) for seed in range(3)]
    pool.close()
    assert [job.state for job in jobs] == ["finished"] * 3
    assert (pool.status().closing, pool.status().ready, pool.status().used_bytes) == (True, False, 0)
    with pytest.raises(PoolClosedError, match="closing or closed: send the request to another one"):
        pool.submit(request_of(model))
    pool.close()


@pytest.mark.parametrize("how", [{"drain": False}, {"timeout": 0.01}])
def test_closing_may_cancel(model: LoadedModel, steps: Steps, how: dict[str, Any]) -> None:
    pool = SessionPool(model, concurrency=1)
    jobs = [pool.submit(request_of(model, seed)) for seed in range(3)]
    steps.allow(2)
    until(lambda: len(steps.order) == 2)
    threading.Timer(0.2, steps.allow_all).start()
    pool.close(**how)
    with pytest.raises(RequestCancelledError):
        jobs[0].result(timeout=0)
    for job in jobs[1:]:
        with pytest.raises(PoolClosedError, match="closed before the request's turn"):
            job.result(timeout=0)
    assert pool.status().ended.cancelled == 3 and pool.status().used_bytes == 0


def test_a_failing_block_cancels(model: LoadedModel, steps: Steps) -> None:
    jobs: list[Job] = []
    with pytest.raises(ZeroDivisionError), SessionPool(model, concurrency=1) as pool:
        jobs.append(pool.submit(request_of(model)))
        threading.Timer(0.05, steps.allow_all).start()
        raise ZeroDivisionError
    assert jobs[0].state == "cancelled" and not any(thread.is_alive() for thread in pool._threads)


def test_closing_without_blocking_the_event_loop(model: LoadedModel) -> None:
    async def run() -> int:
        async with SessionPool(model, concurrency=1) as pool:
            jobs = [pool.submit(request_of(model, seed)) for seed in range(2)]
        assert [job.state for job in jobs] == ["finished"] * 2
        return pool.status().used_bytes

    assert asyncio.run(run()) == 0


def test_closing_frees_engines_and_state(bundles: Callable[..., Bundle]) -> None:
    pool = SessionPool.open(bundles("dit-tiny"), concurrency=1)
    pool.submit(request_of(pool._model)).result()
    model = weakref.ref(pool._model)
    pool.close()
    del pool
    gc.collect()
    assert model() is None


def test_a_forked_process_is_told_that_the_pool_is_not_its_own(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionPool(model) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(PoolClosedError, match="opened before this process was forked: open one"):
                pool.submit(request_of(model))
        pool.submit(request_of(model)).result()


def test_a_process_ends_though_nobody_closed_its_pool(bundles: Callable[..., Bundle]) -> None:
    program = f"""
from taylorseer.bundle import open_bundle
from taylorseer.runtime.generation import random_request
from taylorseer.runtime.pool import SessionPool
bundle = open_bundle({str(bundles("dit-tiny").folder)!r})
pool = SessionPool.open(bundle, concurrency=2)
jobs = [pool.submit(random_request(bundle.manifest, seed)) for seed in range(30)]
jobs[0].result()
print("ends")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")
