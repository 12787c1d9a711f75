"""The update graph in ONNX Runtime: the samplers' arithmetic, DiTPipeline's guidance, a probe that misses nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from taylorseer.exporter.update import update_graph
from taylorseer.manifest import GraphSpec, PipelineSpec, TensorSpec, UpdateNumber
from taylorseer.runtime.samplers import Sampler, sampler_from_config

Floats = NDArray[np.float32]
RunModel = Callable[..., dict[str, NDArray[Any]]]

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DDIM = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "steps_offset": 0}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "flow": FLOW,
    "epsilon": {**DDIM, "clip_sample": False, "prediction_type": "epsilon"},
    "velocity": {**DDIM, "clip_sample": False, "prediction_type": "v_prediction"},
    "epsilon clipped": {**DDIM, "clip_sample": True, "prediction_type": "epsilon"},
    "velocity clipped": {**DDIM, "clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"},
}

PACKED, SPATIAL, CLIP = (6, 8), (3, 5, 5), (4, 2, 3, 5)
"""Latents of one image: tokens, channels first, and with frames."""

SAME_SUMS = 1e-6
"""The same float32 operations; only a fused multiply-add may round otherwise."""


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def update(latent: tuple[int, ...], prediction: tuple[int, ...], scheduler: dict[str, Any], guidance: str) -> ir.Model:
    """Return the graph for latents and predictions of these shapes, without the batch."""
    specs = (
        TensorSpec(name="hidden_states", role="latent", shape=("batch", *latent), dtype="float32"),
        TensorSpec(name="prediction", role="prediction", shape=("batch", *prediction), dtype="float32"),
    )
    pipeline = PipelineSpec(
        scheduler=scheduler,
        timestep_scale=1.0,
        latent="spatial",
        decoder="none",
        text="none",
        guidance=4.0,
        guidance_factor=1.0,
        guidance_mode=guidance,  # type: ignore[arg-type]
    )
    return update_graph(GraphSpec(file="", inputs=specs[:1], outputs=specs[1:]), pipeline)


def numbers(**values: float) -> Floats:
    """Return the update numbers, 0 unless given; lower-case names."""
    made = np.zeros(len(UpdateNumber), np.float32)
    for name, value in values.items():
        made[UpdateNumber[name.upper()]] = value
    return made


def numbers_of(sampler: Sampler, step: int) -> Floats:
    return np.append(sampler.updates[step], [0, 0]).astype(np.float32)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("shape", [PACKED, SPATIAL, CLIP], ids=["packed", "spatial", "clip"])
def test_every_step_is_the_samplers(run_model: RunModel, shape: tuple[int, ...], name: str) -> None:
    sampler, graph = sampler_from_config(SCHEDULERS[name], 12), update(shape, shape, SCHEDULERS[name], "embedded")
    latent, clipped = normal(2, *shape), 0
    for step in range(12):
        prediction = normal(2, *shape, seed=step + 1)
        given = {"latent": latent, "prediction": prediction, "update_numbers": numbers_of(sampler, step)}
        made = run_model(graph, given | {"clip": np.array([sampler.clip or 0], np.float32)})["next_latent"]
        _, _, _, from_latent, from_prediction = sampler.updates[step]
        clipped += np.sum(abs(from_latent * latent + from_prediction * prediction) > (sampler.clip or np.inf))
        latent = sampler.step(latent, prediction, step)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, latent, rtol=SAME_SUMS, atol=SAME_SUMS)
    assert (clipped > 0) == ("clipped" in name)  # and a limit that nothing reaches would prove nothing


@pytest.mark.parametrize(
    ("scheduler", "clips"),
    [
        (FLOW, False),
        (SCHEDULERS["epsilon"], False),
        (SCHEDULERS["epsilon clipped"], True),
        (DDIM, True),  # what diffusers' DDIMScheduler does unless it is told
    ],
)
def test_the_graph_clips_if_the_sampler_does(scheduler: dict[str, Any], clips: bool) -> None:
    graph = update(PACKED, PACKED, scheduler, "embedded").graph
    assert [value.name for value in graph.inputs] == ["latent", "prediction", "update_numbers", *["clip"] * clips]
    assert (sampler_from_config(scheduler, 10).clip is not None) == clips


def test_inputs_and_outputs_are_float32_of_the_models_batch() -> None:
    graph = update(SPATIAL, (6, 5, 5), SCHEDULERS["epsilon clipped"], "classifier-free").graph
    shapes = {str(value.name): list(value.shape or ()) for value in (*graph.inputs, *graph.outputs)}
    batch = next(size for size in shapes["latent"] if not isinstance(size, int))
    assert str(batch) == "batch"
    assert shapes == {
        "latent": [batch, 3, 5, 5],
        "prediction": [batch, 6, 5, 5],
        "update_numbers": [len(UpdateNumber)],
        "clip": [1],
        "next_latent": [batch, 3, 5, 5],
        "probe": [1],
    }
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {ir.DataType.FLOAT}


# Guidance


@pytest.mark.parametrize("rows", [2, 4, 6])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, -2.5])
def test_classifier_free_follows_dit_pipeline(run_model: RunModel, scale: float, rows: int) -> None:
    """DiTPipeline: eps, rest = noise_pred[:, :C], noise_pred[:, C:]; half_eps = uncond + scale * (cond - uncond)."""
    prediction = normal(rows, 6, 5, 5)
    conditional, unconditional = np.split(prediction[:, :3].astype(np.float64), 2)
    expected = unconditional + scale * (conditional - unconditional)
    guided = run_model(
        update(SPATIAL, (6, 5, 5), SCHEDULERS["epsilon"], "classifier-free"),
        {
            "latent": normal(rows, *SPATIAL, seed=1),
            "prediction": prediction,
            "update_numbers": numbers(prediction=1, guidance=scale),
        },
    )["next_latent"]
    assert guided.shape == (rows, *SPATIAL)
    np.testing.assert_allclose(guided, np.concatenate([expected, expected]), rtol=1e-6, atol=1e-5)


def test_a_scale_of_1_is_the_conditional_half_and_of_0_the_other(run_model: RunModel) -> None:
    prediction = np.concatenate([np.full((1, *SPATIAL), 5, np.float32), np.full((1, *SPATIAL), 7, np.float32)])
    graph = update(SPATIAL, SPATIAL, SCHEDULERS["epsilon"], "classifier-free")
    for scale, value in ((1, 5), (0, 7)):
        given = {"latent": np.zeros_like(prediction), "prediction": prediction}
        guided = run_model(graph, given | {"update_numbers": numbers(prediction=1, guidance=scale)})["next_latent"]
        assert (guided == value).all()


def test_both_halves_stay_one_latent(run_model: RunModel) -> None:
    """As long as they were one before: what the session writes twice stays the same twice."""
    latent, prediction = np.concatenate([normal(2, *SPATIAL)] * 2), normal(4, 6, 5, 5, seed=1)
    made = run_model(
        update(SPATIAL, (6, 5, 5), SCHEDULERS["epsilon clipped"], "classifier-free"),
        {
            "latent": latent,
            "prediction": prediction,
            "update_numbers": numbers(latent=0.9, prediction=-0.2, clean=0.3, clean_latent=2, guidance=4),
            "clip": np.array([0.5], np.float32),
        },
    )["next_latent"]
    np.testing.assert_array_equal(made[:2], made[2:])
    assert not np.array_equal(made[0], made[1])


@pytest.mark.parametrize("guidance", ["embedded", "none"])
@pytest.mark.parametrize("channels", [3, 6])
def test_without_classifier_free_guidance_only_a_learned_variance_is_left_out(
    run_model: RunModel, guidance: str, channels: int
) -> None:
    prediction = normal(3, channels, 5, 5)
    given = {"latent": normal(3, *SPATIAL, seed=1), "prediction": prediction}
    graph = update(SPATIAL, (channels, 5, 5), SCHEDULERS["epsilon"], guidance)
    made = run_model(graph, given | {"update_numbers": numbers(prediction=1, guidance=9)})["next_latent"]
    np.testing.assert_array_equal(made, prediction[:, :3])


def test_the_latent_that_was_read_is_left_as_it_was(run_model: RunModel) -> None:
    latent, prediction = normal(1, *PACKED), normal(1, *PACKED, seed=1)
    kept = latent.copy(), prediction.copy()
    given = {"latent": latent, "prediction": prediction, "update_numbers": numbers(latent=2, prediction=3)}
    made = run_model(update(PACKED, PACKED, FLOW, "embedded"), given)["next_latent"]
    np.testing.assert_allclose(made, 2 * kept[0] + 3 * kept[1], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(latent, kept[0])
    np.testing.assert_array_equal(prediction, kept[1])


# The probe


@pytest.mark.parametrize("size", [0.0, 1.0, 3e38])
def test_the_probe_of_finite_numbers_is_zero(run_model: RunModel, size: float) -> None:
    """Their sum may overflow, which is no reason to stop."""
    prediction = np.full((2, 6, 5, 5), size, np.float32)
    given = {"latent": normal(2, *SPATIAL), "prediction": prediction, "update_numbers": numbers(latent=1)}
    graph = update(SPATIAL, (6, 5, 5), SCHEDULERS["epsilon"], "classifier-free")
    assert run_model(graph, given)["probe"].tolist() == [0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("guidance", ["embedded", "classifier-free"])
def test_the_probe_sees_a_number_that_is_none_wherever_it_is(run_model: RunModel, guidance: str, value: float) -> None:
    """In the channels of a learned variance too, which the latent never shows."""
    graph = update(SPATIAL, (6, 5, 5), SCHEDULERS["epsilon"], guidance)
    for place in ((0, 0, 0, 0), (0, 2, 4, 4), (1, 0, 2, 3), (1, 3, 0, 0), (1, 5, 4, 4)):
        prediction = normal(2, 6, 5, 5)
        prediction[place] = value
        given = {"latent": normal(2, *SPATIAL), "prediction": prediction, "update_numbers": numbers(latent=1)}
        assert np.isnan(run_model(graph, given)["probe"]).all(), place


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"])
def test_the_bundles_own_graph_does_it_optimized(bundles: Any, run_graph: Any, name: str) -> None:
    """ONNX Runtime's optimizer must not take a multiplication by zero away."""
    bundle = bundles(name)
    specs = {spec.name: spec for spec in bundle.manifest.graphs["update"].inputs}
    rows = bundle.manifest.rows_per_image
    latent, prediction = (
        normal(rows, *(int(size) for size in specs[which].shape[1:]), seed=seed)
        for seed, which in enumerate(("latent", "prediction"))
    )
    tokens = latent.shape[1] if bundle.manifest.pipeline.latent == "packed" else None
    sampler = sampler_from_config(bundle.manifest.pipeline.scheduler, 10, tokens=tokens)
    given = {"latent": latent, "prediction": prediction, "update_numbers": numbers_of(sampler, 3)}
    given["update_numbers"][UpdateNumber.GUIDANCE] = 1  # the conditional half
    made = run_graph(bundle, "update", given)
    guided = np.concatenate([prediction[:1, : latent.shape[1]]] * rows)
    np.testing.assert_allclose(made["next_latent"], sampler.step(latent, guided, 3), rtol=SAME_SUMS, atol=SAME_SUMS)
    assert made["probe"] == 0
    prediction[-1, -1, ..., -1] = np.inf
    assert np.isnan(run_graph(bundle, "update", given)["probe"]).all()
