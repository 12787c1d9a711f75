"""Diffusers' noise schedulers in NumPy: what turns a prediction into the latent of the next denoising step.

Two are here, those of the served model families: flow matching with Euler steps (FLUX, HunyuanVideo) and
deterministic DDIM (DiT).  Both are configured by diffusers' own ``scheduler_config.json`` and follow it to
float32 rounding or refuse: an option that would change the image is never ignored.

A sampler belongs to one request.  It allocates in :meth:`Sampler.prepare` and never in :meth:`Sampler.step`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import InputError, ShapeError
from taylorseer.runtime.sampler_options import (
    SCHEDULERS,
    DDIMConfig,
    FlowMatchEulerConfig,
    honored_options,
    require,
    require_choice,
)

__all__ = ["DDIM", "FlowMatchEuler", "Sampler", "sampler_from_config"]

Floats = NDArray[np.float32]


class Sampler(Protocol):
    """The noise scheduler's update, one call a denoising step."""

    steps: int
    """Number of denoising steps."""
    timesteps: Floats
    """float32 [steps]: diffusers' ``scheduler.timesteps``, before any scaling of the model family."""
    initial_noise_scale: float
    """Factor for the standard normal noise that the loop starts from: diffusers' ``init_noise_sigma``."""

    def prepare(self, shape: Sequence[int]) -> None:
        """Reserve the scratch memory for latents of ``shape``; :meth:`step` does it when nobody has."""

    def step(self, latent: Floats, prediction: Floats, step: int) -> None:
        """Update float32 ``latent`` in place with the model's ``prediction``, of the same shape and dtype."""


class FlowMatchEuler:
    """Euler steps along the straight path from noise (sigma 1) to image (sigma 0): x += (sigma' - sigma) * v.

    The unshifted sigmas are 1, 1 - 1/steps, ..., 1/steps: what FluxPipeline passes to the scheduler
    (``linspace(1, 1/steps, steps)``) and, written differently, what HunyuanVideoPipeline passes
    (``linspace(1, 0, steps + 1)[:-1]``); the two are the same float32 numbers.  The scheduler's own spacing,
    used by pipelines that pass no sigmas, is another one and is not offered.

    ``tokens``: image tokens of one latent, needed under ``use_dynamic_shifting`` and unused otherwise.
    Raises InputError for fewer than one step, or when ``tokens`` is needed and missing.
    """

    def __init__(self, config: FlowMatchEulerConfig, steps: int, *, tokens: int | None = None) -> None:
        require(steps >= 1, "steps", steps, "at least 1")
        sigmas = _shifted(np.linspace(1.0, 1 / steps, steps).astype(np.float32), config, tokens)
        self.steps = steps
        self.sigmas: Floats = np.append(sigmas, np.float32(0.0))
        self.timesteps: Floats = sigmas * np.float32(config.num_train_timesteps)
        self.initial_noise_scale = 1.0
        self._increments = np.diff(self.sigmas)
        self._scratch = np.empty(0, np.float32)

    def prepare(self, shape: Sequence[int]) -> None:
        """Reserve one float32 array of ``shape``."""
        if self._scratch.shape != tuple(shape):
            self._scratch = np.empty(shape, np.float32)

    def step(self, latent: Floats, prediction: Floats, step: int) -> None:
        """Update ``latent`` in place with the predicted velocity.  Raises ShapeError, IndexError."""
        _check_step(latent, prediction, step, self.steps)
        self.prepare(latent.shape)
        np.multiply(prediction, self._increments[step], out=self._scratch)
        np.add(latent, self._scratch, out=latent)


class DDIM:
    """Deterministic DDIM (eta = 0): formula 12 of arXiv:2010.02502, ordered as in ``DDIMScheduler``.

    Raises InputError when ``steps`` does not fit the training noise levels.
    """

    def __init__(self, config: DDIMConfig, steps: int) -> None:
        timesteps = _ddim_timesteps(config, steps)
        kept = _kept_signal(config)
        previous = timesteps - config.num_train_timesteps // steps
        last = np.float32(1.0) if config.set_alpha_to_one else kept[0]
        before: Floats = np.where(previous >= 0, kept[np.maximum(previous, 0)], last)
        self.steps = steps
        self.timesteps: Floats = timesteps.astype(np.float32)
        self.initial_noise_scale = 1.0
        self._signal, self._noise = np.sqrt(kept[timesteps]), np.sqrt(1 - kept[timesteps])
        self._next_signal, self._next_noise = np.sqrt(before), np.sqrt(1 - before)
        self._limit = config.clip_sample_range if config.clip_sample else None
        self._predicts_noise = config.prediction_type == "epsilon"
        self._clean = self._residual = np.empty(0, np.float32)

    def prepare(self, shape: Sequence[int]) -> None:
        """Reserve two float32 arrays of ``shape``: the predicted clean sample and the predicted noise."""
        if self._clean.shape != tuple(shape):
            self._clean, self._residual = np.empty(shape, np.float32), np.empty(shape, np.float32)

    def step(self, latent: Floats, prediction: Floats, step: int) -> None:
        """Update ``latent`` in place with the predicted noise or velocity.  Raises ShapeError, IndexError."""
        _check_step(latent, prediction, step, self.steps)
        self.prepare(latent.shape)
        clean, residual = self._clean, self._residual
        residual_source = self._split(latent, prediction, step)
        if self._limit is not None:
            np.clip(clean, -self._limit, self._limit, out=clean)
        np.multiply(residual_source, self._next_noise[step], out=residual)
        np.multiply(clean, self._next_signal[step], out=latent)
        np.add(latent, residual, out=latent)

    def _split(self, latent: Floats, prediction: Floats, step: int) -> Floats:
        """Write the predicted clean sample into its scratch and return the predicted noise."""
        signal, noise, clean, residual = self._signal[step], self._noise[step], self._clean, self._residual
        np.multiply(prediction, noise, out=residual)
        if self._predicts_noise:
            np.subtract(latent, residual, out=clean)
            np.divide(clean, signal, out=clean)
            return prediction
        np.multiply(latent, signal, out=clean)
        np.subtract(clean, residual, out=clean)
        np.multiply(prediction, signal, out=residual)
        np.multiply(latent, noise, out=latent)  # the old latent is not needed after this
        np.add(residual, latent, out=residual)
        return residual


def sampler_from_config(config: Mapping[str, object], steps: int, *, tokens: int | None = None) -> Sampler:
    """Return the sampler that diffusers' ``scheduler_config.json`` asks for.

    ``config``: content of that file; keys that begin with an underscore, except ``_class_name``, are
    diffusers' bookkeeping.  ``tokens``: image tokens of one latent, for ``use_dynamic_shifting``.

    Raises InputError for another scheduler class, an unsupported option or value, or steps that do not fit.
    """
    name = str(config.get("_class_name"))
    require_choice("_class_name", name, tuple(SCHEDULERS))
    if name == "DDIMScheduler":
        return DDIM(DDIMConfig(**honored_options(config, DDIMConfig, SCHEDULERS[name])), steps)
    options = honored_options(config, FlowMatchEulerConfig, SCHEDULERS[name])
    return FlowMatchEuler(FlowMatchEulerConfig(**options), steps, tokens=tokens)


def _shifted(sigmas: Floats, config: FlowMatchEulerConfig, tokens: int | None) -> Floats:
    """Shift float32 [steps] sigmas towards noise, statically or by ``tokens``."""
    if not config.use_dynamic_shifting:
        return np.float32(config.shift) * sigmas / (1 + np.float32(config.shift - 1) * sigmas)
    if tokens is None or tokens < 1:
        raise InputError(
            f"the scheduler config shifts dynamically, by the number of image tokens, but tokens = {tokens}. "
            "Pass the number of tokens of one latent: (height / patch) * (width / patch)."
        )
    mu = _dynamic_shift(config, tokens)
    factor = math.exp(mu) if config.time_shift_type == "exponential" else mu
    require(factor > 0, "linear dynamic shift", factor, "above 0")
    return np.float32(factor) / (np.float32(factor) + (np.float32(1) / sigmas - 1))


def _dynamic_shift(config: FlowMatchEulerConfig, tokens: int) -> float:
    """FluxPipeline's ``calculate_shift``: a line through the base and the max (tokens, shift)."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return tokens * slope + (config.base_shift - slope * config.base_image_seq_len)


def _ddim_timesteps(config: DDIMConfig, steps: int) -> NDArray[np.int64]:
    """Return int64 [steps] noise levels, descending, as ``DDIMScheduler.set_timesteps`` chooses them."""
    levels = config.num_train_timesteps
    require(1 <= steps <= levels, "steps", steps, f"from 1 to num_train_timesteps = {levels}")
    if config.timestep_spacing == "linspace":
        timesteps = np.linspace(0, levels - 1, steps).round()[::-1].astype(np.int64)
    elif config.timestep_spacing == "leading":
        timesteps = np.arange(steps, dtype=np.int64)[::-1] * (levels // steps) + config.steps_offset
    else:
        timesteps = np.round(np.arange(levels, 0, -levels / steps)).astype(np.int64) - 1
    # Trailing spacing counts down in float steps: for some counts (61 of 1000) diffusers makes one too many.
    require(len(timesteps) == steps, "steps", steps, "one more or one fewer to suit trailing spacing")
    require(timesteps[0] < levels, "steps_offset", config.steps_offset, "smaller for this many steps")
    return timesteps


def _kept_signal(config: DDIMConfig) -> Floats:
    """Return float32 [num_train_timesteps]: the cumulative product of 1 - beta.

    The rounding is that of ``torch.linspace`` (from both ends, float32 increment) and ``torch.cumprod``
    (float64 inside): last-bit differences in beta add up over a thousand factors.
    """
    power = 2 if config.beta_schedule == "scaled_linear" else 1
    first, last = np.float32(config.beta_start ** (1 / power)), np.float32(config.beta_end ** (1 / power))
    index = np.arange(config.num_train_timesteps)
    increment = float((last - first) / np.float32(index[-1]))
    rising, falling = float(first) + increment * index, float(last) - increment * index[::-1]
    betas = np.where(index < len(index) // 2, rising, falling).astype(np.float32) ** power
    return np.cumprod(1 - betas, dtype=np.float64).astype(np.float32)


def _check_step(latent: Floats, prediction: Floats, step: int, steps: int) -> None:
    if not 0 <= step < steps:
        raise IndexError(f"denoising step {step} is not one of 0 to {steps - 1}")
    if latent.shape != prediction.shape or not latent.dtype == prediction.dtype == np.float32:
        raise ShapeError(
            f"the sampler was given a latent of {latent.dtype} {list(latent.shape)} and a prediction of "
            f"{prediction.dtype} {list(prediction.shape)}; both must be float32 and of one shape. Convert or "
            "slice the prediction first."
        )
