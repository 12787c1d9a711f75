"""From prompts to images: encodes the request, runs a session, decodes the latent."""

import dataclasses
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import BundleError, InputError, PromptError
from taylorseer.manifest import Manifest
from taylorseer.runtime.classes import CLASSES_FILE, Classes
from taylorseer.runtime.latents import initial_noise, to_pixels, unpack
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.samplers import Sampler, sampler_from_config
from taylorseer.runtime.session import LoadedModel, Result, Session
from taylorseer.runtime.words import WORD_FILES, WordTable

__all__ = ["Generated", "Generator", "random_conditions", "sampler_for", "sampler_of"]

Conditions = Mapping[str, NDArray[Any]]


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
        self._words = _words_of(bundle) if self.manifest.pipeline.text == "words" else None
        self._classes = _classes_of(bundle) if set(self.manifest.conditions) == {"class_labels"} else None
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
        cache = cache or CacheConfig.from_json(self.manifest.cache)
        pipeline = self.manifest.pipeline
        if guidance is not None and pipeline.guidance_mode == "none":
            raise InputError(f"{self.manifest.model} knows no guidance: leave it out.")
        sampler = sampler_of(self.manifest, cache.steps)
        self._make_room(cache.steps)
        noise = initial_noise(self.session.latent_shape, seed)
        if sampler.initial_noise_scale != 1.0:
            noise *= np.float32(sampler.initial_noise_scale)
        result = self.session.denoise(
            noise,
            prompt if isinstance(prompt, Mapping) else self.conditions(prompt),
            sampler=sampler,
            cache=cache,
            guidance=pipeline.guidance if guidance is None else guidance,
            every_step_full=every_step_full,
            on_step=on_step,
        )
        return Generated(result.latent, self._decode(result.latent), result)

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

    def _decode(self, latent: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        pipeline, sizes = self.manifest.pipeline, self.manifest.sizes
        if pipeline.decoder == "none":
            return None
        if pipeline.latent == "packed":
            latent = unpack(latent, sizes["height"], sizes["width"])
        if latent.ndim == 5:
            return to_pixels(np.ascontiguousarray(latent[0].transpose(1, 0, 2, 3)))
        image: NDArray[np.uint8] = to_pixels(latent)[0]
        return image


def _words_of(bundle: Bundle) -> WordTable:
    paths = [bundle.checked_path(f"words/{name}") for name in WORD_FILES]
    return WordTable.load(paths[0].parent)


def _classes_of(bundle: Bundle) -> Classes:
    manifest, count = bundle.manifest, bundle.manifest.config.get("num_embeds_ada_norm")
    if type(count) is not int or count < 1:
        raise BundleError(
            f"The config of {manifest.model} has no number of classes, but {count!r:.40}: build it again."
        )
    if CLASSES_FILE in manifest.files:
        return Classes.load(bundle.checked_path(CLASSES_FILE), model=manifest.model, count=count)
    return Classes(model=manifest.model, count=count)


def sampler_for(session: Session, steps: int) -> Sampler:
    """Return the noise scheduler of the session's model for ``steps`` denoising steps."""
    return sampler_of(session.manifest, steps)


def sampler_of(manifest: Manifest, steps: int) -> Sampler:
    """Return the noise scheduler of a bundle's model for ``steps`` denoising steps."""
    pipeline = manifest.pipeline
    (latent,) = (spec for spec in manifest.graphs["full"].inputs if spec.role == "latent")
    tokens = int(latent.shape[1]) if pipeline.latent == "packed" else None
    return sampler_from_config(pipeline.scheduler, steps, tokens=tokens)


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
