"""Whole exports: precisions, determinism, batches, refusals, and the published FLUX."""

import itertools
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle, draft_bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import CheckpointError
from taylorseer.exporter.checkpoints import Checkpoint
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export, split_model
from taylorseer.manifest import FoldingSpec, Role, TensorSpec
from taylorseer.manifest_json import manifest_from_json, manifest_to_json

TINY = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

DIT = load_model("dit-tiny")

SLOW = pytest.mark.skipif("TAYLORSEER_SLOW_TESTS" not in os.environ, reason="a minute; set TAYLORSEER_SLOW_TESTS=1")


def exported(folder: pathlib.Path, request: ExportRequest) -> Bundle:
    with draft_bundle(folder) as draft:
        return draft.commit(export(request, draft))


@pytest.mark.parametrize("name", TINY)
def test_the_manifest_says_what_was_built(bundles: Any, name: str) -> None:
    manifest, model = bundles(name).manifest, load_model(name)
    assert (manifest.model, manifest.family, manifest.precision) == (name, model.family, "fp32")
    assert (manifest.layout, manifest.order, manifest.weights) == ("history", 2, "random")
    assert manifest.pipeline == model.pipeline and manifest.config == model.config
    assert CacheConfig.from_json(manifest.cache) == CacheConfig.from_preset(model.preset, order=2)
    assert list(manifest.graphs) == ["prepare", "full", "forecast", "update"]
    for spec in manifest.graphs.values():
        graph = ir.load(bundles(name).path(spec.file)).graph
        assert [value.name for value in graph.inputs] == [tensor.name for tensor in spec.inputs]
        assert [value.name for value in graph.outputs] == [tensor.name for tensor in spec.outputs]


@pytest.mark.parametrize("name", TINY)
def test_the_graphs_do_not_tell_where_they_were_made(bundles: Any, name: str) -> None:
    for spec in bundles(name).manifest.graphs.values():
        text = bundles(name).path(spec.file).read_bytes()
        for secret in (b"site-packages", b".py", str(pathlib.Path.home()).encode() + b"/", b"stack_trace"):
            assert secret not in text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_and_state_are_of_the_precision_and_the_rest_is_float32(tmp_path: pathlib.Path, precision: str) -> None:
    request = ExportRequest(model=DIT, sizes=DIT.sizes, precision=precision, cache=CacheConfig(order=1))
    bundle = exported(tmp_path / "bundle", request)
    dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    for kind, spec in bundle.manifest.graphs.items():
        graph = ir.load(bundle.path(spec.file)).graph
        for tensor, value in zip((*spec.inputs, *spec.outputs), (*graph.inputs, *graph.outputs), strict=True):
            wanted = dtype if tensor.role in ("state", "feature", "prepared", "request") else "float32"
            assert tensor.dtype == ("int64" if tensor.name == "class_labels" else wanted), tensor
            assert value.dtype is not None and value.dtype.numpy().name == tensor.dtype
        weights = [v.const_value for v in graph.initializers.values() if re.search(r"\.(weight|bias)", str(v.name))]
        found = {weight.dtype.numpy().name for weight in weights if weight is not None}
        assert found == (set() if kind == "update" else {dtype}), kind
    names = [spec.name for spec in bundle.manifest.graphs["forecast"].inputs]
    state = [f"state.{feature.name}.{slot}" for feature in bundle.manifest.features for slot in range(2)]
    assert names == ["hidden_states", f"prepared.forecast.{dtype}", "coefficients", *state]
    assert {feature.dtype for feature in bundle.manifest.features} == {dtype}


EXPORT_AGAIN = """
import sys
from taylorseer.bundle import draft_bundle
from taylorseer.config import CacheConfig
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
model = load_model("flux-tiny")
cache = CacheConfig.from_preset(model.preset, order=2)
with draft_bundle(sys.argv[1]) as draft:
    draft.commit(export(ExportRequest(model=model, sizes=model.sizes, cache=cache), draft))
"""


def test_another_process_exports_the_same_bytes(bundles: Any, tmp_path: pathlib.Path) -> None:
    first = bundles("flux-tiny")
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", EXPORT_AGAIN, tmp_path / "again"], check=True, env=environment)
    assert len(first.manifest.files) == 5
    for name in first.manifest.files:
        assert (tmp_path / "again" / name).read_bytes() == first.path(name).read_bytes(), name


@pytest.mark.parametrize("name", TINY)
def test_an_image_does_not_depend_on_its_batch(bundles: Any, run_graph: Any, request_inputs: Any, name: str) -> None:
    bundle = bundles(name)
    coefficients = {"coefficients": np.array([2.5, -2.0, 0.5], np.float32)}
    alone: list[dict[str, Any]] = []
    for batch in (3, 1, 2):
        inputs = request_inputs(bundle, batch=batch)
        full = run_graph(bundle, "full", inputs)
        state = {
            f"state.{feature.name}.{slot}": full[f"feature.{feature.name}"] * np.float32(1 + slot / 8)
            for feature in bundle.manifest.features
            for slot in range(3)
        }
        forecast = run_graph(bundle, "forecast", inputs | state | coefficients)
        alone.append({"full": full["prediction"], "forecast": forecast["prediction"]})
    three, *others = alone
    for other in others:
        for kind, prediction in other.items():
            # Kernels block a larger batch differently, which moves the last bits.
            np.testing.assert_allclose(prediction, three[kind][: len(prediction)], rtol=1e-4, atol=1e-4)
        assert not np.allclose(three["full"][0], three["full"][1], atol=0.01)


def test_progress_ends_at_one_and_never_falls(tmp_path: pathlib.Path) -> None:
    seen: list[float] = []
    request = ExportRequest(model=DIT, sizes=DIT.sizes, cache=CacheConfig(order=1), graphs_only=True)
    with draft_bundle(tmp_path / "bundle") as draft:
        export(request, draft, lambda what, fraction: seen.append(fraction))
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("config", "message"), [({"cross": 1}, "no parameter"), ({"attention_head_dim": 32}, "this model needs")]
)
def test_weights_that_do_not_fit_the_config_are_refused(
    tmp_path: pathlib.Path, config: dict[str, int], message: str
) -> None:
    import diffusers  # the one test here that makes a model

    wanted = dict(DIT.config) | {"num_layers": 1}
    if "cross" in config:
        model = diffusers.DiTTransformer2DModel.from_config(wanted)
        wanted["num_layers"] = 2
    else:
        model = diffusers.DiTTransformer2DModel.from_config(wanted | config)
    model.save_pretrained(tmp_path / "checkpoint")
    checkpoint = Checkpoint(tmp_path / "checkpoint", DIT)
    checkpoint.config = wanted
    request = ExportRequest(model=DIT, sizes=DIT.sizes, cache=CacheConfig(order=1), checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=message):
        exported(tmp_path / "bundle", request)
    assert not (tmp_path / "bundle").exists()


def test_a_model_is_split_in_memory_too() -> None:
    request = ExportRequest(model=DIT, sizes=DIT.sizes, cache=CacheConfig(order=1), layout="derivatives")
    stages = split_model(request)
    assert len(stages.live) == 6 and not stages.dead
    assert all(value.const_value is not None for value in stages.forecast.graph.initializers.values())


def test_a_folded_export_says_what_is_folded_and_how(tmp_path: pathlib.Path) -> None:
    request = ExportRequest(
        model=DIT,
        sizes=DIT.sizes,
        cache=CacheConfig(order=1, interval=3),
        layout="folded",
        accumulators="bf16",
        flush_group=4,
        fold_form="chains",
        graphs_only=True,
    )
    manifest = exported(tmp_path / "bundle", request).manifest
    folding = folding_of(manifest_from_json(manifest_to_json(manifest)).folding)
    assert folding == manifest.folding
    assert (folding.accumulators, folding.carried) == (2 * 2, 1 * 2)  # order 1, two forecasts in a row
    assert (folding.shape, folding.dtype) == (("batch", 16, 32), "bfloat16")
    assert (folding.flush_group, folding.form, folding.gates) == (4, "chains", "prepared.gates.float32")
    assert [term.feature for term in folding.terms] == [feature.name for feature in manifest.features]
    assert manifest.layout == "folded" and "linear in its 6 features" in manifest.layout_reason
    full, forecast = manifest.graphs["full"], manifest.graphs["forecast"]
    assert [spec.index for spec in with_role(full.outputs, "accumulator")] == [0, 1, 2, 3]
    assert [spec.index for spec in with_role(full.inputs, "carried")] == [0, 1]
    (accumulator,) = with_role(forecast.inputs, "accumulator")
    parts = [*with_role(full.outputs, "accumulator"), *with_role(full.inputs, "carried"), accumulator]
    assert {(spec.shape, spec.dtype) for spec in parts} == {(folding.shape, folding.dtype)}
    assert accumulator.index is None
    (ahead,), (weights,) = (with_role(full.inputs, role) for role in ("gates_ahead", "fold_weights"))
    assert (ahead.shape, weights.shape) == ((4, "batch", 6 * 32), (4,))
    for spec in (*full.inputs, *full.outputs, *forecast.inputs):
        assert spec.role not in ("feature", "state", "coefficients", "previous")


def with_role(specs: Sequence[TensorSpec], role: Role) -> list[TensorSpec]:
    return [spec for spec in specs if spec.role == role]


def folding_of(folding: FoldingSpec | None) -> FoldingSpec:
    assert folding is not None
    return folding


def test_a_residual_in_float32_is_folded_without_a_rounding_of_the_sum() -> None:
    stages = split_model(
        ExportRequest(
            model=DIT, sizes=DIT.sizes, precision="bf16", residual="fp32", cache=CacheConfig(order=1), layout="folded"
        )
    )
    assert stages.folded is not None and len(stages.folded.proof.casts) == 6
    accumulator = next(value for value in stages.forecast.graph.inputs if value.name == "accumulator")
    ((addition, _),) = accumulator.uses()
    assert [value.dtype for value in (*addition.inputs, *addition.outputs) if value] == [ir.DataType.FLOAT] * 3
    assert stages.folded.spec(2).dtype == "float32"


def test_without_a_word_the_history_is_remembered(bundles: Any) -> None:
    manifest = bundles("dit-tiny").manifest
    assert (manifest.layout, manifest.folding, manifest.layout_reason) == ("history", None, "")


def test_the_published_flux_at_its_published_size(tmp_path: pathlib.Path) -> None:
    """FLUX.1-dev at 1024x1024 in bf16, without its 24 GB of weights: one slow export, seen four ways."""
    model = load_model("flux")
    request = ExportRequest(
        model=model, sizes=model.sizes, precision="bf16", cache=CacheConfig.from_preset("flux"), graphs_only=True
    )
    bundle = exported(tmp_path / "flux", request)
    assert bundle.manifest.weights == "none"
    assert set(bundle.manifest.files) == {f"graphs/{kind}.onnx" for kind in ("prepare", "full", "forecast", "update")}
    remembers_76_features_in_3_83_gigabytes(bundle)
    forecasts_without_a_weight_of_a_block(bundle.path("graphs/forecast.onnx"))
    refers_to_each_of_12_billion_parameters_once(bundle)
    prepares_what_6_4_gigabytes_of_modulations_make(bundle)


def test_the_published_dit_forecasts_with_little(tmp_path: pathlib.Path) -> None:
    """DiT-XL/2 at 256x256 in bf16: its modulations are a third of its weights, and a forecast has none of them."""
    model = load_model("dit")
    request = ExportRequest(
        model=model, sizes=model.sizes, precision="bf16", cache=CacheConfig.from_preset("dit"), graphs_only=True
    )
    bundle = exported(tmp_path / "dit", request)
    assert len(bundle.manifest.features) == 56
    assert 0 < weight_bytes(bundle.path("graphs/forecast.onnx")) <= 1_500_000
    for kind in ("full", "forecast"):
        names = weights(bundle.path(f"graphs/{kind}.onnx"))
        assert not [name for name in names if "norm1.emb" in name or "norm1.linear" in name or "proj_out_1" in name]
    modulations = [name for name in weights(bundle.path("graphs/prepare.onnx")) if "norm1.linear.weight" in name]
    assert len(modulations) == 28


def test_the_published_dit_folds_56_features(tmp_path: pathlib.Path) -> None:
    model = load_model("dit")
    cache = CacheConfig.from_preset("dit")
    request = ExportRequest(
        model=model, sizes=model.sizes, precision="bf16", cache=cache, layout="auto", graphs_only=True
    )
    bundle = exported(tmp_path / "dit", request)
    folds_all_for_what_the_schedule_needs(bundle, cache, 56)
    assert folding_of(bundle.manifest.folding).shape == ("batch", 256, 1152)
    assert 0 < weight_bytes(bundle.path("graphs/forecast.onnx")) <= 1_500_000
    for kind in ("full", "forecast"):
        names = weights(bundle.path(f"graphs/{kind}.onnx"))
        assert names
        assert not [name for name in names if "norm1.emb" in name or "norm1.linear" in name or "proj_out_1" in name]


@SLOW
def test_the_published_flux_folds_76_features(tmp_path: pathlib.Path) -> None:
    model, cache = load_model("flux"), CacheConfig.from_preset("flux")
    request = ExportRequest(
        model=model, sizes=model.sizes, precision="bf16", cache=cache, layout="auto", graphs_only=True
    )
    bundle = exported(tmp_path / "flux", request)
    folds_all_for_what_the_schedule_needs(bundle, cache, 76)
    assert folding_of(bundle.manifest.folding).shape == ("batch", 4096, 3072)
    assert folding_of(bundle.manifest.folding).flush_group == 12
    forecasts_without_a_weight_of_a_block(bundle.path("graphs/forecast.onnx"))
    refers_to_each_of_12_billion_parameters_once(bundle)
    tables = {spec.name: spec.shape[1] for spec in with_role(bundle.manifest.graphs["prepare"].outputs, "prepared")}
    assert (tables["prepared.gates.bfloat16"], tables["prepared.forecast.bfloat16"]) == (76 * 3072, 2 * 3072)


def folds_all_for_what_the_schedule_needs(bundle: Bundle, cache: CacheConfig, features: int) -> None:
    folding = folding_of(bundle.manifest.folding)
    assert bundle.manifest.layout == "folded"
    assert len(folding.terms) == len(bundle.manifest.features) == features
    assert folding.accumulators == (cache.order + 1) * (cache.interval - 1)
    assert folding.carried == cache.order * (cache.interval - 1)
    assert folding.dtype == "float32" and folding.gates == "prepared.gates.bfloat16"
    windows = with_role(bundle.manifest.graphs["full"].outputs, "accumulator")
    assert folding.form == "channels" and len(windows) == cache.order + 1  # each of them one tensor
    assert not with_role(bundle.manifest.graphs["full"].outputs, "feature")


def weights(path: pathlib.Path) -> dict[str, ir.ExternalTensor]:
    values = ir.load(path).graph.initializers.items()
    return {name: value.const_value for name, value in values if isinstance(value.const_value, ir.ExternalTensor)}


def weight_bytes(path: pathlib.Path) -> int:
    """Bytes of all initializers, those of the graph's own file too."""
    tensors = [value.const_value for value in ir.load(path).graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def remembers_76_features_in_3_83_gigabytes(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert len(manifest.features) == 19 * 2 + 38 and len(manifest.dead_features) == 19 * 2
    assert {feature.shape for feature in manifest.features} == {("batch", 4096, 3072)}
    state = [spec for spec in manifest.graphs["forecast"].inputs if spec.role == "state"]
    total = sum(2 * int(np.prod([1 if size == "batch" else int(size) for size in spec.shape])) for spec in state)
    assert len(state) == 2 * 76 and total == pytest.approx(3.83e9, rel=0.01)


def forecasts_without_a_weight_of_a_block(path: pathlib.Path) -> None:
    assert path.stat().st_size < 1_000_000
    names = {name.rpartition(".")[0] for name in weights(path)}
    assert names == {"x_embedder", "proj_out"}
    assert 0 < weight_bytes(path) <= 2_000_000
    assert "Softmax" not in {node.op_type for node in ir.load(path).graph}


def refers_to_each_of_12_billion_parameters_once(bundle: Bundle) -> None:
    prepare, full = (weights(bundle.path(f"graphs/{kind}.onnx")) for kind in ("prepare", "full"))
    assert prepare.keys().isdisjoint(full)
    tensors = [*prepare.values(), *full.values()]
    assert sum(int(np.prod(list(tensor.shape))) for tensor in tensors) == pytest.approx(11.9e9, rel=0.01)
    extents = sorted((tensor.offset or 0, (tensor.offset or 0) + int(tensor.length or 0)) for tensor in tensors)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(extents))


def prepares_what_6_4_gigabytes_of_modulations_make(bundle: Bundle) -> None:
    modulation = re.compile(r".*norm1\.linear.*|.*norm1_context\.linear.*|.*norm\.linear.*|norm_out\.linear.*")
    embedders = re.compile(r".*time_text_embed.*|.*context_embedder.*")
    for kind in ("full", "forecast"):
        names = weights(bundle.path(f"graphs/{kind}.onnx"))
        assert not [name for name in names if modulation.fullmatch(name) or embedders.fullmatch(name)], kind
    prepare = weights(bundle.path("graphs/prepare.onnx"))
    assert all(modulation.fullmatch(name) or embedders.fullmatch(name) for name in prepare)
    found = sum(tensor.nbytes for name, tensor in prepare.items() if modulation.fullmatch(name))
    # 6 modulations of each stream of a double block, 3 of a single block, 2 of the final layer.
    assert found == 2 * (19 * 2 * 6 + 38 * 3 + 2) * (3072 * 3072 + 3072)
    assert found == pytest.approx(6.4e9, rel=0.02)
    # What a step reads instead: a gate for each live feature; shift and scale of the final layer.
    tables = {spec.name: spec.shape for spec in bundle.manifest.graphs["prepare"].outputs if spec.role == "prepared"}
    assert tables["prepared.forecast.bfloat16"] == ("step_batch", (76 + 2) * 3072)
