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

from taylorseer.bundle import Bundle
from taylorseer.commands.verify_plans import TOLERANCE, tensor_errors
from taylorseer.config import CacheConfig
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


def _changed(bundle: Bundle, folder: pathlib.Path, kind: str, change: Callable[[Any], Any]) -> Bundle:
    """Return the bundle with the weight and the bias of dit-tiny's last linear layer changed in one graph."""
    graph = bundle.manifest.graphs[kind]
    model = ir.load(bundle.path(graph.file))
    parameters = {name: model.graph.initializers[f"proj_out_2.{name}"] for name in ("weight", "bias")}
    for value in parameters.values():
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.tensor(change(tensor.numpy()).astype(tensor.numpy().dtype), name=value.name)
    (folder / "graphs").mkdir()
    ir.save(model, folder / graph.file, external_data="changed.data")
    others = {name: dataclasses.replace(spec, file=str(bundle.path(spec.file))) for name, spec in _others(bundle, kind)}
    return Bundle(folder, dataclasses.replace(bundle.manifest, graphs={**others, kind: graph}))


def _others(bundle: Bundle, kind: str) -> list[tuple[str, Any]]:
    return [(name, spec) for name, spec in bundle.manifest.graphs.items() if name != kind]
