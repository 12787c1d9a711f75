"""Between prompts and pools: a prompt and a seed become a request, a latent becomes pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, PromptError
from taylorseer.manifest import Manifest
from taylorseer.runtime.classes import CLASSES_FILE, Classes
from taylorseer.runtime.latents import initial_noise, to_pixels, unpack
from taylorseer.runtime.request import Request
from taylorseer.runtime.samplers import Sampler, sampler_from_config
from taylorseer.runtime.words import WordTable

__all__ = ["Conditions", "PromptRequests", "latent_shape", "sampler_of"]

Conditions = Mapping[str, NDArray[Any]]
"""The model's condition inputs by name, the model's batch first."""


class PromptRequests:
    """What a bundle knows of prompts; it loads no engine and keeps nothing of a request, so any thread may use it."""

    def __init__(self, bundle: Bundle) -> None:
        """Read the bundle's word table or the names of its classes.

        Raises:
            BundleError: they are missing or malformed.
        """
        self.manifest = bundle.manifest
        self._words = WordTable.load(bundle.path("words")) if self.manifest.pipeline.text == "words" else None
        self._classes = _classes_of(bundle) if set(self.manifest.conditions) == {"class_labels"} else None

    def request(
        self,
        prompt: str | Conditions,
        *,
        seed: int,
        cache: CacheConfig | None = None,
        guidance: float | None = None,
        every_step_full: bool = False,
    ) -> Request:
        """Return the request for one image.

        Args:
            prompt: words of the bundle's table, a class by number or by name for class-conditional models, or the
                condition inputs themselves by name, the model's batch first.
            seed: of the initial noise.
            cache: when and how to forecast; None: the bundle's default.
            guidance: None: the bundle's default.
            every_step_full: run without forecasts.

        Raises:
            PromptError: a prompt that is too long, has unknown words, or is not what this model takes.
            InputError: anything else in the request that does not fit the bundle.
        """
        cache = cache or CacheConfig.from_json(self.manifest.cache)
        pipeline = self.manifest.pipeline
        if guidance is not None and pipeline.guidance_mode == "none":
            raise InputError(f"{self.manifest.model} knows no guidance: leave it out.")
        sampler = sampler_of(self.manifest, cache.steps)
        noise = initial_noise(latent_shape(self.manifest), seed)
        if sampler.initial_noise_scale != 1.0:
            noise *= np.float32(sampler.initial_noise_scale)
        return Request(
            latent=noise,
            conditions=prompt if isinstance(prompt, Mapping) else self.conditions(prompt),
            sampler=sampler,
            cache=cache,
            guidance=pipeline.guidance if guidance is None else guidance,
            every_step_full=every_step_full,
        )

    def conditions(self, prompt: str) -> dict[str, NDArray[Any]]:
        """Return the condition inputs for ``prompt``, by name.

        Raises:
            PromptError: the model does not take such prompts, or not this one.
        """
        specs = self.manifest.conditions
        if self._words is not None:
            return self._encode(self._words, prompt)
        if self._classes is not None:
            # The unconditional half is asked with the null class, which is the one after the last.
            return {"class_labels": np.array([self._classes.label(prompt), self._classes.count], np.int64)}
        raise PromptError(
            f"{self.manifest.model} has no text encoder of its own: give the inputs {', '.join(specs)} as an .npz file "
            "(--conditions)."
        )

    def _encode(self, words: WordTable, prompt: str) -> dict[str, NDArray[Any]]:
        """Return what the model reads of a prompt; the mask only if it has one."""
        length = self.manifest.sizes["text_length"]
        hidden, pooled = words.encode([prompt], length)
        made: dict[str, NDArray[Any]] = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
        if "encoder_attention_mask" in self.manifest.conditions:
            made["encoder_attention_mask"] = words.attention_mask([prompt], length)
        return made

    def images(self, latent: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """Return uint8 [images, height, width, 3], or [images, frames, height, width, 3] for clips.

        None when the latent needs a decoder of its own.
        """
        pipeline, sizes = self.manifest.pipeline, self.manifest.sizes
        if pipeline.decoder == "none":
            return None
        if pipeline.latent == "packed":
            latent = unpack(latent, sizes["height"], sizes["width"])
        if latent.ndim == 5:
            return np.stack([to_pixels(np.ascontiguousarray(clip.transpose(1, 0, 2, 3))) for clip in latent])
        return to_pixels(latent)


def _classes_of(bundle: Bundle) -> Classes:
    manifest, count = bundle.manifest, int(bundle.manifest.config["num_embeds_ada_norm"])
    if CLASSES_FILE in manifest.files:
        return Classes.load(bundle.path(CLASSES_FILE), model=manifest.model, count=count)
    return Classes(model=manifest.model, count=count)


def sampler_of(manifest: Manifest, steps: int) -> Sampler:
    """Return the noise scheduler of a bundle's model for ``steps`` denoising steps."""
    pipeline = manifest.pipeline
    (latent,) = (spec for spec in manifest.graphs["full"].inputs if spec.role == "latent")
    tokens = int(latent.shape[1]) if pipeline.latent == "packed" else None
    return sampler_from_config(pipeline.scheduler, steps, tokens=tokens)


def latent_shape(manifest: Manifest) -> tuple[int, ...]:
    """Return the shape of the latent of one image."""
    (latent,) = (spec for spec in manifest.graphs["full"].inputs if spec.role == "latent")
    return (1, *(int(size) for size in latent.shape[1:]))
