"""Three graphs from one: **prepare** makes what the latent has no part in, **full** yields the features as well as the
prediction, **forecast** takes them as weighted sums of the state.

All are made by the same rewrite for every model family.  A forecast graph starts as the full graph whose features
are replaced by inputs; whatever only served to compute them is dead and goes, and so are rows and inputs that no longer
reach the prediction.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import onnx_ir as ir

from taylorseer.errors import GraphError
from taylorseer.exporter.features import Feature, module_scopes
from taylorseer.exporter.folded_state import FoldedState, FoldOptions, prove_folded_state
from taylorseer.exporter.folding import Refusal
from taylorseer.exporter.passes.cleaning import drop_unused
from taylorseer.exporter.passes.slices import push_slices_up, row_slice, slice_rows
from taylorseer.exporter.prepare import (
    Boundary,
    PreparedValue,
    find_boundary,
    prepare_graph,
    read_from_tables,
    table_dtype,
    take_inputs,
)
from taylorseer.manifest import Layout, Role

__all__ = ["LiveFeature", "Stages", "split_stages"]


@dataclasses.dataclass(frozen=True)
class LiveFeature:
    """A feature that reaches the prediction of a forecast step."""

    name: str
    shape: tuple[int | str, ...]
    """[batch, rows, width] of what is remembered."""
    dtype: ir.DataType
    rows: tuple[int, int] | None
    """(start, stop) of the module's rows that are remembered; None: all."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """The result of a split."""

    prepare: ir.Model
    full: ir.Model
    forecast: ir.Model
    live: tuple[LiveFeature, ...]
    dead: tuple[str, ...]
    """Names of features that no forecast needs."""
    layout: Layout
    layout_reason: str
    """Why this layout, where it was to be found out."""
    folded: FoldedState | None
    """Layout ``folded``: what is folded, and how."""


def split_stages(
    model: ir.Model,
    features: Sequence[Feature],
    *,
    roles: Mapping[str, Role],
    order: int,
    layout: Layout | Literal["auto"],
    fold: FoldOptions | None = None,
    keep_dead: bool = False,
) -> Stages:
    """Split ``model`` into a prepare, a full and a forecast graph; ``model`` itself is left as it was.

    Args:
        model: the whole transformer; its last output is the prediction.
        features: the values to remember.
        roles: of the model's inputs.
        order: largest order of the forecasts; order + 1 tensors are remembered per feature.
        layout: ``history`` (the full graph yields features), ``derivatives`` (it yields D_0..D_order), ``folded`` (it
            yields accumulators), or ``auto``: folded where that is proven, otherwise history.
        fold: how to fold, for ``folded`` and ``auto``.
        keep_dead: remember every feature whole, also what no forecast needs; for tests of exactly that.

    Raises:
        GraphError: attention, or a block's product with what was forecast, is left in the forecast graph, which would
            make forecasts slow without a word; or ``folded`` was asked for and cannot be proven.
    """
    boundary = find_boundary(model, roles, [feature.name for feature in features])
    latent_dependent = model.clone()
    take_inputs(latent_dependent, boundary)
    forecast = latent_dependent.clone()
    placeholders = _cut_features(forecast, [feature.value.name for feature in features])
    if not keep_dead:
        push_slices_up(forecast)
        drop_unused(forecast)
        for placeholder in placeholders:
            placeholder.narrow()
        _refuse_computed_blocks(forecast, placeholders, [feature.name for feature in features])
    named = {str(feature.value.name): feature.name for feature in features}
    living = [p for p in placeholders if keep_dead or p.value.uses()]
    live = tuple(p.live_feature(named[p.source]) for p in living)
    dead = tuple(feature.name for feature in features if feature.name not in {item.name for item in live})
    folded, reason = None, ""
    if layout == "auto" or layout == "folded":
        assert fold is not None
        inputs = {str(p.value.name): named[p.source] for p in living}
        folded, reason = _folded(prove_folded_state(forecast, inputs, boundary.values, fold), must=layout == "folded")
        layout = "folded" if folded else "history"

    full = latent_dependent.clone()
    values = {value.name: value for node in full.graph for value in node.outputs}
    remembered = [_rows_of(full.graph, values[p.source], item) for p, item in zip(living, live, strict=True)]
    if folded is not None:
        folded.rewrite_forecast(forecast)
        folded.rewrite_full(full, {item.name: value for item, value in zip(live, remembered, strict=True)})
    else:
        for placeholder, item in zip(living, live, strict=True):
            _sum_of_state(forecast.graph, placeholder.value, item, order + 1)
        _yield_state(full.graph, remembered, live, order, layout)
    tables = _tables(boundary, forecast, folded)
    for graph in (full, forecast):
        read_from_tables(graph, tables)
    _order_inputs(forecast)
    prepare = prepare_graph(model, boundary, tables)
    return Stages(prepare, full, forecast, live, dead, layout, reason, folded)


def _folded(found: FoldedState | Refusal, *, must: bool) -> tuple[FoldedState | None, str]:
    """Return the folded state, or None, and why."""
    if isinstance(found, FoldedState):
        return found, f"the forecast is proven to be linear in its {len(found.proof.terms)} features"
    if must:
        raise GraphError(f"The state cannot be folded. {found.reason} Use --state history, or --state auto.")
    return None, f"not folded. {found.reason}"


def _tables(boundary: Boundary, forecast: ir.Model, folded: FoldedState | None) -> dict[str, list[PreparedValue]]:
    """Group what differs from step to step: what a forecast reads comes first and apart, then the gates of a folded
    state, and each dtype by itself."""
    read = {str(value.name) for value in forecast.graph.inputs}
    gates = folded.gates if folded else ()
    tables: dict[str, list[PreparedValue]] = {}
    for reader, values in (
        ("forecast", [value for value in boundary.values if value.input_name in read]),
        ("gates", gates),
        ("full", [value for value in boundary.values if value.input_name not in read and value not in gates]),
    ):
        for value in values:
            if value.every_step:
                tables.setdefault(f"prepared.{reader}.{table_dtype(value).numpy().name}", []).append(value)
    return tables


class _Placeholder:
    """A graph input that stands for one feature until the state is known."""

    def __init__(self, graph: ir.Graph, value: ir.Value) -> None:
        self.source = str(value.name)
        self.rows: tuple[int, int] | None = None
        self.graph = graph
        self.value = ir.Value(name=f"forecast.{value.name}", shape=value.shape, type=value.type)
        graph.inputs.append(self.value)
        value.replace_all_uses_with(self.value, replace_graph_outputs=True)

    def narrow(self) -> None:
        """Where every user wants the same rows, be those rows."""
        users = [user for user, _ in self.value.uses()]
        cuts = [row_slice(user) for user in users]
        bounds = {(cut.axis, cut.start, cut.stop) if cut else None for cut in cuts}
        if len(bounds) != 1 or None in bounds:
            return
        axis, start, stop = bounds.pop()  # type: ignore[misc]
        if axis != 1:
            return
        assert self.value.shape is not None
        sizes = list(self.value.shape)
        sizes[1] = stop - start
        self.value.shape = ir.Shape(sizes)
        self.rows = (start, stop)
        for user in users:
            user.outputs[0].replace_all_uses_with(self.value)
            self.graph.remove(user, safe=True)

    def live_feature(self, name: str) -> LiveFeature:
        """Return what is remembered of this feature."""
        assert self.value.shape is not None and self.value.dtype is not None
        shape = tuple(size if isinstance(size, int) else "batch" for size in self.value.shape)
        return LiveFeature(name, shape, self.value.dtype, self.rows)


def _cut_features(model: ir.Model, names: Sequence[str | None]) -> list[_Placeholder]:
    values = {value.name: value for node in model.graph for value in node.outputs}
    return [_Placeholder(model.graph, values[name]) for name in names]


def _refuse_computed_blocks(forecast: ir.Model, placeholders: Sequence[_Placeholder], features: Sequence[str]) -> None:
    """A block's own matrix products on what was forecast mean that a feature is missing; so does any attention."""
    blocks = {match[0] for name in features if (match := re.match(r".*?\.\d+(?=\.)", name))}
    computed = {placeholder.value for placeholder in placeholders}
    for node in forecast.graph:
        if not computed.isdisjoint(node.inputs):
            computed.update(node.outputs)
        inside = blocks.intersection(module_scopes(node))
        product = node.op_type in ("MatMul", "Gemm", "Conv") and inside and not computed.isdisjoint(node.inputs)
        if product or node.op_type in ("Softmax", "Attention"):
            what = "attention" if not product else f"a {node.op_type} of {sorted(inside)[0]!r}"
            raise GraphError(
                f"The forecast graph still computes {what} (node {node.name!r}): the features do not cover every "
                "block. Add the missing module to the model family's feature patterns."
            )


def _sum_of_state(graph: ir.Graph, placeholder: ir.Value, feature: LiveFeature, slots: int) -> None:
    """Replace the placeholder by sum_k c_k X_k over the state inputs X_k."""
    first = next(iter(graph))
    total: ir.Value | None = None
    for index in range(slots):
        state = ir.Value(
            name=f"state.{feature.name}.{index}", shape=placeholder.shape, type=ir.TensorType(feature.dtype)
        )
        graph.inputs.append(state)
        term = _insert(graph, first, "Mul", [state, _coefficient(graph, index, slots, feature.dtype)], state)
        total = term if total is None else _insert(graph, first, "Add", [total, term], state)
    assert total is not None
    total.name = f"forecast.{feature.name}"
    placeholder.replace_all_uses_with(total)
    graph.inputs.remove(placeholder)


def _insert(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], like: ir.Value, **attributes: int
) -> ir.Value:
    node = ir.node(op_type, list(inputs), attributes=dict(attributes) or None)
    graph.insert_before(before, node)
    output = node.outputs[0]
    output.shape, output.type = like.shape, like.type
    return output


def _coefficient(graph: ir.Graph, index: int, slots: int, dtype: ir.DataType) -> ir.Value:
    """Return coefficient ``index`` as a tensor [1] of ``dtype``, made once per graph."""
    name = f"coefficient.{index}"
    for node in graph:
        if node.outputs[0].name == name:
            return node.outputs[0]
    whole = next((value for value in graph.inputs if value.name == "coefficients"), None)
    if whole is None:
        whole = ir.Value(name="coefficients", shape=ir.Shape([slots]), type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(whole)
    scalar = ir.Value(shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    node = next(iter(graph))
    cut = slice_rows(whole, 0, index, index + 1, graph, node)
    scalar = _insert(graph, node, "Cast", [cut], scalar, to=int(dtype))
    scalar.type = ir.TensorType(dtype)
    scalar.name = name
    return scalar


def _order_inputs(forecast: ir.Model) -> None:
    """The request first, then coefficients, then state."""
    inputs = list(forecast.graph.inputs)
    state = [value for value in inputs if str(value.name).startswith("state.")]
    rest = [value for value in inputs if not str(value.name).startswith("state.") and value.name != "coefficients"]
    coefficients = [value for value in inputs if value.name == "coefficients"]
    forecast.graph.inputs.clear()
    forecast.graph.inputs.extend([*rest, *coefficients, *state])


def _rows_of(graph: ir.Graph, value: ir.Value, feature: LiveFeature) -> ir.Value:
    return value if feature.rows is None else slice_rows(value, 1, *feature.rows, graph, None)


def _yield_state(
    graph: ir.Graph, values: Sequence[ir.Value], live: Sequence[LiveFeature], order: int, layout: Layout
) -> None:
    scales = None
    if layout == "derivatives" and order > 0:
        scales = ir.Value(name="difference_scales", shape=ir.Shape([order]), type=ir.TensorType(ir.DataType.FLOAT))
        graph.inputs.append(scales)
    for current, feature in zip(values, live, strict=True):
        outputs = [current] if layout == "history" else _differences(graph, current, feature, order, scales)
        for index, output in enumerate(outputs):
            if output.is_graph_output():  # a value has one name, so it can be one output only
                output = _append(graph, "Identity", [output], output)
            # The value itself is the output, so that the engine writes it where the state lies, without a copy.
            output.name = f"feature.{feature.name}" if layout == "history" else f"next.{feature.name}.{index}"
            output.shape, output.type = ir.Shape(list(feature.shape)), ir.TensorType(feature.dtype)
            graph.outputs.append(output)


def _differences(
    graph: ir.Graph, current: ir.Value, feature: LiveFeature, order: int, scales: ir.Value | None
) -> list[ir.Value]:
    """D_0 = F, D_{i+1} = (D_i - D_i of the previous full step) * scale_i, the paper's recurrence."""
    derivatives = [current]
    for index in range(order):
        assert scales is not None
        previous = ir.Value(
            name=f"previous.{feature.name}.{index}",
            shape=ir.Shape(list(feature.shape)),
            type=ir.TensorType(feature.dtype),
        )
        graph.inputs.append(previous)
        difference = _append(graph, "Sub", [derivatives[-1], previous], previous)
        scale = slice_rows(scales, 0, index, index + 1, graph, None)
        scale = _append(graph, "Cast", [scale], scale, to=int(feature.dtype))
        scale.type = ir.TensorType(feature.dtype)
        derivatives.append(_append(graph, "Mul", [difference, scale], previous))
    return derivatives


def _append(graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value], like: ir.Value, **attributes: int) -> ir.Value:
    node = ir.node(op_type, list(inputs), attributes=dict(attributes) or None)
    graph.append(node)
    node.outputs[0].shape, node.outputs[0].type = like.shape, like.type
    return node.outputs[0]
