"""Prompts become requests, latents become pixels; what the generator makes, a pool makes."""

from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.errors import InputError, PromptError
from taylorseer.runtime.generation import Generator
from taylorseer.runtime.pool import SessionPool
from taylorseer.runtime.prompt_requests import PromptRequests
from tests.runtime.pools import SHORT


def test_a_pool_makes_what_the_generator_makes(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("flux-emoji", "folded")
    prompts = PromptRequests(bundle)
    with Generator(bundle, threads=1) as generator, SessionPool.open(bundle, concurrency=1) as pool:
        expected = generator.generate("red heart", seed=3, cache=SHORT)
        result = pool.submit(prompts.request("red heart", seed=3, cache=SHORT)).result()
    np.testing.assert_array_equal(result.latent, expected.latent)
    images = prompts.images(np.concatenate([result.latent, -result.latent]))
    assert images is not None and images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], expected.image)
    assert (images[1] != images[0]).any()


def test_prompts_that_a_model_does_not_take(bundles: Callable[..., Bundle]) -> None:
    prompts = PromptRequests(bundles("dit-tiny"))
    with pytest.raises(InputError, match="negative"):
        prompts.request("3", seed=-1)
    with pytest.raises(PromptError):
        prompts.request("no such class", seed=0)
    request = prompts.request("3", seed=0)
    assert request.conditions["class_labels"].shape == (2,) and request.shape.batch == 1
