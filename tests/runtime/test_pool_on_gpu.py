"""Pools on a GPU: one thread takes the requests in turn, the device stays busy, and a lost one is never used again."""

import contextlib
from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.errors import DeviceError, MemoryPlanError, RequestCancelledError
from taylorseer.runtime.footprint import BESIDE_BYTES, LATER_BESIDE_BYTES, later_footprint
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.session import LoadedModel
from tests.runtime.gpu import Gpu, NullGpu
from tests.runtime.null_device import INVALID, LOST, OUT_OF_MEMORY
from tests.runtime.pools import Steps, alone, request_of

Load = Callable[..., LoadedModel]


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_every_image_is_the_one_of_its_request_alone(gpu: Gpu, layout: str) -> None:
    model = gpu.load("dit-tiny", layout)
    requests = [request_of(model, seed, steps=9 + seed % 2, order=seed % 3) for seed in range(6)]
    expected = [alone(model, request) for request in requests]
    with SessionPool(model, concurrency=3) as pool:
        for job, latent in zip([pool.submit(request) for request in requests], expected, strict=True):
            np.testing.assert_array_equal(job.result().latent, latent)


def test_requests_take_turns_step_by_step(null_gpu: NullGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, held=True)
    with SessionPool(null_gpu.load("dit-tiny"), concurrency=3) as pool:
        jobs = [pool.submit(request_of(pool._model, seed)) for seed in range(3)]
        steps.allow_all()
        for job in jobs:
            job.result()
    assert steps.most_at_once == 1, "one thread"
    begun = steps.order.index(2)
    together = steps.order[begun : begun + 30]  # until the first ends
    assert all(set(three) == {0, 1, 2} for three in zip(together, together[1:], together[2:]))  # noqa: B905


def test_the_device_has_the_next_step_while_it_is_at_one(null_gpu: NullGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    with SessionPool(null_gpu.load("dit-tiny"), concurrency=1) as pool:
        pool.submit(request_of(pool._model)).result()
        null_gpu.device.lazy = True
        with null_gpu.device.counting() as counter:
            pool.submit(request_of(pool._model)).result()
        marks = [name for name in null_gpu.device.calls if name in ("cudaEventRecord", "cudaEventSynchronize")][-26:]
    assert marks[:5] == ["cudaEventRecord"] * 3 + ["cudaEventSynchronize", "cudaEventRecord"]
    ahead = [sum(1 if name == "cudaEventRecord" else -1 for name in marks[:end]) for end in range(3, 25)]
    assert max(ahead) == 3 and min(ahead) >= 2, "two steps enqueued at most, and the loop's first mark"
    assert counter["cudaEventSynchronize"] == 12 + 1, "once for each step, and for the times"


def test_progress_is_what_the_device_has_done(null_gpu: NullGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, held=True)
    null_gpu.device.lazy = True
    with SessionPool(null_gpu.load("dit-tiny"), concurrency=1) as pool:
        job = pool.submit(request_of(pool._model))
        steps.allow(3)
        while len(steps.order) < 3:
            pass
        assert job.latest is None or job.latest.step <= 1
        steps.allow_all()
        job.result()
        assert job.latest is not None and job.latest.step == 11


def test_a_cancelled_request_frees_its_turn(null_gpu: NullGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, held=True)
    with SessionPool(null_gpu.load("dit-tiny"), concurrency=2) as pool:
        jobs = [pool.submit(request_of(pool._model, seed)) for seed in range(2)]
        steps.allow(6)
        while len(steps.order) < 6:
            pass
        jobs[0].cancel()
        steps.allow_all()
        with pytest.raises(RequestCancelledError):
            jobs[0].result()
        latent = jobs[1].result().latent
        assert steps.order.count(0) <= 5
        np.testing.assert_array_equal(latent, alone(pool._model, request_of(pool._model, 1)))


# Memory


def test_memory_is_counted_as_it_is_used(null_gpu: NullGpu) -> None:
    model = null_gpu.load("dit-tiny")
    with SessionPool(model, concurrency=2) as pool:
        assert pool.status().budget_bytes == null_gpu.device.total_bytes - BESIDE_BYTES + LATER_BESIDE_BYTES
        for steps in (9, 10, 11):
            pool.submit(request_of(model, steps=steps)).result()
        plans = [model.session(steps=steps) for steps in (9, 10, 11)]
        planned = [session.memory_plan.total_bytes for session in plans]
        assert null_gpu.device.used_bytes == 2 * sum(planned)
        for session in plans:
            session.close()
        assert pool.status().used_bytes == sum(later_footprint(size) for size in planned)
        pool.trim()
        assert null_gpu.device.used_bytes == pool.status().used_bytes == 0


ALLOCATING = (
    "cudaMalloc",
    "cudaHostAlloc",
    "cudaStreamCreateWithFlags",
    "cudaEventCreate",
    "cudaStreamBeginCapture",
    "cudaGraphInstantiate",
)


def test_every_failing_allocation_leaves_no_leak_and_the_next_request_works(null_gpu: NullGpu) -> None:
    model, device = null_gpu.load("dit-tiny"), null_gpu.device
    requests = [request_of(model, seed, steps=9) for seed in range(2)]
    expected = alone(model, requests[1])
    with SessionPool(model, concurrency=2) as pool:
        with device.counting() as counter:
            pool.submit(requests[0]).result()
            pool.trim()
        counts = {name: counter[name] for name in ALLOCATING}
        assert counts["cudaMalloc"] == 1 and counts["cudaEventCreate"] == 10 and all(counts.values())
        for name, count in counts.items():
            for nth in range(1, count + 1):
                device.fail(OUT_OF_MEMORY, name, nth=nth)
                with pytest.raises(MemoryPlanError, match=f"no memory left \\({name}\\)"):
                    pool.submit(requests[0]).result()
                assert (name, nth, device.used_bytes, pool.status().used_bytes) == (name, nth, 0, 0)
            assert (name, device.leaks()) == (name, {})
            np.testing.assert_array_equal(pool.submit(requests[1]).result().latent, expected)
            pool.trim()
    assert device.misuses == []


def test_wherever_a_request_fails_nothing_leaks(null_gpu: NullGpu) -> None:
    """Every 7th call of CUDA, from opening the session to the latent: 7 divides no number of calls of a step."""
    model, device = null_gpu.load("dit-tiny"), null_gpu.device
    request = request_of(model, steps=9)
    expected = alone(model, request)
    with SessionPool(model, concurrency=1) as pool:
        with device.counting() as counter:
            pool.submit(request).result()
        pool.trim()
        for nth in range(1, counter.total(), 7):
            device.fail(INVALID, nth=nth)
            with contextlib.suppress(DeviceError):
                pool.submit(request).result()
            pool.trim()
            assert (nth, device.used_bytes, pool.status().used_bytes) == (nth, 0, 0)
        assert device.leaks() == {}
        device._planned.clear()
        np.testing.assert_array_equal(pool.submit(request).result().latent, expected)
    assert device.misuses == []


# A lost device


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaGraphLaunch", "cudaEventSynchronize"])
def test_a_lost_device_refuses_everything(null_gpu: NullGpu, function: str) -> None:
    model = null_gpu.load("dit-tiny")
    requests = [request_of(model, seed) for seed in range(4)]
    pool = SessionPool(model, concurrency=2)
    null_gpu.device.fail(LOST, function, nth=2)
    jobs = [pool.submit(request) for request in requests]
    for job in jobs:
        with pytest.raises(DeviceError, match=r"GPU (is|was) lost"):
            job.result()
    status = pool.status()
    assert status.lost is not None and "cudaErrorIllegalAddress" in status.lost and not status.ready
    assert (status.running, status.queued, status.used_bytes) == (0, 0, 0)
    assert status.ended.failed == 4
    with null_gpu.device.counting() as counter:
        with pytest.raises(DeviceError, match=f"GPU was lost, and no request is served here any more: {function}"):
            pool.submit(requests[0])
        pool.close()
    assert not counter, "nothing is touched again"


def test_calls_are_made_by_one_thread(null_gpu: NullGpu) -> None:
    """CUDA keeps the current device for each thread, so the pool's chooses it."""
    model = null_gpu.load("dit-tiny")
    with SessionPool(model, concurrency=4) as pool:
        assert len(pool._threads) == 1
        with null_gpu.device.counting() as counter:
            for job in [pool.submit(request_of(model, seed)) for seed in range(2)]:
                job.result()
        assert counter["cudaSetDevice"] >= 2 * 12
    assert null_gpu.device.misuses == []
