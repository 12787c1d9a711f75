"""``inspect``: a bundle's state tensors, whose bytes are those of a session, the proof of folding, and its weights."""

import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any, cast

import onnx_ir as ir
import pytest

from taylorseer.bundle import Bundle
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.session import LoadedModel

Run = Callable[..., Any]


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny"])
def test_the_folded_state_and_its_proof(run: Run, bundles: Callable[..., Bundle], name: str) -> None:
    bundle = bundles(name, "folded")
    manifest, facts = bundle.manifest, run("inspect", bundle.folder, "--json").json
    folding = facts["folding"]
    assert facts["layout"] == "folded" and manifest.folding is not None
    assert [term["feature"] for term in folding["terms"]] == facts["features"]
    assert all(term["gates"] and term["rows"] == term["feature_rows"] for term in folding["terms"])
    assert len(facts["state"]) == folding["accumulators"] == 3 * (manifest.cache["interval"] - 1)  # order 2
    assert folding["carried"] == 2 * (manifest.cache["interval"] - 1)
    session = LoadedModel(manifest, OnnxRuntimeBackend(bundle, threads=1)).session()
    uses = session.memory_plan.bytes_by_use()
    assert sum(tensor["bytes"] for tensor in facts["state"]) == facts["state_bytes"] == session.state_bytes
    assert facts["carry_bytes"] == uses["carry"]
    text = run("inspect", bundle.folder).out
    assert f"  proof    {folding['stream']} = embedded latent + {len(folding['terms'])} terms, gate x feature\n" in text
    for term in folding["terms"]:
        (line,) = (line for line in text.splitlines() if line.split()[:1] == [term["feature"]])
        assert line.split()[-1] == term["gates"][0] and f"0..{int(manifest.folding.shape[1]) - 1}" in line


@pytest.mark.parametrize(("name", "layout"), [("flux-tiny", "history"), ("dit-tiny", "folded")])
def test_no_step_reads_a_modulation_weight(run: Run, bundles: Callable[..., Bundle], name: str, layout: str) -> None:
    """AdaLN's linear layers take the embedded timestep alone; their weights are prepare's and nobody else's."""
    bundle = bundles(name, layout)
    facts = run("inspect", bundle.folder, "--json").json
    apart, graphs = facts["prepare_only_weights"], facts["graphs"]
    assert apart["count"] == len(apart["names"]) > 0
    weights = {
        kind: {key: value.const_value for key, value in ir.load(bundle.path(graph.file)).graph.initializers.items()}
        for kind, graph in bundle.manifest.graphs.items()
    }
    modulation = {key for key in weights["prepare"] if re.search(r"norm.*linear.*weight|adaln|time", key)}
    assert modulation and not modulation & (weights["full"].keys() | weights["forecast"].keys())
    assert modulation <= set(apart["names"])
    for kind, graph in graphs.items():
        assert graph["weights"]["count"] == len(weights[kind])
        assert graph["weights"]["bytes"] == sum(tensor.nbytes for tensor in weights[kind].values())
    assert f"\n  weights  {apart['count']} of " in run("inspect", bundle.folder).out


def test_without_onnx_ir_the_weights_are_left_out(
    run: Run, bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, modules = bundles("dit-tiny").folder, cast("dict[str, Any]", sys.modules)
    monkeypatch.setitem(modules, "onnx_ir", None)
    facts = run("inspect", folder, "--json").json
    assert facts["prepare_only_weights"] is None and facts["graphs"]["full"]["weights"] is None
    outcome = run("inspect", folder)
    assert outcome.code == 0 and "only prepare reads" not in outcome.out


def test_a_graph_that_is_no_onnx(run: Run, copied: Callable[[str], Any]) -> None:
    folder = copied("dit-tiny")
    graph = folder / "graphs/forecast.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    assert run("inspect", folder).refused("graphs/forecast.onnx cannot be read as an ONNX graph", "build the bundle")


@pytest.mark.parametrize(
    ("name", "layout"), [("flux-tiny", "history"), ("flux-tiny", "derivatives"), ("dit-tiny", "history")]
)
def test_the_state_is_listed_and_adds_up(run: Run, bundles: Callable[..., Bundle], name: str, layout: str) -> None:
    bundle = bundles(name, layout)
    facts = run("inspect", bundle.folder, "--json").json
    state = facts["state"]
    assert [(t["feature"], t["index"]) for t in state] == [
        (feature.name, index) for feature in bundle.manifest.features for index in range(3)
    ]
    inputs = {spec.name: spec for spec in bundle.manifest.graphs["forecast"].inputs if spec.role == "state"}
    assert {t["name"] for t in state} == inputs.keys()
    images = 2 if name == "dit-tiny" else 1  # rows of the batch for one image
    for tensor in state:
        spec = inputs[tensor["name"]]
        assert tensor["shape"] == list(spec.shape) and tensor["dtype"] == spec.dtype == "float32"
        assert tensor["sets"] == (2 if layout == "derivatives" else 1)
        assert tensor["bytes"] == tensor["sets"] * images * math.prod(tensor["shape"][1:]) * 4
    assert sum(tensor["bytes"] for tensor in state) == facts["state_bytes"]
    session = LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session()
    assert facts["state_bytes"] == session.state_bytes


def test_only_the_image_rows_of_a_single_block_are_remembered(run: Run, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("flux-tiny")
    facts = run("inspect", bundle.folder, "--json").json
    rows = {tensor["feature"]: tensor["rows"] for tensor in facts["state"]}
    assert rows["single_transformer_blocks.0.proj_out"] == [5, 53]  # after 5 rows of text
    assert rows["transformer_blocks.0.attn.to_out.0"] is None
    assert facts["dead_features"] == list(bundle.manifest.dead_features) and facts["dead_features"]


def test_the_rest_of_the_facts(run: Run, bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("flux-tiny")
    facts = run("inspect", bundle.folder, "--json").json
    assert (facts["model"], facts["family"], facts["layout"], facts["order"]) == ("flux-tiny", "flux", "history", 2)
    assert facts["weights"] == "random" and facts["engine"]["backend"] == "onnxruntime"
    assert list(facts["graphs"]) == ["prepare", "full", "forecast", "update"]
    assert facts["graphs"]["forecast"]["outputs"] == ["prediction"]
    prepared = {"encoder_hidden_states", "pooled_projections", "timestep", "guidance"}
    assert set(facts["graphs"]["prepare"]["inputs"]) == prepared
    assert not prepared & {*facts["graphs"]["full"]["inputs"], *facts["graphs"]["forecast"]["inputs"]}
    assert "coefficients" in facts["graphs"]["forecast"]["inputs"]
    for kind, graph in facts["graphs"].items():
        assert graph["bytes"] == bundle.path(f"graphs/{kind}.onnx").stat().st_size


def test_the_text_tells_the_same(run: Run, bundles: Callable[..., Bundle]) -> None:
    text = run("inspect", bundles("flux-tiny").folder).out
    assert "state    history, order 2, 7 features" in text
    assert "state.single_transformer_blocks.0.proj_out.0" in text and "rows 5..52" in text


def test_weights_are_not_read(run: Run, copied: Callable[[str], Any]) -> None:
    """A flipped byte in the weights is not what inspecting looks for; a missing file is."""
    folder = copied("dit-tiny")
    content = bytearray((folder / "graphs/weights.data").read_bytes())
    content[100] ^= 255
    (folder / "graphs/weights.data").write_bytes(content)
    assert run("inspect", folder).code == 0
    (folder / "graphs/weights.data").unlink()
    assert run("inspect", folder).refused("'graphs/weights.data' is missing")


def test_a_malformed_manifest(run: Run, copied: Callable[[str], Any]) -> None:
    folder = copied("dit-tiny")
    data = json.loads((folder / "manifest.json").read_text())
    data["features"][0]["dtype"] = "int3"
    (folder / "manifest.json").write_text(json.dumps(data))
    assert run("inspect", folder).refused("int3", "unknown", "build the bundle again")
