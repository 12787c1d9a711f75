"""The proof on whole transformers: accepted as they are, refused as soon as one node is not of the form."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.config import CacheConfig
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.features import find_features
from taylorseer.exporter.folding import Folding, Refusal, prove_foldable
from taylorseer.exporter.passes.cleaning import drop_unused
from taylorseer.exporter.passes.slices import push_slices_up
from taylorseer.exporter.passes.wide_residual import widen_residual
from taylorseer.exporter.passes.widen import widen
from taylorseer.exporter.prepare import find_boundary, take_inputs
from taylorseer.exporter.stages import _cut_features
from taylorseer.exporter.workflow import ExportRequest, traced_model
from taylorseer.manifest import Role

TINY = {"flux-tiny": 7, "dit-tiny": 6, "hunyuan-video-tiny": 6}
"""Live features of each: two for each double or DiT block, one for each single block."""

PUBLISHED = {"flux": 76, "hunyuan-video": 80, "dit": 56}

SLOW = pytest.mark.skipif("TAYLORSEER_SLOW_TESTS" not in os.environ, reason="a minute; set TAYLORSEER_SLOW_TESTS=1")

STREAMS = {"flux-tiny": 48, "dit-tiny": 16, "hunyuan-video-tiny": 72}
"""Rows of the image or clip."""

TEXT_ROWS = 5
"""Of flux-tiny, which come before the image's."""

Cut = tuple[ir.Model, dict[str, str]]


def cut(model: ir.Model, name: str, roles: dict[str, Role], *, push: bool = True) -> Cut:
    """The forecast graph with an input for each live feature, as the split makes it, and the features' names."""
    features = find_features(model.graph, FAMILIES[load_model(name).family].features)
    forecast = model.clone()
    take_inputs(forecast, find_boundary(model, roles, [feature.name for feature in features]))
    placeholders = _cut_features(forecast, [feature.value.name for feature in features])
    if push:
        push_slices_up(forecast)
        drop_unused(forecast)
        for placeholder in placeholders:
            placeholder.narrow()
    named = {str(feature.value.name): feature.name for feature in features}
    return forecast, {str(p.value.name): named[p.source] for p in placeholders if p.value.uses()}


@functools.cache
def traced(name: str, precision: str) -> ir.Model:
    """The whole transformer without its weights; clone it before changing it."""
    model = load_model(name)
    request = ExportRequest(model=model, sizes=model.sizes, precision=precision, cache=CacheConfig(), graphs_only=True)
    return traced_model(request)[0]


def folded(forecast: ir.Model, features: dict[str, str]) -> Folding:
    found = prove_foldable(forecast, features)
    assert isinstance(found, Folding), found
    return found


def refused(forecast: ir.Model, features: dict[str, str]) -> str:
    found = prove_foldable(forecast, features)
    assert isinstance(found, Refusal), found
    return found.reason


def assert_sum_is_the_stream(run_model: Any, forecast: ir.Model, features: dict[str, str]) -> None:
    """Compare the proven sum, in float64, with what the graph computes."""
    folding, random, inputs = folded(forecast, features), np.random.default_rng(0), {}
    for value in forecast.graph.inputs:
        shape = [size if isinstance(size, int) else 2 for size in value.shape or ()]
        inputs[str(value.name)] = random.standard_normal(shape).astype(np.float32)
    made = {str(value.name): value for node in forecast.graph for value in node.outputs}
    forecast.graph.outputs.extend([made[folding.stream], made[folding.embed]])
    found = inputs | run_model(forecast, inputs)
    total = found[folding.embed][:, slice(*folding.embed_rows)].astype(np.float64)
    value_of = {feature: value for value, feature in features.items()}
    for term in folding.terms:
        part = found[value_of[term.feature]][:, slice(*term.feature_rows)].astype(np.float64)
        for gate in term.gates:
            part = part * found[gate]
        total[:, slice(*term.rows)] += part
    # Fewer than ten sums of numbers below 40, each rounded to a 24 bit significand.
    np.testing.assert_allclose(found[folding.stream], total, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_foldable(whole_model: Any, roles: Any, name: str) -> None:
    forecast, features = cut(whole_model(name), name, roles(name))
    folding = folded(forecast, features)
    whole = (0, STREAMS[name])
    assert [term.feature for term in folding.terms] == list(features.values())
    assert len(folding.terms) == TINY[name]
    assert {(term.rows, term.feature_rows) for term in folding.terms} == {(whole, whole)}
    assert folding.embed_rows == whole
    assert folding.casts == ()
    gates = [gate for term in folding.terms for gate in term.gates]
    assert len(set(gates)) == TINY[name]
    assert all(gate.startswith("prepared.") for gate in gates)


@pytest.mark.parametrize("name", TINY)
def test_the_stream_is_what_the_final_norm_reads(whole_model: Any, roles: Any, name: str) -> None:
    forecast, features = cut(whole_model(name), name, roles(name))
    (norm,) = (node for node in forecast.graph if node.op_type == "LayerNormalization")
    assert norm.inputs[0] is not None
    assert folded(forecast, features).stream == norm.inputs[0].name


@pytest.mark.parametrize("name", TINY)
def test_the_sum_of_embedding_and_terms_is_the_stream(run_model: Any, whole_model: Any, roles: Any, name: str) -> None:
    assert_sum_is_the_stream(run_model, *cut(whole_model(name), name, roles(name)))


def test_rows_that_are_cut_at_the_end_alone_are_the_terms_rows(run_model: Any, whole_model: Any, roles: Any) -> None:
    name = "flux-tiny"
    pushed = folded(*cut(whole_model(name), name, roles(name)))
    forecast, features = cut(whole_model(name), name, roles(name), push=False)
    live = {
        value: feature for value, feature in features.items() if "add_out" not in feature and "context" not in feature
    }
    folding = folded(forecast, live)
    assert [(term.feature, term.gates) for term in folding.terms] == [(t.feature, t.gates) for t in pushed.terms]
    for term in folding.terms:
        start = TEXT_ROWS if term.feature.startswith("single") else 0
        assert (term.rows, term.feature_rows) == ((0, 48), (start, start + 48)), term
    assert_sum_is_the_stream(run_model, forecast, live)


def test_features_of_the_text_never_reach_the_prediction(whole_model: Any, roles: Any) -> None:
    forecast, features = cut(whole_model("flux-tiny"), "flux-tiny", roles("flux-tiny"))
    reason = refused(forecast, {**features, "forecast.text": "transformer_blocks.0.ff_context"})
    assert "'transformer_blocks.0.ff_context' never reaches the prediction" in reason


@pytest.mark.parametrize("name", TINY)
def test_every_family_is_foldable_in_bfloat16(roles: Any, name: str) -> None:
    folding = folded(*cut(traced(name, "bf16"), name, roles(name)))
    assert (len(folding.terms), folding.casts) == (TINY[name], ())


def test_a_residual_in_float32_is_foldable_and_its_casts_are_reported(roles: Any) -> None:
    name, model = "flux-tiny", traced("flux-tiny", "bf16").clone()
    features = find_features(model.graph, FAMILIES["flux"].features)
    widen_residual(model, [feature.value for feature in features])
    forecast, live = cut(model, name, roles(name))
    folding = folded(forecast, live)
    types = {str(value.name): value.dtype for node in forecast.graph for value in node.outputs}
    assert types[folding.stream] == ir.DataType.FLOAT  # not its rounded copy that the final norm reads
    assert len(folding.casts) == TINY[name]


def test_float16_flux_is_refused_for_its_clip_and_told_what_to_do(roles: Any) -> None:
    reason = refused(*cut(traced("flux-tiny", "fp16"), "flux-tiny", roles("flux-tiny")))
    assert "between the additions, with" in reason
    assert "a clip to the range of float16 is not linear; use --precision bf16" in reason


def test_the_clip_of_float16_is_refused_in_float32_too(roles: Any) -> None:
    forecast, features = cut(traced("flux-tiny", "fp16"), "flux-tiny", roles("flux-tiny"))
    widen(forecast)
    assert "a clip to the range of float16 is not linear" in refused(forecast, features)


@pytest.mark.parametrize("name", ["dit", "flux", pytest.param("hunyuan-video", marks=SLOW)])
def test_the_published_sizes_are_foldable(roles: Any, name: str) -> None:
    folding = folded(*cut(traced(name, "bf16"), name, roles(name)))
    assert len(folding.terms) == PUBLISHED[name]
    assert {len(term.gates) for term in folding.terms} == {1}
    assert {term.rows for term in folding.terms} == {folding.embed_rows}


Change = Callable[[ir.Graph, ir.Value, ir.Value], ir.Node]
"""Makes a node that takes the place of a value, given a prepared value to go with it."""

ON_THE_STREAM: dict[str, tuple[Change, str]] = {
    "a norm": (
        lambda graph, value, gate: ir.node("LpNormalization", [value], attributes={"axis": -1}),
        "LpNormalization is not linear in it",
    ),
    "a gate": (lambda graph, value, gate: ir.node("Mul", [value, gate]), "it scales the residual itself"),
    "a gate of the latent": (
        lambda graph, value, gate: ir.node("Mul", [value, embedded(graph)]),
        "reads the latent, and gates have to be known before",
    ),
    "a softmax": (lambda graph, value, gate: ir.node("Softmax", [value]), "Softmax is not linear in it"),
    "a cast": (lambda graph, value, gate: ir.node("Cast", [value], attributes={"to": 7}), "it is cast to INT64"),
    "a division": (lambda graph, value, gate: ir.node("Div", [value, gate]), "it is divided"),
    "a subtraction": (lambda graph, value, gate: ir.node("Sub", [value, gate]), "the coefficient -1 is no gate"),
    "a bias": (
        lambda graph, value, gate: ir.node("Add", [value, gate]),
        "have no features, ",
    ),
    "itself": (lambda graph, value, gate: ir.node("Add", [value, value]), "times; once is needed"),
    "a transposition": (
        lambda graph, value, gate: ir.node("Transpose", [value], attributes={"perm": [0, 1, 2]}),
        "its rows are rearranged",
    ),
}


def embedded(graph: ir.Graph) -> ir.Value:
    """The embedded latent: what the first addition of a feature is to."""
    first = next(node for node in graph if node.op_type == "Add" and fed_by_mul(node))
    return next(value for value in first.inputs if value is not None and not made_by_mul(value))


def fed_by_mul(node: ir.Node) -> bool:
    return any(value is not None and made_by_mul(value) for value in node.inputs)


def made_by_mul(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Mul"


@pytest.mark.parametrize("name", ["dit-tiny", "flux-tiny"])
@pytest.mark.parametrize("change", ON_THE_STREAM)
def test_anything_else_on_the_stream_is_refused(whole_model: Any, roles: Any, name: str, change: str) -> None:
    forecast, features = cut(whole_model(name), name, roles(name))
    make, reason = ON_THE_STREAM[change]
    additions = [node for node in forecast.graph if node.op_type == "Add" and fed_by_mul(node)]
    value = additions[1].outputs[0]
    gate = next(value for value in forecast.graph.inputs if str(value.name).startswith("prepared."))
    users = [(user, index) for user, index in value.uses()]
    node = make(forecast.graph, value, gate)
    forecast.graph.insert_after(additions[1], node)
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    for user, index in users:
        user.replace_input_with(index, node.outputs[0])
    assert reason in refused(forecast, features)
