"""What stands in for a pipeline's transformer: it answers what pipelines ask of one, and refuses the rest by name."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.runtime.adapters.calls import CallReader
from taylorseer.runtime.adapters.denoising import Denoising, PredictorPool, config_for
from taylorseer.runtime.adapters.families import Family, full_config
from taylorseer.runtime.adapters.timeline import Timeline
from taylorseer.runtime.session import LoadedModel

__all__ = ["StandIn", "UnsupportedAttributeError"]

_LORA = "LoRA is part of the weights that a bundle is built of: fuse it into the checkpoint, and build of that"

_REMEDIES = {
    **dict.fromkeys(("load_lora_adapter", "add_adapter", "set_adapter", "set_adapters", "peft_config"), _LORA),
    **dict.fromkeys(("fuse_lora", "unfuse_lora", "unload_lora", "delete_adapters", "named_modules"), _LORA),
    "encoder_hid_proj": "an IP-Adapter changes the attention, which the bundle has without it: run without it",
    "enable_cache": "the bundle forecasts by itself: give accelerate() another cache configuration",
}

_REMEDY = "the engines of a bundle are fixed: ask the pipeline's own transformer, outside of accelerate()"


class UnsupportedAttributeError(InputError, AttributeError):
    """An attribute of diffusers' transformers that a bundle's engines do not have; ``hasattr`` says so too."""


class StandIn:
    """The engines of a bundle with the face of a diffusers transformer; it holds no parameters."""

    def __init__(
        self,
        pipe: Any,
        family: Family,
        model: LoadedModel,
        *,
        original: Any,
        cache: CacheConfig,
        every_step_full: bool = False,
    ) -> None:
        """Make a stand-in that reads the noise scheduler of ``pipe`` at every call.

        Args:
            pipe: the pipeline.
            family: how it calls the model.
            model: the loaded bundle.
            original: the pipeline's own transformer, or None.
            cache: when and how to forecast, for any number of steps.
            every_step_full: run the baseline.
        """
        self._pipe, self._reader = pipe, CallReader(model.manifest, family)
        self._manifest, self._pool = model.manifest, PredictorPool(model)
        self._cache, self._every_step_full = cache, every_step_full
        self._loop: Denoising | None = None
        self._context: str | None = None
        self._last_full_steps: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._busy, self._is_closed = threading.Lock(), False
        self.config: Any = full_config(family, model.manifest) if original is None else original.config
        """As diffusers has it."""
        self.dtype: torch.dtype = torch.float32 if original is None else original.dtype
        """What the pipeline makes its latents and embeddings of; the engines take and give float32."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the prediction of one call of the transformer, full or forecast as its denoising step is.

        Args:
            arguments: as the transformer's ``forward`` takes them.
            keywords: the same, by name.

        Raises:
            InputError: an argument that the bundle cannot honor, a call out of order, or one from another thread.
            ScheduleError: the bundle cannot serve the schedule of so many steps.
            NonFiniteError: NaN or infinity in what comes in, or in the prediction of a full step.
        """
        with self._alone():
            call = self._reader.read(arguments, keywords)
            loop = self._loop_of(call.timestep)
            prediction = loop.predict(self._context, call)
        return Transformer2DModelOutput(sample=prediction) if call.return_dict else (prediction,)

    def __getattr__(self, name: str) -> Any:
        """Return an entry of the config, as diffusers' models do, or refuse."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self.config:
            return self.config[name]
        raise UnsupportedAttributeError(
            f"The transformer's {name!r} was asked, and the engines that stand in for it have none: "
            f"{_REMEDIES.get(name, _REMEDY)}."
        )

    @property
    def device(self) -> torch.device:
        """Where the pipeline works: predictions go wherever the latent comes from."""
        return self._pipe.device

    @property
    def full_steps(self) -> NDArray[np.bool_]:
        """[steps] which steps of the running loop, or of the last one, are full; empty before the first."""
        return self._last_full_steps if self._loop is None else self._loop.full_steps

    @contextlib.contextmanager
    def cache_context(self, name: str, **keywords: Any) -> Iterator[None]:
        """Let the calls inside belong to the branch ``name`` of classifier-free guidance.

        Args:
            name: such as ``cond``.
            keywords: what diffusers tells its own caches.
        """
        before, self._context = self._context, name
        try:
            yield
        finally:
            self._context = before

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Forget the denoising loop: pipelines call this when they are done, interrupted or not."""
        self._last_full_steps, self._loop = self.full_steps, None

    def close(self) -> None:
        """Free the memory; no call is answered afterwards.

        Raises:
            InputError: a call is running.
        """
        with self._alone():
            self._loop, self._is_closed = None, True
            self._pool.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise InputError("Another thread is running this pipeline: use one pipeline for each, and accelerate each.")
        try:
            if self._is_closed:
                raise InputError("The block of accelerate() was left: call the pipeline inside of it.")
            yield
        finally:
            self._busy.release()

    def _loop_of(self, timestep: torch.Tensor) -> Denoising:
        """Return the loop that a call belongs to: a new one where the scheduler has set its timesteps anew."""
        scheduler = self._pipe.scheduler
        loop = self._loop
        if loop is None or loop.is_over or loop.timeline.source is not scheduler.timesteps:
            timeline = Timeline.of(scheduler, timestep, self._manifest.pipeline.timestep_scale)
            config = config_for(self._cache, timeline.steps, every_step_full=self._every_step_full)
            loop = Denoising(self._pool, timeline, config, every_step_full=self._every_step_full)
            self._loop = loop
        return loop
