"""What a calibration records: true products of true predictions, in every layout, and how far an error carries."""

from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.manifest import Layout
from taylorseer.runtime.calibration import guided_prediction, inner_products, record, step_moves
from taylorseer.runtime.generation import Generator, sampler_of
from taylorseer.runtime.sampler_options import DDIMConfig, FlowMatchEulerConfig
from taylorseer.runtime.samplers import Sampler, ddim, flow_match_euler

SHORT = CacheConfig(steps=9, interval=3, order=1)

Bundles = Callable[..., Bundle]


def test_products_of_more_numbers_than_one_block() -> None:
    series = np.random.default_rng(0).standard_normal((3, 70_000), np.float32)
    wide = series.astype(np.float64)
    np.testing.assert_allclose(inner_products(series), wide @ wide.T / 70_000, rtol=1e-12)


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_the_predictions_are_those_that_moved_the_latent(bundles: Bundles, layout: Layout) -> None:
    with Generator(bundles("dit-tiny", layout), threads=1) as generator:
        sampler = sampler_of(generator.manifest, SHORT.steps)
        latents = []

        def keep(step: int, full: bool) -> None:
            latents.append(generator.session.memory[f"latent.{(step + 1) % 2}"].read(1))

        generator.generate("1", seed=3, cache=SHORT, guidance=2.5, every_step_full=True, on_step=keep)
        recording = record(generator, "1", seed=3, cache=SHORT, guidance=2.5)
    later, before = np.array(latents[1:]).reshape(8, -1), np.array(latents[:-1]).reshape(8, -1)
    factors = sampler.updates[1:].astype(np.float64)
    assert sampler.clip is None
    moved = (later - factors[:, :1] * before) / factors[:, 1:2]
    np.testing.assert_allclose(recording.products[1:, 1:], inner_products(moved.astype(np.float32)), rtol=1e-3)
    np.testing.assert_array_equal(recording.made.latent, latents[-1])


def test_every_layout_records_the_same(bundles: Bundles) -> None:
    recorded = []
    for layout in ("history", "folded"):
        with Generator(bundles("dit-tiny", layout), threads=1) as generator:
            recorded.append(record(generator, "1", seed=0, cache=SHORT, guidance=None).products)
    assert recorded[0].shape == (9, 9)
    np.testing.assert_allclose(recorded[0], recorded[1], rtol=1e-4)


def test_guidance_and_the_channels_of_a_variance(bundles: Bundles) -> None:
    manifest = bundles("dit-tiny").manifest
    prediction = np.arange(2 * 6 * 4, dtype=np.float32).reshape(2, 6, 2, 2)
    guided = guided_prediction(manifest, prediction, 3, 2.0)
    np.testing.assert_array_equal(guided, 2 * prediction[:1, :3] - prediction[1:, :3])


@pytest.mark.parametrize(
    "sampler",
    [
        flow_match_euler(FlowMatchEulerConfig(shift=3.0), 10),
        ddim(DDIMConfig(clip_sample=False, prediction_type="v_prediction"), 10),
        ddim(DDIMConfig(clip_sample=True, clip_sample_range=1e6), 10),
    ],
    ids=["flow-matching", "ddim of velocity", "ddim that clips"],
)
def test_an_error_moves_the_result_so_far(sampler: Sampler) -> None:
    moves = step_moves(sampler)
    for wrong in range(10):
        ends = []
        for error in (0.0, 1e-3):
            latent = np.full((1, 1), 0.1, np.float64)
            for step in range(10):
                a, b, clean, c, d = sampler.updates[step].astype(np.float64)
                prediction = 0.2 + error * (step == wrong)
                latent = a * latent + b * prediction + clean * (c * latent + d * prediction)
            ends.append(latent.item())
        assert moves[wrong] == pytest.approx(abs(ends[1] - ends[0]) / 1e-3, rel=1e-6)


def test_flow_matching_moves_by_the_step_of_sigma() -> None:
    sampler = flow_match_euler(FlowMatchEulerConfig(shift=1.0), 10)
    np.testing.assert_allclose(step_moves(sampler), np.full(10, 0.1), rtol=1e-5)
