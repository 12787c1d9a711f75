"""From prompts to images: encodes the request, runs a session, decodes the latent."""

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.manifest import Manifest
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.prompt_requests import Conditions, PromptRequests, latent_shape, sampler_of
from taylorseer.runtime.request import Request
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.session import LoadedModel, Result, Session

__all__ = ["Generated", "Generator", "random_conditions", "random_request", "sampler_for", "sampler_of"]


@dataclasses.dataclass(frozen=True)
class Generated:
    """One image (or clip) and how it was made."""

    latent: NDArray[np.float32]
    """float32 [1, ...]: what the loop ended with."""
    image: NDArray[np.uint8] | None
    """uint8 [height, width, 3], or [frames, height, width, 3] for clips; None when the latent needs a decoder."""
    result: Result


class Generator:
    """A loaded bundle with one session, for one image at a time."""

    def __init__(self, bundle: Bundle, *, threads: int = 0, device: int = 0) -> None:
        """Load the engines and reserve all memory of the session.

        Args:
            bundle: a checked bundle.
            threads: ONNX Runtime: threads per operator; 0 lets it choose.
            device: TensorRT: the GPU's number.

        Raises:
            BackendError: the engines cannot be loaded here.
            BundleError: the bundle's word table is missing or malformed, or the names of its classes are.
        """
        self.manifest = bundle.manifest
        self._prompts = PromptRequests(bundle)
        self._model = LoadedModel(self.manifest, open_backend(bundle, threads=threads, device=device))
        self.session: Session = self._model.session()

    def generate(
        self,
        prompt: str | Conditions,
        *,
        seed: int,
        cache: CacheConfig | None = None,
        guidance: float | None = None,
        every_step_full: bool = False,
        on_step: Callable[[int, bool], None] | None = None,
    ) -> Generated:
        """Make one image.

        Args:
            prompt: words of the bundle's table, a class by number or by name for class-conditional models, or the
                condition inputs themselves by name, the model's batch first.
            seed: of the initial noise.
            cache: when and how to forecast; None: the bundle's default.
            guidance: None: the bundle's default.
            every_step_full: run without forecasts.
            on_step: called after each denoising step with its index and whether it was full.

        Raises:
            PromptError: a prompt that is too long, has unknown words, or is not what this model takes.
            InputError: anything else in the request that does not fit the bundle.
        """
        request = self._prompts.request(
            prompt, seed=seed, cache=cache, guidance=guidance, every_step_full=every_step_full
        )
        self._make_room(request.shape.steps)
        result = self.session.denoise(**request.arguments(), on_step=on_step)
        images = self._prompts.images(result.latent)
        return Generated(result.latent, None if images is None else images[0], result)

    def __enter__(self) -> Self:
        """Return the generator itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the session's memory."""
        self.session.close()

    def _make_room(self, steps: int) -> None:
        """Open a larger session for a request of more steps than this one was planned for."""
        planned = self.session.memory_plan.steps
        if steps > planned:
            self.session.close()
            try:
                self.session = self._model.session(steps=steps)
            except BaseException:
                self.session = self._model.session(steps=planned)
                raise

    def conditions(self, prompt: str) -> dict[str, NDArray[Any]]:
        """Return the condition inputs for ``prompt``, by name.

        Raises:
            PromptError: the model does not take such prompts, or not this one.
        """
        return self._prompts.conditions(prompt)


def sampler_for(session: Session, steps: int) -> Sampler:
    """Return the noise scheduler of the session's model for ``steps`` denoising steps."""
    return sampler_of(session.manifest, steps)


def random_request(manifest: Manifest, seed: int, *, cache: CacheConfig | None = None) -> Request:
    """Return a request for one image of random noise and conditions; ``cache``: None: the bundle's default."""
    cache = cache or CacheConfig.from_json(manifest.cache)
    sampler = sampler_of(manifest, cache.steps)
    return Request(
        latent=initial_noise(latent_shape(manifest), seed) * np.float32(sampler.initial_noise_scale),
        conditions=random_conditions(manifest, seed),
        sampler=sampler,
        cache=cache,
        guidance=manifest.pipeline.guidance,
    )


def random_conditions(manifest: Manifest, seed: int) -> dict[str, NDArray[Any]]:
    """Return conditions for checking models without prompts.

    Normal numbers; for classes a different one in each row; for masks a text that ends before the last token.
    """
    random = np.random.default_rng(seed)
    rows = manifest.rows_per_image
    made = {}
    for name, spec in manifest.conditions.items():
        shape = [rows, *(int(size) for size in spec.shape[1:])]
        floating = spec.dtype != "int64"
        made[name] = random.standard_normal(shape, np.float32) if floating else _integers(shape)
    return made


def _integers(shape: list[int]) -> NDArray[np.int64]:
    if len(shape) == 1:
        return np.arange(shape[0], dtype=np.int64)
    mask = np.ones(shape, np.int64)
    mask[:, -1] = 0
    return mask
