"""Requests in one batch: only what goes together, the same images bit by bit, and nobody pays for another's mistake."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from taylorseer.errors import BackendError, NonFiniteError, RequestCancelledError
from taylorseer.runtime import batching
from taylorseer.runtime.batching import can_share_a_batch, merged, parted, require_equal_in_batches
from taylorseer.runtime.denoising import Result
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.session import LoadedModel
from tests.runtime.pools import Steps, alone, diverging, request_of

Load = Callable[..., LoadedModel]


@pytest.fixture
def model(load: Load) -> LoadedModel:
    return load("dit-tiny", "folded")  # its images are two rows of the model: conditional ones first


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    held = Steps(monkeypatch, held=True)
    yield held
    held.allow_all()


def test_the_rows_of_a_batch_are_conditional_ones_first(model: LoadedModel) -> None:
    requests = [request_of(model, seed, conditions={"class_labels": np.array([seed, 10 + seed])}) for seed in range(3)]
    pair = merged(requests[:2], 2)
    assert pair.conditions["class_labels"].tolist() == [0, 1, 10, 11] and pair.shape.batch == 2
    three = merged([pair, requests[2]], 2)
    assert three.conditions["class_labels"].tolist() == [0, 1, 2, 10, 11, 12]
    np.testing.assert_array_equal(three.latent, np.concatenate([request.latent for request in requests]))
    assert merged(requests[:1], 2) is requests[0]


def test_every_request_gets_its_own_images() -> None:
    latent = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = Result(latent, np.ones(2), np.ones(2, np.bool_))
    parts = parted(whole, [1, 2, 1])
    assert [part.latent.tolist() for part in parts] == [latent[:1].tolist(), latent[1:3].tolist(), latent[3:].tolist()]
    assert not any(np.shares_memory(part.latent, latent) for part in parts)


@pytest.mark.parametrize(
    "changes", [{"steps": 13}, {"order": 1}, {"guidance": 2.0}, {"every_step_full": True}, {"on_device": True}], ids=str
)
def test_requests_that_do_not_go_together(model: LoadedModel, changes: dict[str, Any]) -> None:
    assert can_share_a_batch(request_of(model, 0), request_of(model, 1))
    assert not can_share_a_batch(request_of(model, 0), request_of(model, 1, **changes))
    assert not can_share_a_batch(request_of(model, 0), diverging(request_of(model, 1), 3))


def test_who_waits_shares_a_batch(model: LoadedModel, steps: Steps) -> None:
    steps.allow_all()
    requests = [request_of(model, seed, order=2 if seed < 5 else 1) for seed in range(7)]
    with SessionPool(model, concurrency=1, max_batch=3) as pool:
        steps.order.clear()
        jobs = [pool.submit(request) for request in requests]
        for job, request in zip(jobs, requests, strict=True):
            np.testing.assert_array_equal(job.result().latent, alone(model, request))
        assert len(steps.order) < 7 * 13, "fewer loops than requests"
        assert pool.status().ended.finished == 7


def test_one_of_a_batch_is_cancelled(model: LoadedModel, steps: Steps) -> None:
    with SessionPool(model, concurrency=1) as pool:
        pool._work._images = 3  # without the comparison, which would take steps
        first, *jobs = [pool.submit(request_of(model, seed)) for seed in range(4)]
        steps.allow(13 + 4)  # the first has begun by itself
        first.result()
        jobs[1].cancel()
        steps.allow_all()
        with pytest.raises(RequestCancelledError):
            jobs[1].result()
        for seed in (1, 3):
            latent = jobs[seed - 1].result().latent
            np.testing.assert_array_equal(latent, alone(model, request_of(model, seed)))


def test_a_batch_that_fails_is_done_again_one_by_one(model: LoadedModel, steps: Steps) -> None:
    """NaN in one request's prediction says nothing of whose it was."""
    bad = request_of(model, 1)
    huge = dataclasses.replace(bad, latent=np.full_like(bad.latent, 3e38))
    with SessionPool(model, concurrency=1) as pool:
        pool._work._images = 3
        jobs = [
            pool.submit(request) for request in (request_of(model, 0), request_of(model, 2), huge, request_of(model, 3))
        ]
        steps.allow_all()
        with pytest.raises(NonFiniteError):
            jobs[2].result()
        for job, seed in zip((jobs[0], jobs[1], jobs[3]), (0, 2, 3), strict=True):
            np.testing.assert_array_equal(job.result().latent, alone(model, request_of(model, seed)))
        assert (pool.status().ended.failed, pool.status().ended.finished) == (1, 3)


def test_a_backend_whose_batches_differ_is_refused(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    require_equal_in_batches(model, 2)
    monkeypatch.setattr(batching, "merged", lambda requests, rows: merged(requests[::-1], rows))
    with pytest.raises(BackendError, match="makes other images in a batch of 2 than one by one: leave max_batch at 1"):
        SessionPool(model, max_batch=2)
