"""The prepare graph: the docstring's graph before and after, what crosses the boundary and how; the same numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from taylorseer.exporter.features import Feature
from taylorseer.exporter.prepare import (
    STEP_BATCH,
    Boundary,
    PreparedValue,
    find_boundary,
    prepare_graph,
    read_from_tables,
    table_dtype,
    take_inputs,
)
from taylorseer.exporter.stages import Stages, split_stages
from taylorseer.manifest import Role

Arrays = dict[str, npt.NDArray[Any]]

TINY = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

ROLES: dict[str, Role] = {
    "latent": "latent",
    "timestep": "timestep",
    "guidance": "guidance",
    "pooled": "condition",
    "text": "condition",
}

INPUTS = "float[B,3,4] latent, float[B] timestep, float[B] guidance, float[B,5] pooled, float[B,2,4] text"

WEIGHTS: Mapping[str, tuple[int, ...]] = {"wt": (1, 4), "wp": (5, 4), "wm": (4, 8), "ww": (4, 4), "one": (1,)}

EMBEDDED = (
    "column = Unsqueeze(timestep, i1) time = MatMul(column, wt) active = Sigmoid(time) silu = Mul(time, active)"
    " modulation = Gemm(silu, wm) shift, gate = Split<axis=1, num_outputs=2>(modulation)"
    " shift3 = Unsqueeze(shift, i1) gate3 = Unsqueeze(gate, i1)"
)
"""shift3 and gate3 [B,1,4] of the timestep alone."""


def parse(body: str) -> ir.Model:
    """A model of ONNX's text form over INPUTS, with shapes on every value; unused inputs go, indices are i0..i3."""
    random = np.random.default_rng(1)
    constants = [f"int64[1] i{n} = {{{n}}}" for n in range(4)]
    for name, shape in WEIGHTS.items():
        numbers = ", ".join(f"{number:.4f}" for number in random.standard_normal(shape).ravel())
        constants.append(f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}")
    head = f'<ir_version: 10, opset_import: ["" : 20]> g ({INPUTS}) => (float[B,3,4] y)'
    model = ir.from_onnx_text(f"{head} <{', '.join(constants)}> {{ {body} }}")
    common.ShapeInferencePass()(model)
    for value in list(model.graph.inputs):
        if not value.uses():
            model.graph.inputs.remove(value)
    return model


def example(batch: int) -> Arrays:
    """Every input, each row another request."""
    random = np.random.default_rng(batch)
    shapes = {"latent": (3, 4), "timestep": (), "guidance": (), "pooled": (5,), "text": (2, 4)}
    return {name: random.standard_normal((batch, *shape)).astype(np.float32) for name, shape in shapes.items()}


def boundary_of(model: ir.Model, features: Iterable[str] = ()) -> dict[str, bool]:
    """The values that cross -> whether they differ from step to step."""
    return {value.name: value.every_step for value in find_boundary(model, ROLES, features).values}


def cut(model: ir.Model) -> tuple[Boundary, ir.Model, ir.Model]:
    """The boundary, prepare with one table called ``prepared``, and the rest that reads it."""
    boundary, rest = find_boundary(model, ROLES, []), model.clone()
    take_inputs(rest, boundary)
    columns = [value for value in boundary.values if value.every_step]
    tables = {"prepared": columns} if columns else {}
    prepare = prepare_graph(model, boundary, tables)
    read_from_tables(rest, tables)
    return boundary, prepare, rest


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def described(values: Iterable[ir.Value]) -> dict[str, list[Any]]:
    return {str(v.name): [n if isinstance(n, int) else n.value for n in v.shape or ()] for v in values}


def in_scope(model: ir.Model, module: str, outputs: Sequence[str]) -> None:
    """Say that the nodes which give ``outputs`` were traced in ``module``."""
    for node in model.graph:
        if node.outputs[0].name in outputs:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", module, f"{module}.part"])


def same_numbers(run_model: Any, model: ir.Model, prepare: ir.Model, rest: ir.Model) -> None:
    for batch in (1, 3):
        given = example(batch)
        wanted = run_model(model, given)["y"]
        assert np.array_equal(run_model(rest, given | run_model(prepare, given))["y"], wanted)


# The rewrite


def test_the_docstrings_graph_before_and_after(run_model: Any) -> None:
    model = parse(f"{EMBEDDED} shifted = Add(latent, shift3) y = Mul(shifted, gate3)")
    boundary, prepare, rest = cut(model)
    assert [(value.name, value.shape, value.size) for value in boundary.values] == [
        ("shift3", ("batch", 1, 4), 4),
        ("gate3", ("batch", 1, 4), 4),
    ]
    before, after = operators(model)[:-2], operators(prepare)
    assert sorted(after) == sorted([*before, "Reshape", "Reshape", "Concat"])
    assert described(prepare.graph.inputs) == {"timestep": [STEP_BATCH]}
    assert described(prepare.graph.outputs) == {"prepared": [STEP_BATCH, 8]}
    assert sorted(operators(rest)) == ["Add", "Mul", "Reshape", "Reshape", "Slice", "Slice"]
    assert described(rest.graph.inputs)["prepared"] == ["batch", 8]
    assert not {"wt", "wm"} & rest.graph.initializers.keys()
    same_numbers(run_model, model, prepare, rest)


def test_the_model_itself_is_left_as_it_was() -> None:
    model = parse(f"{EMBEDDED} shifted = Add(latent, shift3) y = Mul(shifted, gate3)")
    before = ir.to_proto(model).SerializeToString()
    cut(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_table_of_one_value_is_read_whole(run_model: Any) -> None:
    model = parse(f"{EMBEDDED} y = Mul(latent, gate3)")
    _, prepare, rest = cut(model)
    assert operators(rest) == ["Reshape", "Mul"]
    same_numbers(run_model, model, prepare, rest)


def test_a_graph_that_needs_less_reads_its_columns_alone(run_model: Any) -> None:
    """As a forecast does, whose table the full graph shares; a table that nobody reads is no input."""
    model = parse(f"{EMBEDDED} shifted = Add(latent, shift3) y = Mul(shifted, gate3)")
    less = parse(f"{EMBEDDED} y = Mul(latent, gate3)")
    boundary, wanted = find_boundary(model, ROLES, []), run_model(less, example(2))["y"]
    take_inputs(less, find_boundary(less, ROLES, []))
    tables = {"prepared": boundary.values, "unread": [PreparedValue("other", ("batch", 9), ir.DataType.FLOAT, True)]}
    read_from_tables(less, tables)
    assert described(less.graph.inputs) == {"latent": ["B", 3, 4], "prepared": ["batch", 8]}
    prepared = run_model(prepare_graph(model, boundary, {"prepared": boundary.values}), example(2))
    assert np.array_equal(run_model(less, example(2) | prepared)["y"], wanted)


# What crosses


@pytest.mark.parametrize(
    ("body", "crossing"),
    [
        ("moved = Neg(latent) y = Abs(moved)", {}),
        (f"{EMBEDDED} y = Mul(latent, gate3)", {"gate3": True}),
        ("strong = Unsqueeze(guidance, i1) g3 = Unsqueeze(strong, i1) y = Mul(latent, g3)", {"g3": True}),
        ("words = MatMul(text, ww) sum = ReduceMean(words, i1) y = Add(latent, sum)", {"sum": False}),
        ("two = Add(one, one) y = Mul(latent, two)", {}),
        (f"{EMBEDDED} z = Mul(latent, gate3) words = MatMul(text, ww) sum = ReduceMean(words, i1) y = Add(z, sum)",
         {"gate3": True, "sum": False}),
        (f"{EMBEDDED} a = Mul(latent, gate3) b = Neg(gate3) y = Add(a, b)", {"gate3": True, "b": True}),
    ],
    ids=["latent", "timestep", "guidance", "once", "constant", "both", "read on the way and at the end"],
)  # fmt: skip
def test_what_the_latent_has_no_part_in_crosses_where_the_latent_comes_in(
    body: str, crossing: dict[str, bool], run_model: Any
) -> None:
    model = parse(body)
    assert boundary_of(model) == crossing
    if crossing:
        _, prepare, rest = cut(model)
        same_numbers(run_model, model, prepare, rest)


def test_what_is_made_once_is_an_output_of_its_own(run_model: Any) -> None:
    model = parse("words = MatMul(text, ww) joined = Concat<axis=1>(words, latent) y = Slice(joined, i0, i3, i1)")
    boundary, prepare, rest = cut(model)
    assert boundary.values[0].input_name == "request.words" and boundary.repeated == {"timestep", "guidance"}
    assert described(prepare.graph.inputs) == {"text": ["batch", 2, 4]}
    assert described(prepare.graph.outputs) == {"request.words": ["batch", 2, 4]}
    assert described(rest.graph.inputs) == {"latent": ["B", 3, 4], "request.words": ["B", 2, 4]}
    same_numbers(run_model, model, prepare, rest)


def test_inputs_that_meet_the_latent_themselves_pass_through(run_model: Any) -> None:
    model = parse(
        "joined = Concat<axis=1>(text, latent) z = Slice(joined, i0, i3, i1) turned = Transpose<perm=[1,2,0]>(z)"
        " scaled = Mul(turned, timestep) y = Transpose<perm=[2,0,1]>(scaled)"
    )
    assert boundary_of(model) == {"timestep": True, "text": False}
    _, prepare, rest = cut(model)
    assert described(prepare.graph.outputs) == {"prepared": [STEP_BATCH, 1], "request.text": ["batch", 2, 4]}
    same_numbers(run_model, model, prepare, rest)


@pytest.mark.parametrize(
    ("body", "repeated"),
    [
        ("name = MatMul(pooled, wp) n = Unsqueeze(name, i1) z = Add(latent, n) y = Mul(z, gate3)", {"timestep"}),
        ("name = MatMul(pooled, wp) n = Add(name, time) m = Unsqueeze(n, i1) y = Add(latent, m)",
         {"timestep", "pooled"}),
        # The text meets the pooled text, which meets the timestep.
        ("name = MatMul(pooled, wp) n = Add(name, time) m = Unsqueeze(n, i1) z = Add(latent, m)"
         " p = Unsqueeze(name, i1) q = Add(text, p) r = ReduceMean(q, i1) y = Add(z, r)",
         {"timestep", "pooled", "text"}),
    ],
    ids=["apart", "combined", "combined with what is combined"],
)  # fmt: skip
def test_an_input_that_is_combined_with_the_timestep_comes_once_for_each(
    body: str, repeated: set[str], run_model: Any
) -> None:
    model = parse(f"{EMBEDDED} {body}")
    boundary, prepare, rest = cut(model)
    assert boundary.repeated == repeated | {"guidance"}
    for name, shape in described(prepare.graph.inputs).items():
        assert shape[0] == (STEP_BATCH if name in repeated else "batch"), name
    for value in boundary.values:  # what is read of a repeated input differs by step, and lies in the table
        assert value.every_step == (value.name != "n" or "pooled" in repeated)
    same_numbers(run_model, model, prepare, rest)


def test_nothing_of_the_latent_is_combined_with_the_timestep() -> None:
    """The latent meets both, and brings them no nearer to each other."""
    model = parse(f"{EMBEDDED} words = MatMul(text, ww) s = ReduceMean(words, i1) z = Add(latent, s) y = Mul(z, gate3)")
    assert find_boundary(model, ROLES, []).repeated == {"timestep", "guidance"}


def test_rows_of_tokens_inside_a_block_stay(run_model: Any) -> None:
    """The first block's text does not know the latent yet: a step's table would hold all its tokens."""
    body = (
        f"{EMBEDDED} words = MatMul(text, ww) lifted = Mul(words, gate3) joined = Concat<axis=1>(lifted, latent)"
        " z = Slice(joined, i0, i3, i1) y = Mul(z, gate3)"
    )
    inside = ["lifted", "modulation", "shift", "shift3", "gate3"]
    free, blocked = parse(body), parse(body)
    in_scope(blocked, "blocks.0", inside)
    assert boundary_of(free, ["blocks.0.part"]) == {"gate3": True, "lifted": True}
    # The embedded text outside of the block is rows too, and comes once; the gate [batch, 1, 4] is no rows of tokens.
    assert boundary_of(blocked, ["blocks.0.part"]) == {"gate3": True, "words": False}
    assert boundary_of(blocked, ["blocks.1.part"]) == {"gate3": True, "lifted": True}


# How it travels


def test_masks_travel_as_numbers(run_model: Any) -> None:
    model = parse(
        "column = Unsqueeze(timestep, i1) sums = Add(column, pooled) late = Greater(sums, one)"
        " some = Slice(late, i0, i1, i1) late3 = Unsqueeze(some, i1)"
        " moved = Neg(latent) y = Where(late3, moved, latent)"
    )
    boundary, prepare, rest = cut(model)
    (mask,) = boundary.values
    assert (mask.name, mask.dtype, table_dtype(mask)) == ("late3", ir.DataType.BOOL, ir.DataType.FLOAT)
    assert [value.dtype for value in prepare.graph.outputs] == [ir.DataType.FLOAT]
    assert operators(rest).count("Cast") == 1
    given = example(8)
    table = run_model(prepare, given)["prepared"]
    assert table.dtype == np.float32 and set(table.ravel()) == {0, 1}
    assert np.array_equal(run_model(rest, given | {"prepared": table})["y"], run_model(model, given)["y"])


@pytest.mark.parametrize(
    ("dtype", "travels"),
    [
        (ir.DataType.FLOAT, ir.DataType.FLOAT),
        (ir.DataType.FLOAT16, ir.DataType.FLOAT16),
        (ir.DataType.BFLOAT16, ir.DataType.BFLOAT16),
        (ir.DataType.BOOL, ir.DataType.FLOAT),
        (ir.DataType.INT64, ir.DataType.FLOAT),
    ],
)
def test_floats_keep_their_dtype(dtype: ir.DataType, travels: ir.DataType) -> None:
    assert table_dtype(PreparedValue("value", ("batch", 4), dtype, True)) == travels


BLOCK = (
    f"{EMBEDDED} half = Cast<to=10>(shift3) latent16 = Cast<to=10>(latent) moved16 = Mul(latent16, half)"
    " moved = Cast<to=1>(moved16) late = Greater(column, one) late3 = Unsqueeze(late, i1)"
    " words = MatMul(text, ww) w = ReduceMean(words, i1)"
    " chosen = Where(late3, moved, latent) shifted = Add(chosen, shift3) known = Add(shifted, w)"
    " mixed = Softmax<axis=1>(known) feature = MatMul(mixed, ww) gated = Mul(gate3, feature) y = Add(latent, gated)"
)
"""A block whose shift and mask only its feature needs, in float16 and float32, and whose gate a forecast needs too."""


def block_stages() -> tuple[ir.Model, Stages]:
    model = parse(BLOCK)
    in_scope(model, "blocks.0", ["moved16", "chosen", "shifted", "known", "mixed", "feature"])
    (value,) = (node.outputs[0] for node in model.graph if node.outputs[0].name == "feature")
    features = [Feature("blocks.0.part", value)]
    return model, split_stages(model, features, roles=ROLES, order=1, layout="history")


def test_what_a_forecast_reads_lies_apart_and_each_dtype_by_itself() -> None:
    _, stages = block_stages()
    assert described(stages.prepare.graph.outputs) == {
        "prepared.forecast.float32": [STEP_BATCH, 4],  # the gate
        "prepared.full.float16": [STEP_BATCH, 4],
        "prepared.full.float32": [STEP_BATCH, 5],  # shift and mask
        "request.w": ["batch", 1, 4],
    }
    assert [str(value.name) for value in stages.forecast.graph.inputs] == [
        "latent",
        "prepared.forecast.float32",
        "coefficients",
        "state.blocks.0.part.0",
        "state.blocks.0.part.1",
    ]
    wanted = {"latent", "request.w", *(value.name for value in stages.prepare.graph.outputs)}
    assert {value.name for value in stages.full.graph.inputs} == wanted
    dtypes = {str(value.name): value.dtype for value in stages.full.graph.inputs}
    assert dtypes["prepared.full.float16"] == ir.DataType.FLOAT16
    assert dtypes["prepared.full.float32"] == dtypes["prepared.forecast.float32"] == ir.DataType.FLOAT


def test_the_stages_of_a_block_give_what_the_model_gives(run_model: Any) -> None:
    model, stages = block_stages()
    given = example(3)
    wanted = run_model(model, given)["y"]
    prepared = run_model(stages.prepare, given)
    full = run_model(stages.full, given | prepared)
    # ONNX Runtime multiplies float16 in float32, and rounds where float16 is an input or an output.
    np.testing.assert_allclose(full["y"], wanted, rtol=1e-3, atol=1e-3)
    state = {f"state.blocks.0.part.{slot}": full["feature.blocks.0.part"] for slot in range(2)}
    coefficients = {"coefficients": np.array([1, 0], np.float32)}
    forecast = run_model(stages.forecast, given | prepared | state | coefficients)["y"]
    np.testing.assert_array_equal(forecast, full["y"])


# The families


def loaded(bundle: Any, kind: str) -> ir.Model:
    return ir.load(bundle.path(f"graphs/{kind}.onnx"))


def with_timesteps(inputs: Arrays, timesteps: npt.NDArray[np.float32]) -> Arrays:
    return inputs | {"timestep": timesteps * inputs["timestep"][:1]}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", TINY)
def test_prepare_and_full_together_are_the_whole_model(
    bundles: Any, whole_model: Any, run_model: Any, request_inputs: Any, name: str, batch: int
) -> None:
    bundle = bundles(name)
    # Each row at a timestep of its own, which shows rows that are mixed up.
    inputs = with_timesteps(request_inputs(bundle, batch=batch), np.array([1, 0.5, 0.1], np.float32)[:batch])
    wanted = run_model(whole_model(name), inputs)["prediction"]
    prepared = run_model(loaded(bundle, "prepare"), inputs)
    found = run_model(loaded(bundle, "full"), inputs | prepared)["prediction"]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", TINY)
def test_five_timesteps_at_once_are_five_timesteps(
    bundles: Any, run_graph: Any, request_inputs: Any, name: str, rows: int
) -> None:
    bundle = bundles(name)
    graph, inputs = bundle.manifest.graphs["prepare"], request_inputs(bundle, batch=rows)
    steps = np.array([1, 0.8, 0.55, 0.2, 0.01], np.float32)
    alone = [run_graph(bundle, "prepare", with_timesteps(inputs, np.repeat(step, rows))) for step in steps]
    repeated = {spec.name for spec in graph.inputs if STEP_BATCH in spec.shape}
    assert "timestep" in repeated
    many = {key: np.concatenate([value] * 5) if key in repeated else value for key, value in inputs.items()}
    many["timestep"] = np.repeat(steps, rows) * inputs["timestep"][0]
    together = run_graph(bundle, "prepare", many)
    for spec in graph.outputs:
        every_step = spec.shape[0] == STEP_BATCH
        assert every_step == (spec.role == "prepared")
        wanted = np.concatenate([found[spec.name] for found in alone]) if every_step else alone[0][spec.name]
        # Kernels block a larger batch differently, which moves the last bits.
        np.testing.assert_allclose(together[spec.name], wanted, rtol=1e-5, atol=1e-5, err_msg=spec.name)
        if every_step:
            assert not np.allclose(alone[0][spec.name], alone[4][spec.name], atol=1e-3)
