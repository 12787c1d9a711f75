"""Guidance: one latent for both halves, and diffusers' formula without the learned variance."""

import numpy as np
import pytest

from taylorseer.runtime.guidance import ClassifierFree, Embedded


def normal(*shape: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, -2.5])
def test_classifier_free_follows_dit_pipeline(scale: float) -> None:
    """DiTPipeline: eps, rest = noise_pred[:, :C], noise_pred[:, C:]; half_eps = uncond + scale * (cond - uncond)."""
    model_input, prediction = np.zeros((4, 3, 5, 5), np.float32), normal(4, 6, 5, 5)
    conditional, unconditional = np.split(prediction[:, :3].astype(np.float64), 2)
    guided = ClassifierFree(model_input, prediction).gather(scale)
    assert guided.shape == (2, 3, 5, 5) and guided.dtype == np.float32
    np.testing.assert_allclose(guided, unconditional + scale * (conditional - unconditional), rtol=1e-6, atol=1e-5)


def test_both_halves_get_the_latent_and_keep_their_order() -> None:
    model_input = np.full((4, 3, 2, 2), np.nan, np.float32)
    guidance = ClassifierFree(model_input, normal(4, 3, 2, 2))
    guidance.latent[:] = normal(2, 3, 2, 2, seed=1)
    guidance.spread()
    np.testing.assert_array_equal(model_input[:2], guidance.latent)
    np.testing.assert_array_equal(model_input[2:], guidance.latent)


def test_a_scale_of_1_is_the_conditional_half_and_of_0_the_other() -> None:
    prediction = np.concatenate([np.full((1, 3, 2, 2), 5, np.float32), np.full((1, 3, 2, 2), 7, np.float32)])
    guidance = ClassifierFree(np.zeros((2, 3, 2, 2), np.float32), prediction)
    assert (guidance.gather(1.0) == 5).all()
    assert (guidance.gather(0.0) == 7).all()


def test_predictions_are_read_where_the_engine_leaves_them() -> None:
    prediction = normal(2, 6, 2, 2)
    guidance = ClassifierFree(np.zeros((2, 3, 2, 2), np.float32), prediction)
    first = guidance.gather(1.0).copy()
    prediction *= 2
    np.testing.assert_array_equal(guidance.gather(1.0), 2 * first)
    assert (prediction == 2 * normal(2, 6, 2, 2)).all()  # gathering changes nothing of it


def test_embedded_guidance_works_on_the_models_own_memory() -> None:
    model_input, prediction = normal(1, 4, 8), normal(1, 4, 8, seed=1)
    guidance = Embedded(model_input, prediction)
    guidance.spread()
    assert guidance.latent is model_input
    assert guidance.gather(3.5) is prediction


def test_embedded_guidance_leaves_out_a_learned_variance() -> None:
    model_input, prediction = normal(1, 3, 4, 4), normal(1, 6, 4, 4, seed=1)
    np.testing.assert_array_equal(Embedded(model_input, prediction).gather(1.0), prediction[:, :3])
