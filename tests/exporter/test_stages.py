"""The split: nothing dead in a forecast, and the same numbers as with everything dead kept."""

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.errors import GraphError
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.features import find_features
from taylorseer.exporter.passes.slices import row_slice
from taylorseer.exporter.stages import split_stages

TINY = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]
WITH_TEXT = ["flux-tiny", "hunyuan-video-tiny"]

REQUEST_INPUTS = {
    "flux-tiny": {"hidden_states", "timestep", "guidance", "pooled_projections"},
    "hunyuan-video-tiny": {"hidden_states", "timestep", "guidance", "pooled_projections"},
    "dit-tiny": {"hidden_states", "timestep", "class_labels"},
}
"""No encoder_hidden_states and no encoder_attention_mask: at a forecast step no text is read."""

IMAGE_ROWS = {"flux-tiny": 8 * 6, "hunyuan-video-tiny": 3 * 4 * 6, "dit-tiny": 4 * 4}
"""Tokens of the image or clip, without those of the text."""


def parameters(model: ir.Model) -> dict[str, ir.Value]:
    """The weights and biases among the initializers: what has a module's name."""
    names = re.compile(r".*\.(weight|bias)(\[\d+:\d+\])?$")
    return {name: value for name, value in model.graph.initializers.items() if names.fullmatch(name)}


def forecast(bundle: Any) -> ir.Model:
    return ir.load(bundle.path("graphs/forecast.onnx"))


@pytest.mark.parametrize("name", TINY)
def test_a_forecast_takes_only_what_it_needs(bundles: Any, name: str) -> None:
    bundle = bundles(name)
    features = bundle.manifest.features
    state = {f"state.{feature.name}.{k}" for feature in features for k in range(bundle.manifest.order + 1)}
    found = {str(value.name) for value in forecast(bundle).graph.inputs}
    assert found == REQUEST_INPUTS[name] | {"coefficients"} | state


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
def test_a_forecast_has_no_block_weights_but_gates(bundles: Any, name: str) -> None:
    width, blocks = 32, re.compile(r"(?:single_)?transformer_blocks\.\d+\.(.*)")
    gates = set()
    for parameter, value in parameters(forecast(bundles(name))).items():
        assert "token_refiner" not in parameter and "context" not in parameter
        inside = blocks.fullmatch(parameter)
        if inside is None or inside[1].startswith("norm1.emb."):  # DiT embeds the timestep in every block
            continue
        narrow = re.fullmatch(r"(norm1?)\.linear\.(weight|bias)\[(\d+):(\d+)\]", inside[1])
        assert narrow is not None, parameter
        # Shift, scale, gate in this order, once or (attention, MLP) twice.
        part, start, stop = narrow[1], int(narrow[3]), int(narrow[4])
        assert stop - start == width and start in ((2 * width,) if part == "norm" else (2 * width, 5 * width))
        assert value.shape is not None and value.shape[0] == width
        gates.add(parameter)
    config = load_model(name).config
    double, single = config["num_layers"], config.get("num_single_layers", 0)
    assert len(gates) == 2 * (2 * double + single)  # weight and bias of two gates, or one


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
    bundles: Any, whole_model: Any, run_model: Any, request_inputs: Any, name: str
) -> None:
    model = whole_model(name)
    features = find_features(model.graph, FAMILIES[load_model(name).family].features)
    lean = split_stages(model, features, order=1, layout="history")
    kept = split_stages(model, features, order=1, layout="history", keep_dead=True)
    assert len(kept.live) == len(features) and not kept.dead
    assert {item.name for item in lean.live} | set(lean.dead) == {item.name for item in kept.live}
    random = np.random.default_rng(0)
    inputs = request_inputs(bundles(name), batch=2) | {"coefficients": np.array([1.75, -0.75], np.float32)}
    lean_rows = {item.name: item.rows for item in lean.live}
    for item in kept.live:
        for slot in range(2):
            whole = random.standard_normal([2, *item.shape[1:]]).astype(np.float32)  # type: ignore[list-item]
            inputs[f"state.{item.name}.{slot}"] = whole
    wanted = run_model(kept.forecast, inputs)["prediction"]
    for item in kept.live:
        if rows := lean_rows.get(item.name):
            for slot in range(2):
                key = f"state.{item.name}.{slot}"
                inputs[key] = np.ascontiguousarray(inputs[key][:, slice(*rows)])
    found = run_model(lean.forecast, inputs)["prediction"]
    assert np.array_equal(found, wanted)
    assert len(list(lean.forecast.graph)) < len(list(kept.forecast.graph)) or name == "dit-tiny"


@pytest.mark.parametrize("name", TINY)
def test_the_full_graph_yields_the_features_after_its_prediction(bundles: Any, name: str) -> None:
    for layout, kinds in (("history", ["feature.{}"]), ("derivatives", ["next.{}.0", "next.{}.1", "next.{}.2"])):
        manifest = bundles(name, layout).manifest
        wanted = [kind.format(feature.name) for feature in manifest.features for kind in kinds]
        assert [spec.name for spec in manifest.graphs["full"].outputs] == ["prediction", *wanted]


@pytest.mark.parametrize("name", TINY)
def test_both_layouts_share_one_forecast_graph(bundles: Any, name: str) -> None:
    texts = [bundles(name, layout).path("graphs/forecast.onnx").read_bytes() for layout in ("history", "derivatives")]
    assert texts[0] == texts[1]


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


def test_the_derivatives_layout_at_order_0_needs_no_previous(whole_model: Any) -> None:
    model = whole_model("dit-tiny")
    features = find_features(model.graph, FAMILIES["dit"].features)
    stages = split_stages(model, features, order=0, layout="derivatives")
    assert [str(value.name) for value in stages.full.graph.inputs] == ["hidden_states", "timestep", "class_labels"]
    assert str(stages.full.graph.outputs[1].name).startswith("next.")


def test_splitting_leaves_the_model_as_it_was(whole_model: Any) -> None:
    model = whole_model("dit-tiny")
    before = ir.to_proto(model).SerializeToString()
    split_stages(model, find_features(model.graph, FAMILIES["dit"].features), order=1, layout="history")
    assert ir.to_proto(model).SerializeToString() == before


def test_a_block_that_no_feature_cuts_is_refused(whole_model: Any) -> None:
    model = whole_model("dit-tiny")
    features = find_features(model.graph, ["transformer_blocks.*.ff"])
    with pytest.raises(GraphError, match="still computes attention"):
        split_stages(model, features, order=1, layout="history")


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


def test_a_product_of_a_block_that_no_feature_cuts_is_refused(whole_model: Any) -> None:
    model = whole_model("flux-tiny")
    patterns = [name for name in FAMILIES["flux"].features if name != "transformer_blocks.*.ff"]
    features = find_features(model.graph, patterns)
    with pytest.raises(GraphError, match=r"still computes a MatMul of 'transformer_blocks\.0'"):
        split_stages(model, features, order=1, layout="history")
