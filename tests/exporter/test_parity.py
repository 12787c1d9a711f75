"""The engines against torch: each graph alone, then whole loops, in which every step feeds the next."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import BundleError, CheckpointError, ScheduleError
from taylorseer.exporter.families import load_model
from taylorseer.exporter.parity import GraphWeights, TorchReference, load_parameters, reference_from_bundle
from taylorseer.manifest import Layout
from taylorseer.predictor import forecast_weights
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.samplers import Sampler, sampler_from_config
from taylorseer.runtime.session import LoadedModel

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

GRAPH_TOLERANCE = 1e-4
"""Sines and cosines of a timestep up to 1000, and of a guidance up to 6000, whose frequencies differ in the last bit,
differ by up to 6000 * 2^-24 = 3.6e-4; 6e-5 of that is left in the prediction (4e-7 when both are 0)."""

LOOP_TOLERANCE = 1e-3
"""The error of one graph, fed back 50 times; a loop with another schedule differs by more than ten times this."""

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny", "flux-emoji"]
LAYOUTS: list[Layout] = ["history", "derivatives"]


def relative_error(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


def preset(bundle: Bundle) -> CacheConfig:
    name = load_model(bundle.manifest.model).preset
    full_order = CacheConfig.from_preset(name)
    return dataclasses.replace(full_order, order=min(full_order.order, bundle.manifest.order))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_full_graph_predicts_what_torch_predicts(
    bundles: Any, run_graph: Any, request_inputs: Any, name: str, layout: Layout, batch: int
) -> None:
    bundle = bundles(name, layout)
    inputs = request_inputs(bundle, batch=batch)
    wanted = reference_from_bundle(bundle, preset(bundle)).predict(0, inputs)
    found = run_graph(bundle, "full", inputs)["prediction"]
    assert found.dtype == wanted.dtype == np.float32
    assert relative_error(found, wanted) <= GRAPH_TOLERANCE


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_forecast_graph_predicts_what_torch_predicts(
    bundles: Any, run_graph: Any, request_inputs: Any, name: str, order: int
) -> None:
    bundle = bundles(name)
    config = CacheConfig(order=order, full_steps=(0, 2, 3), steps=9)
    reference, weights = reference_from_bundle(bundle, config), forecast_weights(config.schedule(), order=order)
    state: Arrays = {}
    for slot, step in enumerate(config.schedule().full_steps):
        inputs = request_inputs(bundle, batch=2, seed=step, level=1 - step / 20)
        reference.predict(step, inputs)
        for output, value in run_graph(bundle, "full", inputs).items():
            state[f"state.{output.removeprefix('feature.')}.{slot}"] = value
    coefficients = np.array([weights[5].get(step, 0.0) for step in (0, 2, 3)], np.float32)
    inputs = request_inputs(bundle, batch=2, seed=5, level=0.75)
    found = run_graph(bundle, "forecast", inputs | state | {"coefficients": coefficients})["prediction"]
    wanted = reference.predict(5, inputs)
    assert relative_error(found, wanted) <= GRAPH_TOLERANCE
    # The forecast is no full step in disguise: the model's own answer at this step is far from it.
    assert relative_error(run_graph(bundle, "full", inputs)["prediction"], wanted) > 100 * GRAPH_TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_loop_of_50_steps_ends_where_torch_ends(bundles: Any, request_inputs: Any, name: str, layout: Layout) -> None:
    bundle = bundles(name, layout)
    config = preset(bundle)
    found = loop_of_engines(bundle, config, request_inputs)
    wanted = loop_of_torch(bundle, config, request_inputs)
    assert np.isfinite(wanted).all()
    assert relative_error(found, wanted) <= LOOP_TOLERANCE
    baseline = loop_of_engines(bundle, config, request_inputs, every_step_full=True)
    assert relative_error(baseline, wanted) > 10 * LOOP_TOLERANCE


def test_a_wrong_schedule_is_noticed(bundles: Any, request_inputs: Any) -> None:
    bundle = bundles("dit-tiny")
    right = CacheConfig(steps=20, interval=4, order=1, warmup_steps=2, derivatives_from=2)
    wanted = loop_of_torch(bundle, right, request_inputs)
    agreement = relative_error(loop_of_engines(bundle, right, request_inputs), wanted)
    assert agreement <= LOOP_TOLERANCE
    wrongs: list[dict[str, Any]] = [{"derivatives_from": 0}, {"order": 0}, {"interval": 5}]
    for wrong in wrongs:
        found = loop_of_engines(bundle, dataclasses.replace(right, **wrong), request_inputs)
        assert relative_error(found, wanted) > 20 * agreement, wrong


def test_a_reference_forgets_when_it_is_reset(bundles: Any, request_inputs: Any) -> None:
    bundle = bundles("dit-tiny")
    reference = reference_from_bundle(bundle, CacheConfig(order=2, full_steps=(0, 1, 2), steps=9))

    def third_forecast(seed: int) -> Floats:
        for step in range(3):
            reference.predict(step, request_inputs(bundle, seed=seed + step))
        return reference.predict(4, request_inputs(bundle, seed=99))

    first = third_forecast(0)
    assert not np.array_equal(third_forecast(50), first)
    reference.reset()
    assert np.array_equal(third_forecast(0), first)
    reference.reset()
    with pytest.raises(KeyError):
        reference.predict(4, request_inputs(bundle))


def test_the_reference_knows_only_the_official_recurrence(bundles: Any) -> None:
    with pytest.raises(ScheduleError, match="newton"):
        reference_from_bundle(bundles("dit-tiny"), CacheConfig(predictor="newton"))
    with pytest.raises(ScheduleError, match="lower-order"):
        reference_from_bundle(bundles("dit-tiny"), CacheConfig(guard="lower-order"))


def test_reuse_is_order_zero(bundles: Any, request_inputs: Any) -> None:
    bundle = bundles("dit-tiny")
    predictions = []
    for config in (CacheConfig(predictor="reuse", order=2), CacheConfig(order=0)):
        reference = reference_from_bundle(bundle, config)
        for step in range(3):
            reference.predict(step, request_inputs(bundle, seed=step))
        predictions.append(reference.predict(3, request_inputs(bundle, seed=3)))
    assert np.array_equal(predictions[0], predictions[1])


def test_weights_are_read_from_files_with_several_names(bundles: Any, copied: Any, tmp_path: pathlib.Path) -> None:
    linked = open_bundle(copied("dit-tiny"))
    os.link(linked.path("graphs/weights.data"), tmp_path / "another-name")
    found, wanted = (predict_once(bundle) for bundle in (linked, bundles("dit-tiny")))
    assert np.isfinite(found).all() and np.array_equal(found, wanted)


def predict_once(bundle: Bundle) -> Floats:
    reference = reference_from_bundle(bundle, CacheConfig())
    return reference.predict(0, reference.examples())


def edit(bundle: Bundle, change: Callable[[ir.Model], object]) -> None:
    path = bundle.path("graphs/full.onnx")
    model = ir.load(path)
    change(model)
    ir.save(model, path)


def rename(model: ir.Model, name: str) -> None:
    model.graph.initializers[name].name = "optimized"


NEEDED = "transformer_blocks.0.attn1.to_q.weight"


def test_an_imported_model_without_its_parameters_has_no_reference(copied: Any) -> None:
    bundle = open_bundle(copied("dit-tiny"))
    edit(bundle, lambda model: rename(model, NEEDED))
    imported = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, weights="onnx:dit.onnx"))
    message = r"needs every parameter as floats .* of '.*dit-tiny' lack \d+, '.*' among them: the model was quantized"
    with pytest.raises(CheckpointError, match=message):
        reference_from_bundle(imported, CacheConfig())


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"])
def test_parameters_that_no_prediction_depends_on_may_be_lacking(bundles: Any, name: str) -> None:
    bundle = bundles(name)
    imported = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, weights="onnx:x.onnx"))
    assert np.isfinite(predict_once(imported)).all()


def test_integers_and_other_shapes_are_no_parameters() -> None:
    module = torch.nn.Linear(2, 3)
    weights = {"weight": np.ones((3, 2), np.int8), "bias": np.ones((1, 3), np.float32)}
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in weights.items()]
    source = GraphWeights(ir.Graph([], [], nodes=[], initializers=values))
    assert source.shape("weight") is None
    assert load_parameters(module, source, torch.float32) == ["weight", "bias"]
    assert torch.isnan(module.weight).all() and torch.isnan(module.bias).all()


def test_a_bundle_without_weights_has_no_reference(bundles: Any) -> None:
    bundle = bundles("dit-tiny")
    bare = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, weights="none"))
    with pytest.raises(BundleError, match="graphs-only"):
        reference_from_bundle(bare, CacheConfig())


# Both loops: the same noise, conditions and NumPy sampler; what predicts is all that differs.


def loop_of_engines(
    bundle: Bundle, config: CacheConfig, request_inputs: Callable[..., Arrays], every_step_full: bool = False
) -> Floats:
    session = LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session()
    noise, conditions = request_of(bundle, request_inputs)
    latent: Floats = session.denoise(
        noise,
        conditions,
        sampler=sampler_of(bundle, config),
        cache=config,
        guidance=bundle.manifest.pipeline.guidance,
        every_step_full=every_step_full,
    ).latent
    return latent


def loop_of_torch(bundle: Bundle, config: CacheConfig, request_inputs: Callable[..., Arrays]) -> Floats:
    reference, sampler = reference_from_bundle(bundle, config), sampler_of(bundle, config)
    latent, conditions = request_of(bundle, request_inputs)
    for step in range(config.steps):
        values = conditions | inputs_of_step(bundle, sampler, latent, step)
        latent = sampler.step(latent, guided(bundle, reference, step, values), step)
    return latent


def request_of(bundle: Bundle, request_inputs: Callable[..., Arrays]) -> tuple[Floats, Arrays]:
    doubled = bundle.manifest.pipeline.guidance_mode == "classifier-free"
    inputs = request_inputs(bundle, batch=2 if doubled else 1)
    if doubled:
        inputs["class_labels"] = np.array([3, bundle.manifest.config["num_embeds_ada_norm"]])
    return inputs["hidden_states"][:1].copy(), {name: inputs[name] for name in bundle.manifest.conditions}


def sampler_of(bundle: Bundle, config: CacheConfig) -> Sampler:
    return sampler_from_config(bundle.manifest.pipeline.scheduler, config.steps)


def inputs_of_step(bundle: Bundle, sampler: Sampler, latent: Floats, step: int) -> Arrays:
    pipeline = bundle.manifest.pipeline
    rows = 2 if pipeline.guidance_mode == "classifier-free" else 1
    return {
        "hidden_states": np.concatenate([latent] * rows),
        "timestep": np.full(rows, sampler.timesteps[step] * pipeline.timestep_scale, np.float32),
        "guidance": np.full(rows, pipeline.guidance * pipeline.guidance_factor, np.float32),
    }


def guided(bundle: Bundle, reference: TorchReference, step: int, values: Mapping[str, npt.NDArray[Any]]) -> Floats:
    prediction = reference.predict(step, values)
    if bundle.manifest.pipeline.guidance_mode != "classifier-free":
        return prediction
    conditional, unconditional = prediction[:, : values["hidden_states"].shape[1]]
    mixed: Floats = unconditional + np.float32(bundle.manifest.pipeline.guidance) * (conditional - unconditional)
    return mixed[None]
