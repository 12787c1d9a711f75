"""The split: nothing dead in a forecast, and the same numbers as with everything dead kept."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.errors import GraphError
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.features import find_features
from taylorseer.exporter.passes.slices import row_slice
from taylorseer.exporter.stages import Stages, split_stages

TINY = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]
WITH_TEXT = ["flux-tiny", "hunyuan-video-tiny"]

WIDTH = 32
"""Of every tiny model."""

IMAGE_ROWS = {"flux-tiny": 8 * 6, "hunyuan-video-tiny": 3 * 4 * 6, "dit-tiny": 4 * 4}
"""Tokens of the image or clip, without those of the text."""

FORECAST_PARAMETERS = {
    "flux-tiny": {"x_embedder"},
    "hunyuan-video-tiny": {"x_embedder.proj"},
    "dit-tiny": {"pos_embed.proj", "proj_out_2"},
}
"""The modules with weights that a forecast runs: the embedder, and the final layer unless prepare modulates its weight
(tiny DiT has too few rows for that)."""

FINAL_NUMBERS = {"flux-tiny": 32 * 12 + 12, "hunyuan-video-tiny": 32 * 12 + 12, "dit-tiny": 2 * 32}
"""What prepare makes for the final layer: its modulated weight and bias, or shift and scale."""

NEVER_OF_THE_LATENT = re.compile(
    r"(single_)?transformer_blocks\.\d+\.(norm|norm1|norm1_context)\.(linear|emb)\..*"
    r"|(time_text_embed|context_embedder|norm_out\.linear|proj_out|proj_out_1)\..*"
)
"""Parameters of gates, shifts and scales, of what embeds time, guidance, classes and text, and of a final layer whose
weight is modulated."""

Split = Callable[..., Stages]


def parameters(model: ir.Model) -> dict[str, ir.Value]:
    """The weights and biases among the initializers: what has a module's name."""
    names = re.compile(r".*\.(weight|bias)(\[\d+:\d+\])?$")
    return {name: value for name, value in model.graph.initializers.items() if names.fullmatch(name)}


def stage(bundle: Any, kind: str) -> ir.Model:
    return ir.load(bundle.path(f"graphs/{kind}.onnx"))


def forecast(bundle: Any) -> ir.Model:
    return stage(bundle, "forecast")


@pytest.fixture
def split(roles: Any) -> Split:
    """Splits a whole tiny transformer, by its family's features or by those of ``patterns``."""

    def split_model(model: ir.Model, name: str, patterns: Sequence[str] | None = None, **options: Any) -> Stages:
        features = find_features(model.graph, patterns or FAMILIES[load_model(name).family].features)
        chosen: dict[str, Any] = {"order": 1, "layout": "history"} | options
        return split_stages(model, features, roles=roles(name), **chosen)

    return split_model


@pytest.mark.parametrize("name", TINY)
def test_a_forecast_takes_only_what_it_needs(bundles: Any, name: str) -> None:
    bundle = bundles(name)
    features = bundle.manifest.features
    state = {f"state.{feature.name}.{k}" for feature in features for k in range(bundle.manifest.order + 1)}
    inputs = {str(value.name): value for value in forecast(bundle).graph.inputs}
    assert inputs.keys() == {"hidden_states", "prepared.forecast.float32", "coefficients"} | state
    # A gate for each live feature; the final layer's; no text.
    wanted = [WIDTH * len(features) + FINAL_NUMBERS[name]]
    assert list(inputs["prepared.forecast.float32"].shape or ())[1:] == wanted


@pytest.mark.parametrize("name", TINY)
def test_a_full_step_takes_the_latent_and_what_was_prepared(bundles: Any, name: str) -> None:
    graphs = {kind: spec.inputs for kind, spec in bundles(name).manifest.graphs.items()}
    once = {spec.name for spec in bundles(name).manifest.graphs["prepare"].outputs if spec.role == "request"}
    tables = {"prepared.forecast.float32", "prepared.full.float32"}
    assert {spec.name for spec in graphs["full"]} == {"hidden_states"} | tables | once
    assert len(once) == (name == "flux-tiny")  # its text is embedded once; HunyuanVideo's depends on the timestep
    assert "hidden_states" not in {spec.name for spec in graphs["prepare"]}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_no_text_feature_and_no_text_row_is_remembered(bundles: Any, name: str) -> None:
    bundle = bundles(name)
    manifest, rows = bundle.manifest, IMAGE_ROWS[name]
    text = manifest.sizes["text_length"]
    assert not [f.name for f in manifest.features if "add_out" in f.name or "context" in f.name]
    assert {re.sub(r"\d+", "*", name, count=1) for name in manifest.dead_features} == {
        "transformer_blocks.*.attn.to_add_out",
        "transformer_blocks.*.ff_context",
    }
    image_first = manifest.family == "hunyuan-video"
    for feature in manifest.features:
        assert feature.shape == ("batch", rows, 32), feature
        cut = (0, rows) if image_first else (text, text + rows)
        assert feature.rows == (cut if feature.name.startswith("single") else None), feature


@pytest.mark.parametrize("name", TINY)
def test_a_forecast_has_the_weights_of_the_embedder_and_of_a_final_layer_as_it_is_alone(
    bundles: Any, name: str
) -> None:
    modules = FORECAST_PARAMETERS[name]
    wanted = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert parameters(forecast(bundles(name))).keys() == wanted


@pytest.mark.parametrize("name", TINY)
def test_each_parameter_is_either_prepares_or_the_full_graphs(bundles: Any, whole_model: Any, name: str) -> None:
    prepare, full = (parameters(stage(bundles(name), kind)) for kind in ("prepare", "full"))
    assert prepare.keys().isdisjoint(full)
    assert prepare.keys() | full.keys() == parameters(whole_model(name)).keys()
    assert [parameter for parameter in prepare if not NEVER_OF_THE_LATENT.fullmatch(parameter)] == []
    assert [parameter for parameter in full if NEVER_OF_THE_LATENT.fullmatch(parameter)] == []


@pytest.mark.parametrize("name", TINY)
def test_a_forecast_computes_nothing_of_a_block_over_tokens(bundles: Any, name: str) -> None:
    graph = forecast(bundles(name)).graph
    assert not {"Softmax", "Attention", "Gelu", "Tanh"} & {node.op_type for node in graph}
    rows = IMAGE_ROWS[name]
    for node in graph:
        for value in node.outputs:
            # Products over tokens: the embedder and the final layer.
            if node.op_type in ("MatMul", "Gemm", "Conv") and value.shape is not None and rows in list(value.shape):
                scopes = node.metadata_props["pkg.torch.onnx.name_scopes"]
                assert "transformer_blocks" not in scopes, scopes


@pytest.mark.parametrize("name", TINY)
def test_dropping_the_dead_changes_a_forecast_by_exactly_nothing(
    bundles: Any, whole_model: Any, run_model: Any, request_inputs: Any, split: Split, name: str
) -> None:
    model = whole_model(name)
    lean, kept = split(model, name), split(model, name, keep_dead=True)
    assert len(kept.live) == len(find_features(model.graph, FAMILIES[load_model(name).family].features))
    assert not kept.dead
    assert {item.name for item in lean.live} | set(lean.dead) == {item.name for item in kept.live}
    random = np.random.default_rng(0)
    inputs = request_inputs(bundles(name), batch=2) | {"coefficients": np.array([1.75, -0.75], np.float32)}
    lean_rows = {item.name: item.rows for item in lean.live}
    for item in kept.live:
        for slot in range(2):
            whole = random.standard_normal([2, *item.shape[1:]]).astype(np.float32)  # type: ignore[list-item]
            inputs[f"state.{item.name}.{slot}"] = whole
    wanted = run_forecast(run_model, kept, inputs)
    for item in kept.live:
        if rows := lean_rows.get(item.name):
            for slot in range(2):
                key = f"state.{item.name}.{slot}"
                inputs[key] = np.ascontiguousarray(inputs[key][:, slice(*rows)])
    found = run_forecast(run_model, lean, inputs)
    assert np.array_equal(found, wanted)
    assert len(list(lean.forecast.graph)) < len(list(kept.forecast.graph)) or name == "dit-tiny"


def run_forecast(run_model: Any, stages: Stages, inputs: Mapping[str, Any]) -> Any:
    return run_model(stages.forecast, {**inputs, **run_model(stages.prepare, inputs)})["prediction"]


@pytest.mark.parametrize("name", TINY)
def test_the_full_graph_yields_the_features_after_its_prediction(bundles: Any, name: str) -> None:
    for layout, kinds in (("history", ["feature.{}"]), ("derivatives", ["next.{}.0", "next.{}.1", "next.{}.2"])):
        manifest = bundles(name, layout).manifest
        wanted = [kind.format(feature.name) for feature in manifest.features for kind in kinds]
        assert [spec.name for spec in manifest.graphs["full"].outputs] == ["prediction", *wanted]


@pytest.mark.parametrize("name", TINY)
def test_both_layouts_share_what_is_not_full(bundles: Any, name: str) -> None:
    history, derivatives = bundles(name), bundles(name, "derivatives")
    for kind in ("prepare", "forecast"):
        texts = [bundle.path(f"graphs/{kind}.onnx").read_bytes() for bundle in (history, derivatives)]
        assert texts[0] == texts[1], kind


def test_the_derivatives_follow_the_recurrence(bundles: Any, run_graph: Any, request_inputs: Any) -> None:
    history, derivatives = bundles("flux-tiny"), bundles("flux-tiny", "derivatives")
    inputs, random = request_inputs(derivatives), np.random.default_rng(0)
    inputs["difference_scales"] = np.array([0.5, 0.25], np.float32)
    for name in inputs:
        if name.startswith("previous."):
            inputs[name] = random.standard_normal(inputs[name].shape).astype(np.float32)
    found = run_graph(derivatives, "full", inputs)
    features = run_graph(history, "full", inputs)
    for feature in derivatives.manifest.features:
        zeroth = features[f"feature.{feature.name}"]
        first = (zeroth - inputs[f"previous.{feature.name}.0"]) * np.float32(0.5)
        second = (first - inputs[f"previous.{feature.name}.1"]) * np.float32(0.25)
        for index, wanted in enumerate((zeroth, first, second)):
            # The same operations; only the optimizer's choice of kernels for the feature itself differs.
            np.testing.assert_allclose(found[f"next.{feature.name}.{index}"], wanted, rtol=0, atol=1e-4)


def test_the_derivatives_layout_at_order_0_needs_no_previous(whole_model: Any, split: Split) -> None:
    stages = split(whole_model("dit-tiny"), "dit-tiny", order=0, layout="derivatives")
    tables = ["prepared.forecast.float32", "prepared.full.float32"]
    assert [str(value.name) for value in stages.full.graph.inputs] == ["hidden_states", *tables]
    assert str(stages.full.graph.outputs[1].name).startswith("next.")


def test_splitting_leaves_the_model_as_it_was(whole_model: Any, split: Split) -> None:
    model = whole_model("dit-tiny")
    before = ir.to_proto(model).SerializeToString()
    split(model, "dit-tiny")
    assert ir.to_proto(model).SerializeToString() == before


def test_a_block_that_no_feature_cuts_is_refused(whole_model: Any, split: Split) -> None:
    with pytest.raises(GraphError, match="still computes attention"):
        split(whole_model("dit-tiny"), "dit-tiny", ["transformer_blocks.*.ff"])


def test_row_slices_of_features_are_static(bundles: Any) -> None:
    full = ir.load(bundles("flux-tiny").path("graphs/full.onnx"))
    singles = [f for f in bundles("flux-tiny").manifest.features if f.rows]
    outputs = {str(value.name): value for value in full.graph.outputs}
    for feature in singles:
        # The slice itself is the output: what is remembered is written once, where it stays.
        producer = outputs[f"feature.{feature.name}"].producer()
        assert producer is not None
        cut = row_slice(producer)
        assert cut is not None and (cut.axis, (cut.start, cut.stop)) == (1, feature.rows)


def test_a_product_of_a_block_that_no_feature_cuts_is_refused(whole_model: Any, split: Split) -> None:
    patterns = [name for name in FAMILIES["flux"].features if name != "transformer_blocks.*.ff"]
    with pytest.raises(GraphError, match=r"still computes a MatMul of 'transformer_blocks\.0'"):
        split(whole_model("flux-tiny"), "flux-tiny", patterns)
