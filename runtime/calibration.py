"""What a calibration records of one request: how alike the model's predictions at any two denoising steps are.

A forecast is a weighted sum of earlier full steps.  Its squared error at step s, with ``c`` the weights and -1 at s
itself, is ``c^T P c``, where P holds the inner products of the predictions with every step full.  So P, [steps, steps],
is all that placement and weights are fitted to, whatever the size of the model.  Predictions stand for the features:
every state layout has them, and what lies between the two (the last norm and projection) is nearly linear over a few
steps.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.manifest import Manifest, UpdateNumber
from taylorseer.runtime.generation import Generated, Generator
from taylorseer.runtime.samplers import Sampler

__all__ = ["Recording", "guided_prediction", "inner_products", "record", "step_moves"]

Floats = NDArray[np.float64]

_BLOCK = 1 << 16
"""Numbers of a prediction that are widened to float64 at once."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """One request with every step full."""

    made: Generated
    """What came out: what a forecast is to be close to."""
    products: Floats
    """float64 [steps, steps]: mean product of the predictions at two steps."""


def record(generator: Generator, prompt: str, *, seed: int, cache: CacheConfig, guidance: float | None) -> Recording:
    """Run every step full and keep the inner products of the predictions.

    Args:
        generator: a loaded bundle of any state layout.
        prompt: what the model takes.
        seed: of the initial noise.
        cache: whose steps are run.
        guidance: None: the bundle's default.

    Raises what :meth:`Generator.generate` raises.
    """
    manifest = generator.manifest
    strength = manifest.pipeline.guidance if guidance is None else guidance
    (name,) = (spec.name for spec in manifest.graphs["full"].outputs if spec.role == "prediction")
    predictions: list[NDArray[np.float32]] = []

    def keep(step: int, full: bool) -> None:
        prediction = generator.session.memory[name].read()
        channels = generator.session.latent_shape[1]
        predictions.append(guided_prediction(manifest, prediction, channels, strength).ravel())

    made = generator.generate(prompt, seed=seed, cache=cache, guidance=guidance, every_step_full=True, on_step=keep)
    return Recording(made, inner_products(np.array(predictions)))


def guided_prediction(
    manifest: Manifest, prediction: NDArray[np.float32], channels: int, guidance: float
) -> NDArray[np.float32]:
    """Return what the noise scheduler sees of a prediction [rows, ...]: as the update graph makes it.

    The channels of a learned variance are left out, and under classifier-free guidance the conditional half, which is
    the first, is moved away from the unconditional one.
    """
    latent = prediction if manifest.pipeline.latent == "packed" else prediction[:, :channels]
    if manifest.pipeline.guidance_mode != "classifier-free":
        return latent
    conditional, unconditional = np.split(latent, 2)
    guided: NDArray[np.float32] = unconditional + np.float32(guidance) * (conditional - unconditional)
    return guided


def inner_products(predictions: NDArray[np.float32]) -> Floats:
    """Return float64 [steps, steps], the mean products of the rows of ``predictions`` [steps, numbers]."""
    steps, numbers = predictions.shape
    products = np.zeros((steps, steps), np.float64)
    for start in range(0, numbers, _BLOCK):
        block = predictions[:, start : start + _BLOCK].astype(np.float64)
        products += block @ block.T
    products /= numbers
    return products


def step_moves(sampler: Sampler) -> Floats:
    """Return float64 [steps]: how far an error of 1 in the prediction of each step moves the latent after the last.

    The factor of the prediction in that step's update, times the factors of the latent in all later ones; the later
    predictions are taken to stay as they are, and nothing to be clipped.  For flow matching it is the step of sigma.
    """
    numbers = sampler.updates.astype(np.float64)
    clean = numbers[:, UpdateNumber.CLEAN]
    of_latent = numbers[:, UpdateNumber.LATENT] + clean * numbers[:, UpdateNumber.CLEAN_LATENT]
    of_prediction = numbers[:, UpdateNumber.PREDICTION] + clean * numbers[:, UpdateNumber.CLEAN_PREDICTION]
    later = np.append(np.cumprod(of_latent[::-1])[::-1][1:], 1.0)
    moves: Floats = np.abs(of_prediction * later)
    return moves
