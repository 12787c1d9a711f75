"""Plans against ONNX Runtime: sound engines are within the tolerance, one of other weights is not, NaN is said."""

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.accumulators import accumulators_of
from taylorseer.bundle import Bundle
from taylorseer.commands import verify_plans
from taylorseer.commands.verify_plans import TOLERANCE, PlanComparison, compared_steps, tensor_errors
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import DependencyError
from taylorseer.runtime.generation import random_conditions, sampler_for
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.session import LoadedModel, Session

Bundles = Callable[..., Bundle]

KINDS = ("prepare", "full", "forecast", "update")

pytest.importorskip("polygraphy")


def session_after_a_request(bundle: Bundle) -> Session:
    session = LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session()
    session.denoise(
        initial_noise(session.latent_shape, 0),
        random_conditions(session.manifest, 0),
        sampler=sampler_for(session, 20),
        cache=CacheConfig.from_json(bundle.manifest.cache | {"steps": 20}),
        guidance=bundle.manifest.pipeline.guidance,
    )
    return session


def denoise(session: Session, after_step: Callable[[int], None]) -> Any:
    config = CacheConfig.from_json(session.manifest.cache)
    return session.denoise(
        initial_noise(session.latent_shape, 0),
        random_conditions(session.manifest, 0),
        sampler=sampler_for(session, config.steps),
        cache=config,
        guidance=session.manifest.pipeline.guidance,
        on_step=lambda step, full: after_step(step),
    ).latent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "precision"), [("dit-tiny", "fp16"), ("flux-tiny", "fp16"), ("dit-tiny", "fp32")])
def test_every_output_of_a_sound_engine_is_within_the_tolerance(
    bundles: Bundles, name: str, precision: str, kind: str
) -> None:
    bundle = bundles(name, precision=precision)
    with session_after_a_request(bundle) as session:
        errors = tensor_errors(session, bundle, kind)
    assert set(errors) == {spec.name for spec in bundle.manifest.graphs[kind].outputs}
    assert all(0 <= error < TOLERANCE[precision] for error in errors.values()), errors


def test_rounding_shows(bundles: Bundles) -> None:
    """Features of a full step are float16: against float32 they cannot be without error."""
    bundle = bundles("dit-tiny", precision="fp16")
    with session_after_a_request(bundle) as session:
        errors = tensor_errors(session, bundle, "full")
    features = [spec.name for spec in bundle.manifest.graphs["full"].outputs if spec.role in ("feature", "state")]
    assert features and all(errors[name] > 2.0**-16 for name in features)


def test_the_error_is_the_norm_of_the_difference_over_the_norm(bundles: Bundles, tmp_path: pathlib.Path) -> None:
    """An engine whose prediction is 1 % larger than it should be."""
    bundle = bundles("dit-tiny")
    changed = _changed(bundle, tmp_path, "full", lambda values: values * np.float32(1.01))
    with session_after_a_request(changed) as session:
        prediction = next(spec.name for spec in bundle.manifest.graphs["full"].outputs if spec.role == "prediction")
        assert tensor_errors(session, bundle, "full")[prediction] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_an_engine_of_other_weights(bundles: Bundles, tmp_path: pathlib.Path, precision: str) -> None:
    bundle = bundles("dit-tiny", precision=precision)
    changed = _changed(bundle, tmp_path, "full", lambda values: np.roll(values, 1, axis=0))
    with session_after_a_request(changed) as session:
        errors = tensor_errors(session, bundle, "full")
    prediction = next(spec.name for spec in bundle.manifest.graphs["full"].outputs if spec.role == "prediction")
    assert errors.pop(prediction) > 10 * TOLERANCE[precision]
    assert all(error < TOLERANCE[precision] for error in errors.values()), "the features come before that weight"


@pytest.mark.parametrize(
    ("preset", "steps"), [("flux", (38, 39)), ("hunyuan-video", (40, 41)), ("dit", (29, 30)), ("hidream", (36, 37))]
)
def test_the_compared_full_step_has_something_for_every_accumulator(preset: str, steps: tuple[int, int]) -> None:
    config = PRESETS[preset]
    full, forecast = compared_steps(config)
    users = [step for step, row in config.weights().items() if row.get(full)]
    assert (full, forecast) == steps
    assert len(users) == accumulators_of(config.schedule(), config.order).count
    assert forecast == users[0] == full + 1


@pytest.mark.parametrize(("layout", "precision"), [("history", "fp16"), ("derivatives", "fp16"), ("folded", "fp32")])
@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny"])
def test_a_comparison_within_a_loop(bundles: Bundles, name: str, layout: str, precision: str) -> None:
    """Of every plan, with errors of rounding alone; and the loop goes on as if nothing had been compared."""
    bundle = bundles(name, layout, precision=precision)
    with LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session() as session:
        plans = PlanComparison(session, bundle, CacheConfig.from_json(bundle.manifest.cache))
        compared = denoise(session, plans.after_step)
        undisturbed = denoise(session, lambda step: None)
    assert set(plans.errors) == set(KINDS)
    worst = {kind: max(errors.values()) for kind, errors in plans.errors.items()}
    assert all(0 <= error < TOLERANCE[precision] for error in worst.values()), worst
    assert precision == "fp32" or min(worst["full"], worst["forecast"]) > 0
    assert np.array_equal(compared, undisturbed)


def test_the_reference_reads_what_the_graph_rounds_its_input_to(bundles: Bundles, tmp_path: pathlib.Path) -> None:
    """A prediction of ``latent - 1``: what the cast to float16 does to a latent near 1 is two thirds of it."""
    bundle = bundles("flux-tiny", precision="fp16")
    changed = _predicting_the_latent_less_one(bundle, tmp_path)
    with session_after_a_request(changed) as session:
        tensors = session.tensors("full")
        inputs = {s.name: tensors[s.name].read().astype(np.float32) for s in bundle.manifest.graphs["full"].inputs}
    inputs["hidden_states"] = np.full_like(inputs["hidden_states"], 1 + 0.6 * 2.0**-10)
    prediction = verify_plans._reference(changed, "full", inputs)["prediction"]
    assert np.unique(prediction).tolist() == [2.0**-10]


def test_nan_is_said(bundles: Bundles) -> None:
    bundle = bundles("dit-tiny", precision="fp16")
    with session_after_a_request(bundle) as session:
        latent = next(spec.name for spec in bundle.manifest.graphs["full"].inputs if spec.role == "latent")
        buffer = session.tensors("full")[latent]
        buffer.write(np.full(buffer.shape, np.nan, np.float32))
        errors = tensor_errors(session, bundle, "full")
    assert all(math.isnan(error) for error in errors.values())


def test_nothing_is_printed(bundles: Bundles, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is that of the command, which may be JSON."""
    bundle = bundles("dit-tiny")
    with session_after_a_request(bundle) as session:
        capfd.readouterr()
        tensor_errors(session, bundle, "forecast")
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.parametrize(("library", "remedy"), [("polygraphy.comparator", "polygraphy"), ("onnx_ir", "export")])
def test_what_is_missing_is_named(bundles: Bundles, monkeypatch: pytest.MonkeyPatch, library: str, remedy: str) -> None:
    bundle = bundles("dit-tiny")
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    with session_after_a_request(bundle) as session:
        monkeypatch.setitem(modules, library, None)
        with pytest.raises(DependencyError, match=rf"^Comparing plans needs .*pip install .*{remedy}"):
            tensor_errors(session, bundle, "full")


def _predicting_the_latent_less_one(bundle: Bundle, folder: pathlib.Path) -> Bundle:
    graph = bundle.manifest.graphs["full"]
    model = ir.load(bundle.path(graph.file))
    cast = next(node for node in model.graph if node.op_type == "Cast" and node.inputs[0] is model.graph.inputs[0])
    one = ir.Value(name="one", const_value=ir.tensor(np.float16(1), name="one"))
    model.graph.register_initializer(one)
    less = ir.node("Sub", [cast.outputs[0], one])
    wide = ir.node("Cast", less.outputs, attributes={"to": int(ir.DataType.FLOAT)})
    index = [value.name for value in model.graph.outputs].index("prediction")
    before = model.graph.outputs[index]
    before.name, wide.outputs[0].name = "before", "prediction"
    less.outputs[0].type, wide.outputs[0].type = cast.outputs[0].type, before.type
    less.outputs[0].shape, wide.outputs[0].shape = before.shape, before.shape
    model.graph.extend([less, wide])
    model.graph.outputs[index] = wide.outputs[0]
    return _with_graph(bundle, folder, "full", model)


def _with_graph(bundle: Bundle, folder: pathlib.Path, kind: str, model: ir.Model) -> Bundle:
    (folder / "graphs").mkdir()
    graph = bundle.manifest.graphs[kind]
    ir.save(ir.external_data.load_to_model(model), folder / graph.file)
    others = {name: dataclasses.replace(spec, file=str(bundle.path(spec.file))) for name, spec in _others(bundle, kind)}
    return Bundle(folder, dataclasses.replace(bundle.manifest, graphs={**others, kind: graph}))


def _changed(bundle: Bundle, folder: pathlib.Path, kind: str, change: Callable[[Any], Any]) -> Bundle:
    """Return the bundle with the weight and the bias of dit-tiny's last linear layer changed in one graph."""
    graph = bundle.manifest.graphs[kind]
    model = ir.load(bundle.path(graph.file))
    parameters = {name: model.graph.initializers[f"proj_out_2.{name}"] for name in ("weight", "bias")}
    for value in parameters.values():
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.tensor(change(tensor.numpy()).astype(tensor.numpy().dtype), name=value.name)
    return _with_graph(bundle, folder, kind, model)


def _others(bundle: Bundle, kind: str) -> list[tuple[str, Any]]:
    return [(name, spec) for name, spec in bundle.manifest.graphs.items() if name != kind]
