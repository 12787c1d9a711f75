"""The campaign of requests in its short form, and that it would notice."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.runtime.step_plan import BuiltState, plan_steps
from tools.stress_catalogue import catalogue, fresh_digest, references
from tools.stress_requests import LARGEST_SLOPE, run, slope

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def bundle(bundles: Callable[..., Bundle]) -> Bundle:
    return bundles("dit-tiny", "folded")


def checks(found: dict[str, Any]) -> dict[str, bool]:
    """All but that of memory, which has not settled after so few requests."""
    return {name: passed for name, passed in found["checks"].items() if "bytes a request" not in name}


def test_the_campaign_in_short(bundle: Bundle) -> None:
    requests = catalogue(bundle.manifest, 4, 0)
    expected = [fresh_digest(bundle, request) for request in requests]
    found: dict[str, Any] = run(bundle, requests, expected, count=60, clients=4, seed=0)
    assert len(checks(found)) == 6 and all(checks(found).values()), found
    assert found["ended"].keys() >= {"finished", "cancel", "fail"} and found["cancelled_in_midst"] > 0


def test_a_wrong_image_is_noticed(bundle: Bundle) -> None:
    requests = catalogue(bundle.manifest, 1, 0)
    found: dict[str, Any] = run(bundle, requests, ["0" * 64], count=8, clients=2, seed=0)
    assert [name for name, passed in checks(found).items() if not passed] == ["every image is that of a fresh process"]


def test_a_process_of_its_own_makes_the_same_image(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (request,) = catalogue(bundle.manifest, 1, 5)
    assert references(bundle.folder, 1, 5) == [fresh_digest(bundle, request)]


def test_the_catalogue_is_mixed_and_the_same_every_time(bundle: Bundle) -> None:
    first, second = (catalogue(bundle.manifest, 40, 7) for _ in range(2))
    assert all(np.array_equal(a.latent, b.latent) and a.cache == b.cache for a, b in zip(first, second, strict=True))
    assert {request.cache.order for request in first} == {0, 1, 2}
    assert {request.shape.batch for request in first} == {1, 2, 3}
    assert len({request.shape.steps for request in first}) > 10 and len({request.cache for request in first}) > 30
    for request in first:
        plan_steps(request.cache, BuiltState.of_bundle(bundle.manifest))


@pytest.mark.parametrize("growth", [0, 500, 5000])
def test_memory_that_grows_is_seen_through_a_single_step_up(growth: int) -> None:
    memory = [(done, 10**8 + growth * done + (2 * 10**6 if done > 700 else 0)) for done in range(0, 1000, 20)]
    assert slope(memory) == pytest.approx(growth, abs=LARGEST_SLOPE) and slope(memory[:1]) == 0
