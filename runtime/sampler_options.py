"""The options of diffusers' noise schedulers that the samplers honor, and the refusal of all others.

An option that would change the image is never ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from taylorseer.errors import InputError

__all__ = [
    "SCHEDULERS",
    "DDIMConfig",
    "FlowMatchEulerConfig",
    "honored_options",
    "require",
    "require_choice",
]


@dataclass(frozen=True, kw_only=True)
class FlowMatchEulerConfig:
    """The honored options of ``FlowMatchEulerDiscreteScheduler``, with diffusers' names and defaults."""

    num_train_timesteps: int = 1000
    """Timestep of pure noise: timestep = sigma * num_train_timesteps."""
    shift: float = 1.0
    """Static shift of the sigmas towards noise; unused under ``use_dynamic_shifting``."""
    use_dynamic_shifting: bool = False
    """Shift by the number of image tokens instead."""
    base_shift: float = 0.5
    """Dynamic shift mu at ``base_image_seq_len`` tokens."""
    max_shift: float = 1.15
    """Dynamic shift mu at ``max_image_seq_len`` tokens."""
    base_image_seq_len: int = 256
    """Tokens of the smallest training images."""
    max_image_seq_len: int = 4096
    """Tokens of the largest training images."""
    time_shift_type: str = "exponential"
    """``exponential`` (the shift is exp(mu)) or ``linear`` (the shift is mu)."""

    def __post_init__(self) -> None:
        require_choice("time_shift_type", self.time_shift_type, ("exponential", "linear"))
        require(self.num_train_timesteps >= 1, "num_train_timesteps", self.num_train_timesteps, "at least 1")
        require(self.shift > 0, "shift", self.shift, "above 0")
        distinct = self.max_image_seq_len != self.base_image_seq_len
        require(distinct, "max_image_seq_len", self.max_image_seq_len, "other than base_image_seq_len")


@dataclass(frozen=True, kw_only=True)
class DDIMConfig:
    """The honored options of ``DDIMScheduler``, with diffusers' names and defaults."""

    num_train_timesteps: int = 1000
    """Number of noise levels that the model was trained on."""
    beta_start: float = 0.0001
    """Variance added by the first noise level."""
    beta_end: float = 0.02
    """Variance added by the last noise level."""
    beta_schedule: str = "linear"
    """``linear``, or ``scaled_linear``: linear in the square root of beta."""
    clip_sample: bool = True
    """Clip the predicted clean sample to +-``clip_sample_range``."""
    clip_sample_range: float = 1.0
    """See ``clip_sample``."""
    set_alpha_to_one: bool = True
    """End at no noise at all; otherwise at the first noise level."""
    steps_offset: int = 0
    """Added to each timestep under ``leading`` spacing."""
    prediction_type: str = "epsilon"
    """What the model predicts: ``epsilon``, the noise, or ``v_prediction``, the velocity."""
    timestep_spacing: str = "leading"
    """``leading``, ``trailing`` or ``linspace`` (table 2 of arXiv:2305.08891)."""

    def __post_init__(self) -> None:
        require_choice("beta_schedule", self.beta_schedule, ("linear", "scaled_linear"))
        require_choice("prediction_type", self.prediction_type, ("epsilon", "v_prediction"))
        require_choice("timestep_spacing", self.timestep_spacing, ("leading", "trailing", "linspace"))
        require(self.num_train_timesteps >= 2, "num_train_timesteps", self.num_train_timesteps, "at least 2")
        ordered = 0 < self.beta_start <= self.beta_end < 1
        require(ordered, "beta_start, beta_end", (self.beta_start, self.beta_end), "0 < start <= end < 1")
        require(self.steps_offset >= 0, "steps_offset", self.steps_offset, "at least 0")


SCHEDULERS: Mapping[str, Mapping[str, object]] = {
    "FlowMatchEulerDiscreteScheduler": {
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "use_beta_sigmas": False,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    },
    "DDIMScheduler": {
        "dynamic_thresholding_ratio": 0.995,
        "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0,
        "thresholding": False,
        "trained_betas": None,
    },
}
"""For each class of diffusers: the options that must keep diffusers' default, given here."""


def honored_options(config: Mapping[str, object], kind: type[Any], fixed: Mapping[str, object]) -> dict[str, Any]:
    """Return the options of ``kind`` in ``config``; every other one must be in ``fixed`` and equal to it."""
    defaults = {field.name: field.default for field in fields(kind)}
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    for name, value in options.items():
        if name in defaults:
            options[name] = _typed(name, value, defaults[name])
        elif name not in fixed:
            require_choice("scheduler option", name, (*defaults, *fixed))
        else:
            require(value == fixed[name], name, value, f"{fixed[name]!r}, diffusers' default")
    return {name: value for name, value in options.items() if name in defaults}


def _typed(name: str, value: object, default: object) -> object:
    """Return ``value`` as the type of ``default``; an int will do for a float, a bool for neither."""
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    require(type(value) is type(default) and finite, name, value, f"a finite {type(default).__name__}")
    return value


def require_choice(name: str, value: str, supported: tuple[str, ...]) -> None:
    """Raise InputError unless ``value`` is one of ``supported``."""
    require(value in supported, name, value, "one of " + ", ".join(supported))


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raise InputError, naming the option, its value and what is ``wanted``, unless the condition ``holds``."""
    if not holds:
        raise InputError(f"sampler: {name} = {value!r} is not supported; it must be {wanted}.")
