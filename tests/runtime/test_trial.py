"""The judge of schedules: how close two results are, and when a gain is clear."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.generation import Generated, Generator
from taylorseer.runtime.trial import Candidate, closeness_db


@pytest.fixture(scope="module")
def made(bundles: Callable[..., Bundle]) -> Generated:
    with Generator(bundles("dit-tiny"), threads=1) as generator:
        return generator.generate("1", seed=0, cache=CacheConfig(steps=9, interval=3))


def test_a_gain_within_its_error_is_not_clear() -> None:
    first, second, third = (
        Candidate("", CacheConfig(), close) for close in ((30.0, 31.0, 32.0), (31.0, 31.5, 33.0), (40.0, 20.0, 35.0))
    )
    assert second.is_clearly_better_than(first) and not first.is_clearly_better_than(second)
    assert third.mean > first.mean and not third.is_clearly_better_than(first)
    assert not first.is_clearly_better_than(first)
    assert (first.mean, first.median) == (31.0, 31.0)


def test_closeness_without_a_decoder_is_of_latents(made: Generated) -> None:
    assert closeness_db(made, made) == 100.0
    first = dataclasses.replace(made, image=None, latent=np.array([[0.0, 2.0]], np.float32))
    second = dataclasses.replace(made, image=None, latent=np.array([[0.0, 1.0]], np.float32))
    assert closeness_db(first, second) == pytest.approx(10 * math.log10(8))
    assert closeness_db(first, first) == 100.0


def test_closeness_of_clips_is_over_all_frames(made: Generated) -> None:

    def clip(value: int) -> Generated:
        image = np.zeros((2, 4, 4, 3), np.uint8)
        image[1] = value
        return dataclasses.replace(made, image=image)

    assert closeness_db(clip(0), clip(10)) == pytest.approx(10 * math.log10(255**2 / 50))
