"""Between prompts and pools: a prompt and a seed become a request, a latent becomes pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.request import Request

__all__ = ["PromptRequests"]


class PromptRequests:
    """What a bundle knows of prompts; it loads no engine and has no state, so any thread may use it."""

    def __init__(self, bundle: Bundle) -> None:
        """Read the bundle's word table or the names of its classes.

        Raises:
            BundleError: they are missing or malformed.
        """
        raise NotImplementedError

    def request(
        self,
        prompt: str | Mapping[str, NDArray[Any]],
        *,
        seed: int,
        cache: CacheConfig | None = None,
        guidance: float | None = None,
        every_step_full: bool = False,
    ) -> Request:
        """Return the request for one image; arguments as in :meth:`~taylorseer.runtime.generation.Generator.generate`.

        Raises:
            PromptError: a prompt that is too long, has unknown words, or is not what this model takes.
            InputError: anything else that does not fit the bundle.
        """
        raise NotImplementedError

    def images(self, latent: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """Return uint8 [images, height, width, 3], or [images, frames, height, width, 3] for clips.

        None when the latent needs a decoder of its own.
        """
        raise NotImplementedError
