"""Waiting for a request and following it: from threads and from coroutines, whose event loop is never blocked."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from taylorseer.errors import NonFiniteError, RequestCancelledError
from taylorseer.runtime.job import Job, Progress
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.session import LoadedModel
from tests.runtime.pools import Steps, alone, diverging, request_of

Load = Callable[..., LoadedModel]


@pytest.fixture
def model(load: Load) -> LoadedModel:
    return load("dit-tiny", "folded")


@pytest.fixture
def pool(model: LoadedModel) -> Iterator[SessionPool]:
    with SessionPool(model, concurrency=2) as pool:
        yield pool


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    held = Steps(monkeypatch, held=True)
    yield held
    held.allow_all()


# Threads


def test_waiting_for_so_long(model: LoadedModel, steps: Steps, pool: SessionPool) -> None:
    job = pool.submit(request_of(model))
    with pytest.raises(TimeoutError):
        job.result(timeout=0.01)
    assert (job.state, job.latest) == ("running", None)
    steps.allow_all()
    np.testing.assert_array_equal(job.result().latent, alone(model, request_of(model)))
    assert job.latest == Progress(11, 12, request_of(model).cache.schedule().is_full(11))
    assert job.request is None, "its arrays are not kept"


def test_many_threads_wait_for_one_request(model: LoadedModel, pool: SessionPool) -> None:
    job = pool.submit(request_of(model))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = [one.result() for one in [threads.submit(job.result) for _ in range(4)]]
    assert all(result is results[0] for result in results)


def test_the_end_is_told_once(model: LoadedModel, pool: SessionPool) -> None:
    ends: list[str] = []
    job = pool.submit(request_of(model))
    job.add_done_callback(lambda job: ends.append(job.state))
    job.result()
    job.add_done_callback(lambda job: ends.append(f"{job.state} before"))
    pool.close()
    assert ends == ["finished", "finished before"]


def test_an_error_of_the_user_keeps_no_frames(model: LoadedModel, pool: SessionPool) -> None:
    """They would keep the state of the request for as long as somebody keeps the job."""
    job = pool.submit(diverging(request_of(model), 3))
    with pytest.raises(NonFiniteError) as caught:
        job.result()
    assert not any("round_robin" in str(entry.path) for entry in caught.traceback)


# Coroutines


def test_every_step_is_told_in_turn(model: LoadedModel, pool: SessionPool) -> None:
    schedule = request_of(model).cache.schedule()
    expected = [Progress(step, 12, schedule.is_full(step)) for step in range(12)]

    async def follow(job: Job) -> list[Progress]:
        return [progress async for progress in job]

    async def run() -> None:
        job = pool.submit(request_of(model))
        assert list(await asyncio.gather(follow(job), follow(job))) == [expected, expected]
        assert await follow(job) == expected, "those before the call as well"
        np.testing.assert_array_equal((await job).latent, alone(model, request_of(model)))

    asyncio.run(run())


def test_progress_arrives_while_the_loop_runs(model: LoadedModel, steps: Steps, pool: SessionPool) -> None:
    async def run() -> None:
        job = pool.submit(request_of(model))
        seen = []
        steps.allow(1)
        async for progress in job:
            seen.append(progress.step)
            assert job.latest is not None and job.latest.step <= len(seen)
            steps.allow(1)
        assert seen == list(range(12))

    asyncio.run(run())


def test_the_event_loop_goes_on_meanwhile(model: LoadedModel, steps: Steps, pool: SessionPool) -> None:
    """Steps are allowed by the event loop itself: had it been blocked, none would happen."""

    async def allow() -> None:
        for _ in range(13):
            await asyncio.sleep(0)
            steps.allow(1)

    async def run() -> None:
        job = pool.submit(request_of(model))
        result, _ = await asyncio.gather(job, allow())
        assert np.isfinite(result.latent).all()

    asyncio.run(run())


def test_a_request_that_fails_ends_both_ways_of_waiting(model: LoadedModel, pool: SessionPool) -> None:
    async def run() -> None:
        job = pool.submit(diverging(request_of(model), 3))
        with pytest.raises(NonFiniteError):
            async for progress in job:
                assert progress.step < 7
        with pytest.raises(NonFiniteError):
            await job

    asyncio.run(run())


def test_cancelling_the_wait_cancels_the_request(model: LoadedModel, steps: Steps, pool: SessionPool) -> None:
    async def run() -> None:
        job = pool.submit(request_of(model))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job, 0.01)
        steps.allow_all()
        with pytest.raises(RequestCancelledError):
            await job

    asyncio.run(run())


def test_a_shielded_request_goes_on(model: LoadedModel, steps: Steps, pool: SessionPool) -> None:
    async def run() -> None:
        job = pool.submit(request_of(model))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(job), 0.01)
        steps.allow_all()
        await job

    asyncio.run(run())


def test_who_looks_away_cancels_nothing(model: LoadedModel, pool: SessionPool) -> None:
    async def run() -> None:
        job = pool.submit(request_of(model))
        async for _ in job:
            break
        await job
        assert job.state == "finished"

    asyncio.run(run())


def test_an_event_loop_that_is_gone_stops_nobody(model: LoadedModel, steps: Steps, pool: SessionPool) -> None:
    jobs: list[Job] = []
    loop = asyncio.new_event_loop()

    async def look() -> None:
        jobs.append(pool.submit(request_of(model)))
        steps.allow(1)
        iterator = jobs[0].__aiter__()
        await anext(iterator)
        kept.append(iterator)

    kept: list[object] = []
    loop.run_until_complete(look())
    loop.close()
    steps.allow_all()
    assert np.isfinite(jobs[0].result().latent).all()


def test_jobs_of_several_event_loops(model: LoadedModel, pool: SessionPool) -> None:
    counts: list[int] = []

    async def run(seed: int) -> None:
        job = pool.submit(request_of(model, seed))
        counts.append(len([progress async for progress in job]))

    threads = [threading.Thread(target=lambda seed=seed: asyncio.run(run(seed))) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [12] * 3
