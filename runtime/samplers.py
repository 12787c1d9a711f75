"""Diffusers' noise schedulers as data: what turns a prediction into the latent of the next denoising step.

Two are here, those of the served model families: flow matching with Euler steps (FLUX, HunyuanVideo) and
deterministic DDIM (DiT).  Both are configured by diffusers' own ``scheduler_config.json`` and follow it to
float32 rounding or refuse: an option that would change the image is never ignored.  What comes out is a table of
numbers, which the update graph applies where the latent lies.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import InputError, ShapeError
from taylorseer.manifest import UpdateNumber
from taylorseer.runtime.sampler_options import (
    SCHEDULERS,
    DDIMConfig,
    FlowMatchEulerConfig,
    honored_options,
    require,
    require_choice,
)

__all__ = ["Sampler", "ddim", "flow_match_euler", "sampler_from_config"]

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A noise scheduler for one number of denoising steps, as numbers that the update graph applies."""

    timesteps: Floats
    """float32 [steps]: diffusers' ``scheduler.timesteps``, before any scaling of the model family."""
    updates: Floats
    """float32 [steps, 5]: the factors of :class:`~taylorseer.manifest.UpdateNumber` from LATENT to CLEAN_PREDICTION."""
    clip: float | None = None
    """The clean sample is clipped to [-clip, clip]; None: it is not, and the last three factors are 0."""
    initial_noise_scale: float = 1.0
    """Factor for the standard normal noise that the loop starts from: diffusers' ``init_noise_sigma``."""

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return len(self.timesteps)

    def step(self, latent: Floats, prediction: Floats, step: int) -> Floats:
        """Return the latent after denoising step ``step``: the update graph's arithmetic in NumPy, as its reference.

        Raises ShapeError unless both are float32 and of one shape, and IndexError outside the loop.
        """
        _check_step(latent, prediction, step, self.steps)
        a, b, clean, from_latent, from_prediction = self.updates[step]
        following: Floats = a * latent + b * prediction
        if self.clip is not None:
            following += clean * np.clip(from_latent * latent + from_prediction * prediction, -self.clip, self.clip)
        return following


def flow_match_euler(config: FlowMatchEulerConfig, steps: int, *, tokens: int | None = None) -> Sampler:
    """Euler steps along the straight path from noise (sigma 1) to image (sigma 0): x += (sigma' - sigma) * v.

    The unshifted sigmas are 1, 1 - 1/steps, ..., 1/steps: what FluxPipeline passes to the scheduler
    (``linspace(1, 1/steps, steps)``) and, written differently, what HunyuanVideoPipeline passes
    (``linspace(1, 0, steps + 1)[:-1]``); the two are the same float32 numbers.  The scheduler's own spacing,
    used by pipelines that pass no sigmas, is another one and is not offered.

    ``tokens``: image tokens of one latent, needed under ``use_dynamic_shifting`` and unused otherwise.
    Raises InputError for fewer than one step, or when ``tokens`` is needed and missing.
    """
    require(steps >= 1, "steps", steps, "at least 1")
    sigmas = _shifted(np.linspace(1.0, 1 / steps, steps).astype(np.float32), config, tokens)
    updates = np.zeros((steps, 5), np.float32)
    updates[:, UpdateNumber.LATENT] = 1
    updates[:, UpdateNumber.PREDICTION] = np.diff(np.append(sigmas, np.float32(0.0)))
    return Sampler(sigmas * np.float32(config.num_train_timesteps), updates)


def ddim(config: DDIMConfig, steps: int) -> Sampler:
    """Deterministic DDIM (eta = 0): formula 12 of arXiv:2010.02502.

    With the noise level's signal a and noise b (a^2 + b^2 = 1), the clean sample is ``(x - b e) / a`` of predicted
    noise e, or ``a x - b v`` of predicted velocity v; the noise is e, or ``a v + b x``; and the next latent is
    ``a' clean + b' noise``.  What is linear in x and the prediction is multiplied out, in float64.

    Raises InputError when ``steps`` does not fit the training noise levels.
    """
    timesteps = _ddim_timesteps(config, steps)
    kept = _kept_signal(config)
    previous = timesteps - config.num_train_timesteps // steps
    last = np.float32(1.0) if config.set_alpha_to_one else kept[0]
    before = np.where(previous >= 0, kept[np.maximum(previous, 0)], last).astype(np.float64)
    signal, noise = np.sqrt(kept[timesteps].astype(np.float64)), np.sqrt(1 - kept[timesteps].astype(np.float64))
    zero, one = np.zeros(steps), np.ones(steps)
    if config.prediction_type == "epsilon":
        clean, residual = (1 / signal, -noise / signal), (zero, one)
    else:
        clean, residual = (signal, -noise), (noise, signal)
    next_signal, next_noise = np.sqrt(before), np.sqrt(1 - before)
    if config.clip_sample:
        factors = [next_noise * residual[0], next_noise * residual[1], next_signal, *clean]
    else:
        linear = [next_signal * clean[i] + next_noise * residual[i] for i in (0, 1)]
        factors = [*linear, zero, zero, zero]
    clip = config.clip_sample_range if config.clip_sample else None
    return Sampler(timesteps.astype(np.float32), np.stack(factors, axis=1).astype(np.float32), clip)


def sampler_from_config(config: Mapping[str, object], steps: int, *, tokens: int | None = None) -> Sampler:
    """Return the sampler that diffusers' ``scheduler_config.json`` asks for.

    ``config``: content of that file; keys that begin with an underscore, except ``_class_name``, are
    diffusers' bookkeeping.  ``tokens``: image tokens of one latent, for ``use_dynamic_shifting``.

    Raises InputError for another scheduler class, an unsupported option or value, or steps that do not fit.
    """
    name = str(config.get("_class_name"))
    require_choice("_class_name", name, tuple(SCHEDULERS))
    if name == "DDIMScheduler":
        return ddim(DDIMConfig(**honored_options(config, DDIMConfig, SCHEDULERS[name])), steps)
    options = honored_options(config, FlowMatchEulerConfig, SCHEDULERS[name])
    return flow_match_euler(FlowMatchEulerConfig(**options), steps, tokens=tokens)


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
