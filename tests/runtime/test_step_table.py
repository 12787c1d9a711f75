"""The step tables: every small number of every step, of the shape and dtype of the input that it is for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.manifest import Manifest, TensorSpec, UpdateNumber
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.samplers import Sampler, sampler_from_config
from taylorseer.runtime.step_plan import BuiltState, StepPlan, plan_steps
from taylorseer.runtime.step_table import prepare_table, step_table

CACHE = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)
CLIPPING = {"_class_name": "DDIMScheduler", "clip_sample_range": 1.5}


def sampler_of(manifest: Manifest) -> Sampler:
    tokens = 48 if manifest.pipeline.latent == "packed" else None
    return sampler_from_config(manifest.pipeline.scheduler, CACHE.steps, tokens=tokens)


def planned(manifest: Manifest) -> tuple[StepPlan, ...]:
    return plan_steps(CACHE, BuiltState.of_bundle(manifest))


def table_of(manifest: Manifest, *, guidance: float = 3.5) -> dict[str, NDArray[Any]]:
    return dict(step_table(manifest, planned(manifest), sampler_of(manifest), guidance=guidance))


def prepared_by(manifest: Manifest, *, guidance: float = 3.5) -> dict[str, NDArray[Any]]:
    return dict(prepare_table(manifest, sampler_of(manifest), guidance=guidance))


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"])
def test_it_has_a_row_a_step_for_each_step_input_that_prepare_does_not_make(
    bundles: Callable[..., Bundle], name: str, layout: str
) -> None:
    manifest = bundles(name, layout).manifest
    table, plan = table_of(manifest), plan_memory(manifest, rows=2, steps=12)
    inputs = {tensor.name: tensor for tensor in plan.tensors.values() if tensor.use == "step"}
    made = {spec.name for spec in manifest.graphs["prepare"].outputs if spec.role == "prepared"}
    assert table.keys() | made == inputs.keys() and not table.keys() & made
    for key in table:
        tensor = inputs[key]
        assert table[key].shape == (12, *tensor.shape) and table[key].dtype == tensor.numpy_dtype, key


@pytest.mark.parametrize(("name", "scale"), [("flux-tiny", 1 / 1000), ("dit-tiny", 1.0), ("hunyuan-video-tiny", 1.0)])
def test_timesteps_are_the_samplers_scaled_for_the_model(
    bundles: Callable[..., Bundle], name: str, scale: float
) -> None:
    manifest = bundles(name).manifest
    timesteps = prepared_by(manifest)["timestep"]
    assert timesteps.dtype == np.float32
    np.testing.assert_allclose(timesteps, sampler_of(manifest).timesteps * scale, rtol=1e-6)
    assert (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"])
def test_prepare_is_told_a_number_a_step_for_what_is_no_condition(bundles: Callable[..., Bundle], name: str) -> None:
    manifest = bundles(name).manifest
    table = prepared_by(manifest)
    inputs = {spec.name for spec in manifest.graphs["prepare"].inputs}
    assert table.keys() == inputs - manifest.conditions.keys()
    assert {values.shape for values in table.values()} == {(12,)}


@pytest.mark.parametrize(("name", "factor"), [("flux-tiny", 1.0), ("hunyuan-video-tiny", 1000.0)])
def test_embedded_guidance_is_scaled_for_the_model(bundles: Callable[..., Bundle], name: str, factor: float) -> None:
    table = prepared_by(bundles(name).manifest, guidance=2.5)
    assert table["guidance"].tolist() == [2.5 * factor] * 12


def test_forecasts_have_their_coefficients_and_full_steps_none(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("flux-tiny").manifest
    table, plan = table_of(manifest), planned(manifest)
    assert "difference_scales" not in table
    for step, row in zip(plan, table["coefficients"], strict=True):
        np.testing.assert_array_equal(row, np.zeros(3) if step.is_full else step.numbers)
        assert row.any() == (not step.is_full)


def test_full_steps_have_their_difference_scales_and_forecasts_none(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("flux-tiny", "derivatives").manifest
    table, plan = table_of(manifest), planned(manifest)
    for step, scales, coefficients in zip(plan, table["difference_scales"], table["coefficients"], strict=True):
        np.testing.assert_array_equal(scales, step.numbers if step.is_full else np.zeros(2))
        np.testing.assert_array_equal(coefficients, np.zeros(3) if step.is_full else step.numbers)
    assert table["difference_scales"].any() and table["coefficients"].any()


def test_full_steps_have_their_fold_weights_and_forecasts_none(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("flux-tiny", "folded").manifest
    table, plan = table_of(manifest), planned(manifest)
    assert not table.keys() & {"coefficients", "difference_scales"}
    for step, weights in zip(plan, table["fold_weights"], strict=True):
        np.testing.assert_array_equal(weights, step.numbers if step.is_full else np.zeros(15))
    assert table["fold_weights"].any()


def test_every_step_full_folds_nothing(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("flux-tiny", "folded").manifest
    plan = plan_steps(CACHE, BuiltState.of_bundle(manifest), baseline=True)
    table = step_table(manifest, plan, sampler_of(manifest), guidance=1.0)
    assert len(table["fold_weights"]) == 12 and not table["fold_weights"].any()


def test_every_step_full_has_no_coefficients(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("flux-tiny").manifest
    plan = plan_steps(CACHE, BuiltState.of_bundle(manifest), baseline=True)
    table = step_table(manifest, plan, sampler_of(manifest), guidance=1.0)
    assert len(table["coefficients"]) == 12 and not table["coefficients"].any()


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny"])
def test_update_numbers_are_the_samplers_with_guidance_and_a_zero(bundles: Callable[..., Bundle], name: str) -> None:
    manifest = bundles(name).manifest
    numbers = table_of(manifest, guidance=4.5)["update_numbers"]
    np.testing.assert_array_equal(numbers[:, : UpdateNumber.GUIDANCE], sampler_of(manifest).updates)
    assert (numbers[:, UpdateNumber.GUIDANCE] == 4.5).all()  # unscaled: the factor is for the embedded one
    assert not numbers[:, UpdateNumber.ZERO].any()
    assert sampler_of(manifest).updates.shape[1] == UpdateNumber.GUIDANCE


def test_the_clip_is_given_where_the_graph_takes_one(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("dit-tiny").manifest
    update = manifest.graphs["update"]
    clip = TensorSpec(name="clip", role="clip", shape=(1,), dtype="float32")
    clipping = dataclasses.replace(
        manifest,
        pipeline=dataclasses.replace(manifest.pipeline, scheduler=CLIPPING),
        graphs={**manifest.graphs, "update": dataclasses.replace(update, inputs=(*update.inputs, clip))},
    )
    assert "clip" not in table_of(manifest)
    assert table_of(clipping)["clip"].tolist() == [[1.5]] * 12
