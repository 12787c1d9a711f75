"""Requests that go together are denoised in one batch, where that gives every one the image that it has alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import BackendError
from taylorseer.runtime.generation import random_request
from taylorseer.runtime.request import Request
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.session import LoadedModel, Result

__all__ = ["can_share_a_batch", "merged", "parted", "require_equal_in_batches"]


def can_share_a_batch(first: Request, second: Request) -> bool:
    """Whether two requests differ in noise, conditions and number of images alone, all of them in host memory."""
    return (
        _plain(first)
        and _plain(second)
        and first.cache == second.cache
        and first.guidance == second.guidance
        and first.every_step_full == second.every_step_full
        and _same_sampler(first.sampler, second.sampler)
    )


def _plain(request: Request) -> bool:
    return not request.on_device and all(
        isinstance(array, np.ndarray) for array in (request.latent, *request.conditions.values())
    )


def _same_sampler(first: Sampler, second: Sampler) -> bool:
    return first is second or (
        first.clip == second.clip
        and np.array_equal(first.timesteps, second.timesteps)
        and np.array_equal(first.updates, second.updates)
    )


def merged(requests: Sequence[Request], rows_per_image: int) -> Request:
    """Return one request for the images of all; the model's rows are the first of every image, then the second."""
    if len(requests) == 1:
        return requests[0]
    first = requests[0]
    conditions = {
        name: np.concatenate([part for row in range(rows_per_image) for part in _parts(requests, name, row)])
        for name in first.conditions
    }
    return Request(
        latent=np.concatenate([request.latent for request in requests]),
        conditions=conditions,
        sampler=first.sampler,
        cache=first.cache,
        guidance=first.guidance,
        every_step_full=first.every_step_full,
    )


def _parts(requests: Sequence[Request], name: str, row: int) -> list[NDArray[Any]]:
    parts = []
    for request in requests:
        images = len(request.latent)
        parts.append(request.conditions[name][row * images : (row + 1) * images])
    return parts


def parted(result: Result, images: Sequence[int]) -> list[Result]:
    """Return what belongs to each of the requests that had so many images."""
    if len(images) == 1:
        return [result]
    ends = np.cumsum(images)
    return [
        Result(result.latent[end - count : end].copy(), result.step_seconds, result.full_steps)
        for count, end in zip(images, ends, strict=True)
    ]


def require_equal_in_batches(model: LoadedModel, images: int) -> None:
    """Denoise random images alone and in every batch up to ``images``, and compare them bit by bit.

    One try tells: in which order numbers are added follows from the shapes, and not from the numbers.

    Raises:
        BackendError: an image is another one in a batch.
        ShapeError: the bundle serves smaller batches.
        MemoryPlanError: such a batch does not fit.
    """
    requests = [random_request(model.manifest, seed) for seed in range(images)]
    with model.session() as session:
        alone = [session.denoise(**request.arguments()).latent for request in requests]
    for count in range(2, images + 1):
        with model.session(count) as session:
            together = session.denoise(**merged(requests[:count], model.manifest.rows_per_image).arguments()).latent
        if not np.array_equal(together, np.concatenate(alone[:count])):
            raise BackendError(
                f"This backend makes other images in a batch of {count} than one by one: leave max_batch at 1."
            )
