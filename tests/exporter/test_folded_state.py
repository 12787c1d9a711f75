"""The folded state: forecasts as those of the history, what its graphs take and have, and each reason against it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from taylorseer.accumulators import Accumulators
from taylorseer.config import CacheConfig
from taylorseer.errors import GraphError
from taylorseer.exporter.families import FAMILIES, load_model
from taylorseer.exporter.features import find_features
from taylorseer.exporter.folded_state import FoldedState, FoldOptions, prove_folded_state
from taylorseer.exporter.folding import Refusal
from taylorseer.exporter.passes.cleaning import finish
from taylorseer.exporter.passes.wide_residual import widen_residual
from taylorseer.exporter.prepare import PreparedValue
from taylorseer.exporter.stages import Stages, split_stages
from taylorseer.exporter.workflow import ExportRequest, traced_model
from taylorseer.manifest import FoldForm, Layout, Role, TermSpec

Arrays = dict[str, npt.NDArray[Any]]

BATCHES = {"flux-tiny": 1, "dit-tiny": 2, "hunyuan-video-tiny": 1}
"""DiT's batch holds the conditional and the unconditional half."""

SHAPES = {"flux-tiny": (48, 32), "dit-tiny": (16, 32), "hunyuan-video-tiny": (72, 32)}
"""Rows and width of an accumulator."""

FORMS: tuple[FoldForm, ...] = ("chains", "channels")

STACKED: Mapping[FoldForm, int] = {"chains": 1, "channels": 2}
"""Accumulators of one tensor: one, or a window."""

ORDER, BUILT = 1, Accumulators(count=4, carried=2)
"""Two forecasts between full steps, at order 1."""

STEPS = 8


@dataclasses.dataclass(frozen=True)
class FullStep:
    """What is asked of the accumulators at one full step."""

    step: int
    ahead: tuple[int, ...]
    """For each accumulator the forecast step it is for."""
    weights: tuple[float, ...]


FULL_STEPS = (
    FullStep(0, (1, 2, 4, 5), (1.0, 0.75, 1.5, -0.5)),
    FullStep(3, (4, 5, 7, 7), (-0.5, 2.5, 1.0, 0.25)),
)
"""What the first one gives to its last two accumulators, the second one goes on with."""


def split(model: ir.Model, name: str, roles: Mapping[str, Role], layout: Any, **fold: Any) -> Stages:
    features = find_features(model.graph, FAMILIES[load_model(name).family].features)
    options = FoldOptions(**{"accumulators": BUILT, **fold})
    return split_stages(model, features, roles=roles, order=ORDER, layout=layout, fold=options)


@functools.cache
def traced(name: str, precision: str, residual: Literal["model", "fp32"] = "model") -> ir.Model:
    """The whole transformer without its weights."""
    model = load_model(name)
    request = ExportRequest(model=model, sizes=model.sizes, precision=precision, cache=CacheConfig(), graphs_only=True)
    whole = traced_model(request)[0]
    if residual == "fp32":
        widen_residual(whole, [f.value for f in find_features(whole.graph, FAMILIES[model.family].features)])
    return whole


class Run:
    """Runs the graphs of one split on the same random inputs as those of any other."""

    def __init__(self, run_model: Any, stages: Stages, batch: int) -> None:
        self.run_model, self.stages, self.batch = run_model, with_float_ends(stages), batch
        self.prepared = [self._prepared(step) for step in range(STEPS)]

    def _prepared(self, step: int) -> Arrays:
        inputs = {str(v.name): self.random(v, seed=1) for v in self.stages.prepare.graph.inputs}
        inputs["timestep"] = np.full(self.batch, 0.9 - 0.1 * step, np.float32)
        made: Arrays = self.run_model(self.stages.prepare, inputs)
        return made

    def random(self, value: ir.Value, seed: int) -> npt.NDArray[Any]:
        """Ones for integers, as masks and classes need; otherwise the same numbers for the same seed and shape."""
        shape = [size if isinstance(size, int) else self.batch for size in value.shape or ()]
        if value.dtype == ir.DataType.INT64:
            return np.ones(shape, np.int64)
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    def __call__(self, kind: str, step: int, more: Mapping[str, Any]) -> Arrays:
        model: ir.Model = getattr(self.stages, kind)
        inputs = self.prepared[step] | {"hidden_states": self.random(model.graph.inputs[0], seed=10 + step), **more}
        found: Arrays = self.run_model(model, {str(v.name): inputs[str(v.name)] for v in model.graph.inputs})
        return found


def with_float_ends(stages: Stages) -> Stages:
    """Give the graphs float32 inputs and outputs in place of bfloat16 ones, which NumPy does not know."""
    for model in (stages.full, stages.forecast):
        for index, value in enumerate(model.graph.inputs):
            if value.dtype == ir.DataType.BFLOAT16:
                wide = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
                value.replace_all_uses_with(cast(model.graph, wide, ir.DataType.BFLOAT16))
                model.graph.inputs[index] = wide
        for index, value in enumerate(model.graph.outputs):
            if value.dtype == ir.DataType.BFLOAT16:
                model.graph.outputs[index] = cast(model.graph, value, ir.DataType.FLOAT)
                model.graph.outputs[index].name, value.name = value.name, f"narrow.{value.name}"
        finish(model)
    return stages


def cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.node("Cast", [value], attributes={"to": int(dtype)})
    graph.append(node)
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node.outputs[0]


def folded_steps(run: Run, live: Sequence[Any]) -> tuple[list[Arrays], dict[int, npt.NDArray[Any]]]:
    """Predictions of the full steps and of the forecasts that the accumulators are for."""
    assert run.stages.folded is not None
    table, shape = str(run.stages.folded.gates_table), [run.batch, *live[0].shape[1:]]
    form = run.stages.folded.options.form
    accumulators: list[npt.NDArray[Any]] = [np.zeros(shape, np.float32)] * BUILT.count
    fulls, forecasts = [], {}
    for full in FULL_STEPS:
        inputs: dict[str, Any] = carried(form, accumulators[BUILT.window :])
        inputs["gates_ahead"] = np.stack([run.prepared[step][table] for step in full.ahead])
        inputs["fold_weights"] = np.array(full.weights, np.float32)
        fulls.append(run("full", full.step, inputs))
        accumulators = written(form, fulls[-1])
        for step, accumulator in zip(full.ahead[: BUILT.window], accumulators, strict=False):
            forecasts[step] = run("forecast", step, {"accumulator": accumulator})["prediction"]
    return fulls, forecasts


def carried(form: FoldForm, accumulators: Sequence[npt.NDArray[Any]]) -> Arrays:
    """The tensors that a full graph takes."""
    stacked = STACKED[form]
    starts = range(0, len(accumulators), stacked)
    return {
        f"carried.{number}": np.concatenate(accumulators[start : start + stacked], axis=1)
        for number, start in enumerate(starts)
    }


def written(form: FoldForm, outputs: Arrays) -> list[npt.NDArray[Any]]:
    """The accumulators that a full graph yields."""
    tensors = [outputs[f"accumulator.{number}"] for number in range(BUILT.count // STACKED[form])]
    return [part for tensor in tensors for part in np.split(tensor, STACKED[form], axis=1)]


def history_steps(run: Run) -> tuple[list[Arrays], dict[int, npt.NDArray[Any]]]:
    fulls, forecasts = [run("full", full.step, {}) for full in FULL_STEPS], {}
    for number, full in enumerate(FULL_STEPS):
        for index in range(BUILT.window):
            before = FULL_STEPS[0].weights[BUILT.window + index] if number else 0.0
            inputs: dict[str, Any] = {"coefficients": np.array([full.weights[index], before], np.float32)}
            for feature in run.stages.live:
                inputs[f"state.{feature.name}.0"] = fulls[number][f"feature.{feature.name}"]
                inputs[f"state.{feature.name}.1"] = fulls[0][f"feature.{feature.name}"]
            step = full.ahead[index]
            forecasts[step] = run("forecast", step, inputs)["prediction"]
    return fulls, forecasts


def error(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BATCHES)
def test_full_steps_and_forecasts_are_those_of_the_history(
    run_model: Any, whole_model: Any, roles: Any, name: str, form: FoldForm
) -> None:
    whole, batch = whole_model(name), BATCHES[name]
    history = Run(run_model, split(whole, name, roles(name), "history"), batch)
    stages = split(whole, name, roles(name), "folded", form=form, flush_group=4)
    fulls, forecasts = folded_steps(Run(run_model, stages, batch), history.stages.live)
    wanted_fulls, wanted = history_steps(history)
    for found, full in zip(fulls, wanted_fulls, strict=True):
        assert np.array_equal(found["prediction"], full["prediction"])
    assert forecasts.keys() == wanted.keys() == {1, 2, 4, 5}
    for step, prediction in wanted.items():
        # The same sums in another order: some roundings to 24 bits.
        assert error(forecasts[step], prediction) <= 1e-6, step
    assert error(wanted[1], wanted[4]) > 0.01  # forecasts that differ, so that a mixed-up accumulator is seen


def test_accumulators_of_bfloat16_cost_one_rounding_each(run_model: Any, whole_model: Any, roles: Any) -> None:
    name, whole = "dit-tiny", whole_model("dit-tiny")
    runs = [
        Run(run_model, split(whole, name, roles(name), "folded", dtype=dtype), 2)
        for dtype in (ir.DataType.FLOAT, ir.DataType.BFLOAT16)
    ]
    (wide, exact), (narrow, rounded) = (folded_steps(run, run.stages.live) for run in runs)
    assert np.array_equal(wide[0]["prediction"], narrow[0]["prediction"])
    for index in range(BUILT.count):
        first, short = (fulls[0][f"accumulator.{index}"] for fulls in (wide, narrow))
        # Nothing is carried at the first full step: one rounding to 8 bits of the sum.
        np.testing.assert_allclose(short, first, rtol=2.0**-8, atol=1e-6)
    for step, prediction in exact.items():
        assert 1e-5 < error(rounded[step], prediction) < 2.0**-7, step


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BATCHES)
def test_what_the_full_graph_takes_and_yields(whole_model: Any, roles: Any, name: str, form: FoldForm) -> None:
    stages = split(whole_model(name), name, roles(name), "folded", form=form)
    assert stages.folded is not None
    rows, width = SHAPES[name]
    shape, terms = ["batch", STACKED[form] * rows, width], len(stages.live)
    found = {v.name: (sizes(v), v.dtype) for v in stages.full.graph.inputs if not is_prepared(v)}
    float32 = ir.DataType.FLOAT
    latent = found.pop("hidden_states")
    assert latent[1] == float32
    assert found == {
        "fold_weights": ([4], float32),
        "gates_ahead": ([4, "batch", 32 * terms], float32),
        **{f"carried.{i}": (shape, float32) for i in range(2 // STACKED[form])},
    }
    outputs = [(v.name, sizes(v), v.dtype) for v in stages.full.graph.outputs]
    assert outputs[0][0] == "prediction"
    assert outputs[1:] == [(f"accumulator.{i}", shape, float32) for i in range(4 // STACKED[form])]


def is_prepared(value: ir.Value) -> bool:
    return str(value.name).startswith(("prepared.", "request."))


def sizes(value: ir.Value) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in value.shape or ()]


@pytest.mark.parametrize("name", BATCHES)
def test_a_forecast_takes_the_latent_one_accumulator_and_the_final_layers_numbers(
    whole_model: Any, roles: Any, name: str
) -> None:
    graph = split(whole_model(name), name, roles(name), "folded").forecast.graph
    found = {str(v.name): sizes(v)[1:] for v in graph.inputs}
    found.pop("hidden_states")
    # Of the final layer: its modulated weight [32, 12] and bias, or shift and scale.
    final = 2 * 32 if name == "dit-tiny" else 32 * 12 + 12
    assert found == {"accumulator": list(SHAPES[name]), "prepared.forecast.float32": [final]}
    assert len(list(graph)) <= 20
    scopes = " ".join(node.metadata_props.get("pkg.torch.onnx.name_scopes", "") for node in graph)
    assert "transformer_blocks" not in scopes and "proj_out" in scopes


@pytest.mark.parametrize("name", BATCHES)
def test_the_tables_hold_what_each_graph_reads(whole_model: Any, roles: Any, name: str) -> None:
    stages = split(whole_model(name), name, roles(name), "folded")
    assert stages.folded is not None
    tables = [f"prepared.{reader}.float32" for reader in ("forecast", "gates", "full")]
    made = {str(v.name): sizes(v) for v in stages.prepare.graph.outputs}
    assert [table for table in made if table.startswith("prepared.")] == tables
    assert made["prepared.gates.float32"] == ["step_batch", 32 * len(stages.live)]
    read = {kind: prepared(getattr(stages, kind), "prepared.") for kind in ("full", "forecast")}
    assert read == {"full": set(tables), "forecast": set(tables[:1])}
    assert prepared(stages.full, "request.") == {table for table in made if table.startswith("request.")}
    assert stages.folded.gates_table == "prepared.gates.float32"
    gates = dict.fromkeys(gate for term in stages.folded.proof.terms for gate in term.gates)
    assert [gate.input_name for gate in stages.folded.gates] == list(gates)


def prepared(model: ir.Model, kind: str) -> set[str]:
    return {str(value.name) for value in model.graph.inputs if str(value.name).startswith(kind)}


@pytest.mark.parametrize("name", BATCHES)
def test_no_weight_of_prepare_is_in_the_other_graphs(whole_model: Any, roles: Any, name: str) -> None:
    stages = split(whole_model(name), name, roles(name), "folded")
    modulations, full, forecast = (weights(m) for m in (stages.prepare, stages.full, stages.forecast))
    assert modulations and full and forecast
    assert modulations.isdisjoint(full) and modulations.isdisjoint(forecast)
    assert forecast <= full
    assert not [weight for weight in forecast if "blocks" in weight]


def weights(model: ir.Model) -> set[str]:
    return {name for name in model.graph.initializers if name.endswith((".weight", ".bias"))}


def test_what_the_manifest_says_is_what_was_built(whole_model: Any, roles: Any) -> None:
    stages = split(whole_model("dit-tiny"), "dit-tiny", roles("dit-tiny"), "folded", form="channels", flush_group=5)
    assert stages.folded is not None and stages.layout == "folded"
    assert stages.layout_reason == "the forecast is proven to be linear in its 6 features"
    spec = stages.folded.spec(4)
    assert (spec.accumulators, spec.carried, spec.shape, spec.dtype) == (4, 2, ("batch", 16, 32), "float32")
    assert (spec.flush_group, spec.form, spec.gates) == (5, "channels", "prepared.gates.float32")
    assert [term.feature for term in spec.terms] == [feature.name for feature in stages.live]
    assert all(isinstance(term, TermSpec) and term.rows == (0, 16) for term in spec.terms)


@pytest.mark.parametrize(
    ("asked", "itemsize", "wanted"),
    [
        (None, 4, 6),  # twelve at the most, and there are six
        (4, 4, 4),
        (100, 4, 6),
        (None, 2.0**22, 1),  # 2 GiB for each; a dtype tells its size as a float
        (None, 2**21, 2),  # 1 GiB for each
        (None, 2**23, 1),  # too large even for one, which has to be
    ],
)
def test_the_flush_group_fits_its_memory(
    whole_model: Any, roles: Any, asked: int | None, itemsize: float, wanted: int
) -> None:
    stages = split(whole_model("dit-tiny"), "dit-tiny", roles("dit-tiny"), "folded", flush_group=asked)
    assert stages.folded is not None
    group = stages.folded.spec(itemsize).flush_group
    assert isinstance(group, int) and group == wanted


@pytest.mark.parametrize("residual", ["model", "fp32"])
def test_the_forecast_adds_in_float32_and_rounds_where_the_stream_was_rounded(roles: Any, residual: Any) -> None:
    name = "flux-tiny"
    stages = split(traced(name, "bf16", residual), name, roles(name), "folded")
    assert stages.folded is not None
    accumulator = next(value for value in stages.forecast.graph.inputs if value.name == "accumulator")
    ((addition, _),) = accumulator.uses()
    assert addition.op_type == "Add"
    assert [value.dtype for value in (*addition.inputs, *addition.outputs) if value is not None] == [
        ir.DataType.FLOAT
    ] * 3
    assert [value.dtype for value in stages.forecast.graph.outputs] == [ir.DataType.FLOAT]
    assert bool(stages.folded.proof.casts) == (residual == "fp32")
    assert stages.folded.gates_table == "prepared.gates.bfloat16"


def test_order_0_carries_nothing(whole_model: Any, roles: Any) -> None:
    built = Accumulators(count=2, carried=0)
    stages = split(whole_model("dit-tiny"), "dit-tiny", roles("dit-tiny"), "folded", accumulators=built)
    names = [str(value.name) for value in stages.full.graph.inputs if not is_prepared(value)]
    assert names == ["hidden_states", "fold_weights", "gates_ahead"]
    assert [value.name for value in stages.full.graph.outputs] == ["prediction", "accumulator.0", "accumulator.1"]


def test_splitting_leaves_the_model_as_it_was(whole_model: Any, roles: Any) -> None:
    model = whole_model("dit-tiny")
    before = ir.to_proto(model).SerializeToString()
    split(model, "dit-tiny", roles("dit-tiny"), "folded")
    assert ir.to_proto(model).SerializeToString() == before


def test_a_float16_flux_cannot_be_folded_and_says_what_to_do(roles: Any) -> None:
    with pytest.raises(GraphError, match=r"^The state cannot be folded\. .*clip to the range of float16") as caught:
        split(traced("flux-tiny", "fp16"), "flux-tiny", roles("flux-tiny"), "folded")
    assert "use --precision bf16" in str(caught.value)
    assert str(caught.value).endswith("Use --state history, or --state auto.")


def test_a_float16_flux_under_auto_gets_the_very_graphs_of_the_history_and_the_reason(roles: Any) -> None:
    layouts: tuple[Layout | Literal["auto"], ...] = ("auto", "history")
    found, wanted = (split(traced("flux-tiny", "fp16"), "flux-tiny", roles("flux-tiny"), lay) for lay in layouts)
    assert (found.layout, found.folded) == ("history", None)
    assert found.layout_reason.startswith("not folded. ")
    assert "clip to the range of float16" in found.layout_reason
    assert (wanted.layout, wanted.layout_reason) == ("history", "")
    assert (found.live, found.dead) == (wanted.live, wanted.dead)
    for kind in ("prepare", "full", "forecast"):
        assert content(getattr(found, kind)) == content(getattr(wanted, kind)), kind


def test_auto_folds_what_can_be_folded(whole_model: Any, roles: Any) -> None:
    found, wanted = (split(whole_model("dit-tiny"), "dit-tiny", roles("dit-tiny"), lay) for lay in ("auto", "folded"))
    assert found.layout == wanted.layout == "folded" and found.layout_reason == wanted.layout_reason
    for kind in ("prepare", "full", "forecast"):
        assert content(getattr(found, kind)) == content(getattr(wanted, kind)), kind


def content(model: ir.Model) -> str:
    """All of a graph but the data of its parameters."""
    graph = model.graph
    nodes = [(n.op_type, n.name, [v and v.name for v in n.inputs], dict(n.attributes)) for n in graph]
    values = [(v.name, v.shape, v.dtype) for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())]
    return f"{nodes} {values} {[v.name for n in graph for v in n.outputs]}"


SMALL = """
<ir_version: 10, opset_import: ["" : 20]>
forecast (
    float[B,6,4] latent, float[B,1,4] gate1, float[B,1,4] gate2, float[B,1,1] number, float[B,6,4] attn,
    float[B,6,4] ff
) => (float[B,6,4] prediction)
<
    float[4,4] w = {1, 2, 0, 1, 0, 1, 0, 1, 2, 0, 1, 0, 1, 1, 0, 1}, float[4] ones = {1, 1, 1, 1},
    int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i6 = {6}, int64[1] i8 = {8}
>
{
    embed = MatMul(latent, w)
    gated1 = Mul(gate1, attn)
    h1 = Add(embed, gated1)
    gated2 = Mul(gate2, ff)
    h2 = Add(gated2, h1)
    normed = LayerNormalization<axis = -1>(h2, ones)
    prediction = MatMul(normed, w)
}
"""

GATED1, GATED2 = "gated1 = Mul(gate1, attn)", "gated2 = Mul(gate2, ff)"
EMBED, SECOND, ATTN = "embed = MatMul(latent, w)", "h2 = Add(gated2, h1)", "float[B,6,4] attn"
NORM = "normed = LayerNormalization<axis = -1>(h2, ones)"

Change = tuple[str, str]


def small(*changes: Change) -> ir.Model:
    """The forecast above with pieces of its text replaced."""
    text = SMALL
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    model = ir.from_onnx_text(text)
    common.ShapeInferencePass()(model)
    for value in model.graph.inputs:
        if value.name in ("gate1", "gate2", "number"):
            value.name = f"prepared.{value.name}"
    return model


def found_of(model: ir.Model, form: FoldForm = "chains", *known: PreparedValue) -> FoldedState | Refusal:
    """What is found of a small forecast; values of ``known`` take the place of what its inputs say."""
    inputs = {str(v.name): v for v in model.graph.inputs if is_prepared(v)}
    said = {name: value_named(name, tuple(sizes(v))) for name, v in inputs.items()}
    values = list((said | {value.input_name: value for value in known}).values())
    features = {"attn": "blocks.0.attn", "ff": "blocks.0.ff"}
    return prove_folded_state(model, features, values, FoldOptions(accumulators=BUILT, form=form, flush_group=1))


def value_named(name: str, shape: tuple[int | str, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> PreparedValue:
    """The prepared value that the graph input ``name`` stands for."""
    kind, _, rest = name.partition(".")
    return PreparedValue(rest, ("batch", *shape[1:]), dtype, kind == "prepared")


def refused(*changes: Change, form: FoldForm = "chains", known: Sequence[PreparedValue] = ()) -> str:
    found = found_of(small(*changes), form, *known)
    assert isinstance(found, Refusal), found
    return found.reason


def test_a_graph_that_the_proof_refuses_keeps_the_proofs_reason() -> None:
    assert "Softmax is not linear" in refused(("h1 = Add(embed, gated1)", "h1 = Softmax(gated1)"))


def test_a_feature_on_some_rows_is_refused() -> None:
    reason = refused(
        (
            SECOND,
            "top = Slice(h1, i0, i2, i1) bottom = Slice(h1, i2, i6, i1) part = Slice(gated2, i2, i6, i1)"
            " more = Add(bottom, part) h2 = Concat<axis = 1>(top, more)",
        )
    )
    assert reason == (
        "The feature 'blocks.0.ff' is added to the rows 2:6 of 6, and an accumulator sums features of all rows."
    )


NO_TABLE = (
    "The gate {!r} of 'blocks.0.attn' is the same at every step, or made in the forecast graph: it has to come from "
    "prepare, one for each step."
)


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ((GATED1, "total = Add(gate1, gate2) gated1 = Mul(total, attn)"), "total"),
        ((GATED1, "gated1 = Mul(ones, attn)"), "ones"),
    ],
    ids=["made in the forecast", "a weight"],
)
def test_a_gate_that_prepare_does_not_make_is_refused(change: Change, gate: str) -> None:
    assert refused(change) == NO_TABLE.format(gate)


def test_a_gate_that_is_the_same_at_every_step_is_refused() -> None:
    model = small()
    model.graph.inputs[1].name = "request.gate1"
    assert found_of(model) == Refusal(NO_TABLE.format("request.gate1"))


def test_a_gate_of_another_size_is_refused() -> None:
    reason = refused(known=[value_named("prepared.gate1", ("batch", 1, 24))])
    assert reason == "The gate 'prepared.gate1' has 24 numbers, and 1 or 4 are needed."


def test_gates_of_two_dtypes_are_refused() -> None:
    reason = refused(known=[value_named("prepared.gate1", ("batch", 1, 4), ir.DataType.BFLOAT16)])
    assert reason == "The gates have 2 dtypes, and one table holds them."


def test_gated_and_ungated_features_are_refused_by_the_form_channels_alone() -> None:
    ungated = (GATED1, "gated1 = Identity(attn)")
    assert refused(ungated, form="channels") == (
        "Some features have gates and some have none, which the form 'channels' cannot stack."
    )
    assert isinstance(found_of(small(ungated), "chains"), FoldedState)


SUMS: dict[str, tuple[list[Change], Sequence[FoldForm]]] = {
    "a gate for each channel": ([], FORMS),
    "a gate of one number": ([(GATED1, "gated1 = Mul(number, attn)")], FORMS),
    "two gates of a feature": ([(GATED1, "half = Mul(gate1, attn) gated1 = Mul(half, gate2)")], FORMS),
    "two gates, one of them one number": ([(GATED1, "half = Mul(number, attn) gated1 = Mul(half, gate2)")], FORMS),
    "no gate at all": ([(GATED1, "gated1 = Identity(attn)"), (GATED2, "gated2 = Identity(ff)")], FORMS),
    "one feature without a gate": ([(GATED1, "gated1 = Identity(attn)")], ["chains"]),
    "some rows of a feature": (
        [(ATTN, "float[B,8,4] attn"), (GATED1, "rows = Slice(attn, i2, i8, i1) gated1 = Mul(gate1, rows)")],
        FORMS,
    ),
    "rows that are cut after a feature was added": (
        [
            ("float[B,6,4] latent", "float[B,8,4] latent"),
            (ATTN, "float[B,8,4] attn"),
            ("h1 = Add(embed, gated1)", "long = Add(embed, gated1) h1 = Slice(long, i2, i8, i1)"),
        ],
        FORMS,
    ),
    "a latent that is not embedded": ([(EMBED, ""), ("h1 = Add(embed, gated1)", "h1 = Add(latent, gated1)")], FORMS),
    "a stream that is the prediction": (
        [(SECOND, ""), (NORM, "prediction = Add(gated2, h1)"), ("prediction = MatMul(normed, w)", "")],
        FORMS,
    ),
}


@pytest.mark.parametrize(
    ("changes", "form"), [pytest.param(c, form, id=f"{n}, {form}") for n, (c, forms) in SUMS.items() for form in forms]
)
def test_every_kind_of_term_is_summed_for_the_step_to_come(
    run_model: Any, changes: list[Change], form: FoldForm
) -> None:
    """One full step that folds for steps to come, each with gates of its own; then the forecast of each."""
    before, forecast = small(*changes), small(*changes)
    state = found_of(forecast, form)
    assert isinstance(state, FoldedState), state
    full = full_graph(forecast, state)
    state.rewrite_forecast(forecast)
    finish(forecast)
    random = np.random.default_rng(0)
    arrays = {
        str(v.name): random.standard_normal([2, *sizes(v)[1:]]).astype(np.float32)  # type: ignore[list-item]
        for v in before.graph.inputs
    }
    gates = [
        {g: random.standard_normal(arrays[g].shape).astype(np.float32) for g in arrays if g.startswith("prepared.")}
        for _ in range(BUILT.count)
    ]
    inputs = {name: arrays[name] for name in ("attn", "ff")} | folding_inputs(state, gates)
    taken = {str(value.name) for value in full.graph.inputs}
    assert taken == inputs.keys()
    accumulators = written(form, run_model(full, inputs))
    for index in range(BUILT.count):
        weight = inputs["fold_weights"][index]
        features = {name: arrays[name] * weight for name in ("attn", "ff")}
        wanted = run_model(before, arrays | gates[index] | features)["prediction"]
        total = {"latent": arrays["latent"], "accumulator": accumulators[index]}
        found = run_model(forecast, {str(v.name): total[str(v.name)] for v in forecast.graph.inputs})["prediction"]
        assert error(found, wanted) <= 1e-6, index


def full_graph(forecast: ir.Model, state: FoldedState) -> ir.Model:
    """A full graph whose features are inputs."""
    inputs = {str(v.name): v for v in forecast.graph.inputs}
    features = {
        name: ir.Value(name=key, shape=inputs[key].shape, type=inputs[key].type)
        for key, name in (("attn", "blocks.0.attn"), ("ff", "blocks.0.ff"))
    }
    graph = ir.Graph(list(features.values()), [], nodes=[], opset_imports={"": 20}, name="full")
    state.rewrite_full(ir.Model(graph, ir_version=10), features)
    model = ir.Model(graph, ir_version=10)
    finish(model)
    return model


def folding_inputs(state: FoldedState, gates: Sequence[Arrays]) -> Arrays:
    """Weights, gates of the steps to come as the table has them, and zeros that are carried."""
    inputs = carried(state.options.form, [np.zeros((2, 6, 4), np.float32)] * BUILT.carried)
    inputs["fold_weights"] = np.array([1.5, -0.5, 2.0, 0.25], np.float32)
    if state.gates_table:
        rows = [np.concatenate([row[g.input_name].reshape(2, -1) for g in state.gates], axis=1) for row in gates]
        inputs["gates_ahead"] = np.stack(rows)
    return inputs
