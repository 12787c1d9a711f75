"""The samplers against diffusers' schedulers, step by step, and their refusals."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from taylorseer.errors import InputError, ShapeError
from taylorseer.runtime.samplers import Sampler, sampler_from_config

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0"}
FLUX_DEV = FLOW | {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
FLUX_SCHNELL = FLOW | {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False}
HUNYUAN_VIDEO = FLOW | {
    "invert_sigmas": False,
    "num_train_timesteps": 1000,
    "shift": 7.0,
    "shift_terminal": None,
    "use_karras_sigmas": False,
}
DIT = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "trained_betas": None,
}
LATENT_DIFFUSION = DIT | {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FLOW_CONFIGS = {
    "flux-dev": FLUX_DEV,
    "flux-schnell": FLUX_SCHNELL,
    "hunyuan-video": HUNYUAN_VIDEO,
    "linear-shift": FLUX_DEV | {"time_shift_type": "linear", "num_train_timesteps": 500},
}
DDIM_CONFIGS = {
    "dit": DIT,
    "latent-diffusion": LATENT_DIFFUSION,
    "clipped": DIT | {"clip_sample": True, "clip_sample_range": 1.5},
    "velocity": LATENT_DIFFUSION | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "velocity-clipped": DIT | {"prediction_type": "v_prediction", "clip_sample": True},
    "linspace": DIT | {"timestep_spacing": "linspace"},
    "short-training": DIT | {"num_train_timesteps": 400, "timestep_spacing": "trailing"},
}
STEPS = (50, 28, 20)
TOKENS = 1024
SHAPE = (2, 64, 16)

# Both sides round float32 after each of at most six operations; 1e-6 is 8 such roundings.
STEP_TOLERANCE = 1e-6
# Over 50 steps the roundings add up, in DDIM the more as torch's square root may be off by its last bit.
TRAJECTORY_TOLERANCE = 2e-6


def flow_sigmas(config: dict[str, Any], steps: int) -> np.ndarray:
    """The sigmas as the config's own pipeline passes them."""
    if config is HUNYUAN_VIDEO:
        return np.linspace(1.0, 0.0, steps + 1)[:-1]
    return np.linspace(1.0, 1 / steps, steps)


def reference_flow(config: dict[str, Any], steps: int) -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = calculate_shift(TOKENS, 256, 4096, 0.5, 1.15) if config.get("use_dynamic_shifting") else None
    scheduler.set_timesteps(sigmas=flow_sigmas(config, steps), mu=mu)
    return scheduler


def relative_error(actual: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.linalg.norm(actual - expected.numpy()) / np.linalg.norm(expected.numpy()))


def assert_follows(sampler: Sampler, scheduler: Any) -> None:
    """Walk a trajectory of random predictions; compare each step alone and the latent after each step."""
    random = np.random.default_rng(3)
    latent = random.standard_normal(SHAPE, dtype=np.float32)
    expected = torch.from_numpy(latent.copy())
    assert sampler.steps == len(scheduler.timesteps)
    assert sampler.timesteps.dtype == np.float32
    assert sampler.initial_noise_scale == getattr(scheduler, "init_noise_sigma", 1.0)
    for step, timestep in enumerate(scheduler.timesteps):
        assert sampler.timesteps[step] == timestep.item()
        prediction = random.standard_normal(SHAPE, dtype=np.float32)
        untouched = prediction.copy()
        alone = expected.numpy().copy()
        expected = scheduler.step(torch.from_numpy(prediction), timestep, expected).prev_sample
        alone = sampler.step(alone, prediction, step)
        assert relative_error(alone, expected) <= STEP_TOLERANCE, f"step {step} alone"
        latent = sampler.step(latent, prediction, step)
        assert relative_error(latent, expected) <= TRAJECTORY_TOLERANCE, f"after step {step}"
        assert np.array_equal(prediction, untouched)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", FLOW_CONFIGS.values(), ids=FLOW_CONFIGS)
def test_flow_matching_follows_diffusers(config: dict[str, Any], steps: int) -> None:
    assert_follows(sampler_from_config(config, steps, tokens=TOKENS), reference_flow(config, steps))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("config", DDIM_CONFIGS.values(), ids=DDIM_CONFIGS)
def test_ddim_follows_diffusers(config: dict[str, Any], steps: int) -> None:
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    assert_follows(sampler_from_config(config, steps), scheduler)


def test_both_video_and_image_pipelines_pass_the_same_sigmas() -> None:
    for steps in range(1, 201):
        image = flow_sigmas(FLUX_DEV, steps).astype(np.float32)
        assert np.array_equal(image, flow_sigmas(HUNYUAN_VIDEO, steps).astype(np.float32))


def test_the_schedulers_own_spacing_is_another_one() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(HUNYUAN_VIDEO)
    scheduler.set_timesteps(28)
    assert not np.allclose(sampler_from_config(HUNYUAN_VIDEO, 28).timesteps, scheduler.timesteps.numpy(), rtol=1e-3)


@pytest.mark.parametrize("tokens", [64, 256, 4096, 9000])
def test_dynamic_shift_depends_on_tokens(tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(FLUX_DEV)
    scheduler.set_timesteps(sigmas=flow_sigmas(FLUX_DEV, 20), mu=calculate_shift(tokens))
    sampler = sampler_from_config(FLUX_DEV, 20, tokens=tokens)
    assert np.array_equal(sampler.timesteps, scheduler.timesteps.numpy())


@pytest.mark.parametrize("config", [FLUX_SCHNELL, DIT], ids=["flow", "ddim"])
def test_one_step_ends_at_the_clean_sample(config: dict[str, Any]) -> None:
    sampler = sampler_from_config(config, 1)
    clean = np.full(SHAPE, 0.25, np.float32)
    noise = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    if config is DIT:  # one leading step starts at timestep 0, whose noise level is beta_start
        latent = np.float32((1 - 1e-4) ** 0.5) * clean + np.float32(1e-2) * noise
        latent = sampler.step(latent, noise, 0)
    else:
        latent = noise.copy()
        latent = sampler.step(latent, noise - clean, 0)
    # float32 keeps beta_start = 1e-4 to 3e-4 of itself inside 1 - beta, as in diffusers
    np.testing.assert_allclose(latent, clean, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "steps", "named"),
    [
        ({}, 20, "_class_name"),
        ({"_class_name": "EulerDiscreteScheduler"}, 20, "EulerDiscreteScheduler"),
        (FLOW | {"use_karras_sigmas": True}, 20, "use_karras_sigmas"),
        (FLOW | {"use_beta_sigmas": True}, 20, "use_beta_sigmas"),
        (FLOW | {"use_exponential_sigmas": True}, 20, "use_exponential_sigmas"),
        (FLOW | {"invert_sigmas": True}, 20, "invert_sigmas"),
        (FLOW | {"stochastic_sampling": True}, 20, "stochastic_sampling"),
        (FLOW | {"shift_terminal": 0.1}, 20, "shift_terminal"),
        (FLOW | {"time_shift_type": "cubic"}, 20, "time_shift_type"),
        (FLOW | {"shift": "3"}, 20, "shift"),
        (FLOW | {"shift": True}, 20, "shift"),
        (FLOW | {"shift": 0}, 20, "shift"),
        (FLOW | {"shift": float("nan")}, 20, "shift"),
        (FLOW | {"max_image_seq_len": 256}, 20, "max_image_seq_len"),
        (FLOW | {"skip_first": True}, 20, "skip_first"),
        (FLOW, 0, "steps"),
        (FLUX_DEV, 20, "tokens"),
        (DIT | {"beta_schedule": "squaredcos_cap_v2"}, 20, "beta_schedule"),
        (DIT | {"prediction_type": "sample"}, 20, "prediction_type"),
        (DIT | {"timestep_spacing": "middle"}, 20, "timestep_spacing"),
        (DIT | {"thresholding": True}, 20, "thresholding"),
        (DIT | {"rescale_betas_zero_snr": True}, 20, "rescale_betas_zero_snr"),
        (DIT | {"trained_betas": [0.1, 0.2]}, 20, "trained_betas"),
        (DIT | {"beta_end": 1.5}, 20, "beta_end"),
        (DIT | {"steps_offset": 1}, 1000, "steps_offset"),
        (DIT, 1001, "steps"),
        (DIT | {"timestep_spacing": "trailing"}, 61, "steps"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], steps: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        sampler_from_config(config, steps)


@pytest.mark.parametrize("config", [FLUX_SCHNELL, DIT], ids=["flow", "ddim"])
def test_step_refuses_what_does_not_fit(config: dict[str, Any]) -> None:
    sampler = sampler_from_config(config, 4)
    latent = np.zeros((1, 4), np.float32)
    with pytest.raises(ShapeError, match=r"\[1, 8\]"):
        sampler.step(latent, np.zeros((1, 8), np.float32), 0)
    with pytest.raises(ShapeError, match="float16"):
        sampler.step(latent, np.zeros((1, 4), np.float16), 0)
    for step in (-1, 4):
        with pytest.raises(IndexError):
            sampler.step(latent, latent.copy(), step)


def test_torch_is_not_imported() -> None:
    code = "import sys, taylorseer.runtime.samplers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
