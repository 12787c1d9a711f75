"""Which tensors each call reads and writes, and the proof that no call writes what it reads."""

import dataclasses
from collections.abc import Callable

import pytest

from taylorseer.bundle import Bundle
from taylorseer.manifest import GraphSpec, Manifest, TensorSpec
from taylorseer.runtime.bindings import bind, prove_disjoint
from taylorseer.runtime.memory import ACCUMULATORS, PREPARE, STAGED, MemoryPlan, PlannedTensor, plan_memory
from taylorseer.runtime.step_plan import BuiltState

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]

TABLES = ("prepared.forecast.float32", "prepared.full.float32")


@pytest.fixture(scope="module")
def history(bundles: Callable[..., Bundle]) -> Manifest:
    return bundles("flux-tiny").manifest


@pytest.fixture(scope="module")
def derivatives(bundles: Callable[..., Bundle]) -> Manifest:
    return bundles("flux-tiny", "derivatives").manifest


@pytest.fixture(scope="module")
def folded(bundles: Callable[..., Bundle]) -> Manifest:
    return bundles("flux-tiny", "folded").manifest


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


@pytest.fixture(scope="module")
def once(history: Manifest) -> str:
    """The text that flux-tiny embeds once a request."""
    (name,) = (spec.name for spec in history.graphs["prepare"].outputs if spec.role == "request")
    return name


@pytest.fixture(scope="module")
def step(once: str) -> dict[str, str]:
    """What both models' graphs of flux-tiny bind to the tensor of the same name."""
    return same("prediction", *TABLES, once)


@pytest.mark.parametrize("turn", [0, 1])
def test_prepare_works_on_tensors_of_its_own_and_makes_what_the_request_keeps(
    history: Manifest, once: str, turn: int
) -> None:
    inputs = ("timestep", "guidance", "pooled_projections", "encoder_hidden_states")
    assert bind(history, "prepare", variant=turn, turn=turn) == {
        **{name: f"{PREPARE}{name}" for name in (*inputs, *TABLES)},
        once: once,
    }


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_full_step_of_history_writes_one_slot_and_reads_none(
    history: Manifest, step: dict[str, str], slot: int, turn: int
) -> None:
    features = {f"feature.{f.name}": f"state.{f.name}.{slot}" for f in history.features}
    assert bind(history, "full", variant=slot, turn=turn) == step | {"hidden_states": f"latent.{turn}"} | features


@pytest.mark.parametrize("turn", [0, 1])
def test_a_forecast_of_history_reads_every_slot(history: Manifest, step: dict[str, str], turn: int) -> None:
    state = same("coefficients", *(f"state.{f.name}.{slot}" for f in history.features for slot in range(3)))
    expected = used(history, "forecast", step | state | {"hidden_states": f"latent.{turn}"})
    assert bind(history, "forecast", variant=0, turn=turn) == expected
    assert state.keys() <= expected.keys()


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_step_of_derivatives_reads_one_set_and_writes_the_other(
    derivatives: Manifest, step: dict[str, str], written: int
) -> None:
    binding = bind(derivatives, "full", variant=written, turn=0)
    graph = derivatives.graphs["full"]
    read = {binding[spec.name] for spec in graph.inputs if spec.role == "previous"}
    made = {binding[spec.name] for spec in graph.outputs if spec.role == "state"}
    names = [f.name for f in derivatives.features]
    # The highest derivative is made of those below it: its former value is not looked at.
    assert read == {f"state.{name}.{index}.{1 - written}" for name in names for index in range(2)}
    assert made == {f"state.{name}.{index}.{written}" for name in names for index in range(3)}
    plain = {"difference_scales", *step}
    assert {name: binding[name] for name in binding if name in plain} == same(*plain & binding.keys())


@pytest.mark.parametrize("current", [0, 1])
def test_a_forecast_of_derivatives_reads_the_set_that_is_current(
    derivatives: Manifest, step: dict[str, str], current: int
) -> None:
    binding = bind(derivatives, "forecast", variant=current, turn=1)
    names = [f.name for f in derivatives.features]
    state = {f"state.{name}.{index}": f"state.{name}.{index}.{current}" for name in names for index in range(3)}
    expected = used(derivatives, "forecast", step | state | same("coefficients") | {"hidden_states": "latent.1"})
    assert binding == expected and state.keys() <= binding.keys()


@pytest.mark.parametrize(("number", "base"), [(0, 0), (1, 15), (2, 5), (3, 20), (4, 10)])
def test_a_folded_full_step_reads_the_slots_from_its_base_on_and_writes_those_after(
    folded: Manifest, step: dict[str, str], number: int, base: int
) -> None:
    """15 accumulators, of which 10 go on, take turns in a ring of 25, five of them in a tensor."""
    binding = bind(folded, "full", variant=number, turn=1)
    tensors = [f"{ACCUMULATORS}{(base // 5 + place) % 5}" for place in range(5)]
    assert [binding[f"carried.{index}"] for index in range(2)] == tensors[:2]
    assert [binding[f"accumulator.{index}"] for index in range(3)] == tensors[2:]
    plain = same("gates_ahead", "fold_weights", "prepared.gates.float32", *step)
    assert {name: tensor for name, tensor in binding.items() if name in plain} == plain
    assert binding["hidden_states"] == "latent.1" and len(binding) == 5 + len(plain) + 1


@pytest.mark.parametrize("slot", [0, 14, 24])
def test_a_folded_forecast_reads_a_slot_of_one_tensor(folded: Manifest, step: dict[str, str], slot: int) -> None:
    tensor = f"{ACCUMULATORS}{slot // 5}"
    expected = used(folded, "forecast", step | {"hidden_states": "latent.0", "accumulator": tensor})
    assert bind(folded, "forecast", variant=slot, turn=0) == expected
    assert expected["accumulator"] == tensor


def used(manifest: Manifest, kind: str, binding: dict[str, str]) -> dict[str, str]:
    """Leave out what this graph does not take: a forecast reads one of the tables."""
    graph = manifest.graphs[kind]
    names = {spec.name for spec in (*graph.inputs, *graph.outputs)}
    return {name: tensor for name, tensor in binding.items() if name in names}


@pytest.mark.parametrize("turn", [0, 1])
def test_the_update_reads_one_latent_and_writes_the_other(history: Manifest, turn: int) -> None:
    assert bind(history, "update", variant=0, turn=turn) == {
        **same("prediction", "update_numbers", "probe"),
        "latent": f"latent.{turn}",
        "next_latent": f"latent.{1 - turn}",
    }


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_every_binding_of_a_session_fits_and_is_disjoint(
    bundles: Callable[..., Bundle], name: str, layout: str
) -> None:
    manifest = bundles(name, layout).manifest
    manifest = dataclasses.replace(manifest, prepare_rows=64)  # the steps of 32 at once
    plan, written = plan_memory(manifest, rows=2, steps=50), set()
    for kind, graph in manifest.graphs.items():
        for variant in range(BuiltState.of_bundle(manifest).variants().get(kind, 1)):
            for turn in range(2):
                binding = bind(manifest, kind, variant=variant, turn=turn)
                prove_disjoint(graph, binding, plan)
                written |= {binding[spec.name] for spec in graph.outputs}
                for spec in (*graph.inputs, *graph.outputs):
                    tensor = plan.tensors[binding[spec.name]]
                    assert tensor.dtype == spec.dtype
                    rows = {"batch": 2, "step_batch": 2 * 32}
                    shape = tuple(rows[n] if isinstance(n, str) else n for n in spec.shape)
                    if (kind, spec.role) == ("forecast", "accumulator"):  # one of a window
                        assert tensor.shape[1] > shape[1]
                        shape = plan.tensors[STAGED].shape[:1] + tensor.shape[1:2] + shape[2:]
                    assert tensor.shape == shape
    given = {f"{PREPARE}{spec.name}" for spec in manifest.graphs["prepare"].inputs}
    given |= {tensor.name for tensor in plan.tensors.values() if tensor.use in ("step", "ahead", "staged")}
    assert written == plan.tensors.keys() - given  # nothing is reserved that no call fills


# What the proof refuses

GRAPH = GraphSpec(
    file="",
    inputs=(
        TensorSpec(name="a", role="latent", shape=(10,), dtype="float32"),
        TensorSpec(name="b", role="prediction", shape=(100,), dtype="float32"),
    ),
    outputs=(
        TensorSpec(name="x", role="next_latent", shape=(10,), dtype="float32"),
        TensorSpec(name="y", role="probe", shape=(1,), dtype="float32"),
    ),
)
BINDING = same("a", "b", "x", "y")


def placed(**offsets: int) -> MemoryPlan:
    """Return a plan of the graph's tensors: a [100, 140), b [200, 600), x and y apart, unless placed elsewhere."""
    offsets = {"a": 100, "b": 200, "x": 700, "y": 800} | offsets
    tensors = {
        spec.name: PlannedTensor(
            name=spec.name, shape=(int(spec.shape[0]),), dtype="float32", use="latent", offset=offsets[spec.name]
        )
        for spec in (*GRAPH.inputs, *GRAPH.outputs)
    }
    return MemoryPlan(
        tensors=tensors,
        steps=1,
        row_bytes=0,
        forecast_row_bytes=0,
        row_offset=0,
        table_offset=900,
        scratch_offset=900,
        scratch_bytes=0,
    )


@pytest.mark.parametrize("offsets", [{}, {"x": 60}, {"x": 140}, {"x": 160, "y": 600}, {"y": 196}, {"a": 160}])
def test_tensors_that_touch_share_nothing(offsets: dict[str, int]) -> None:
    prove_disjoint(GRAPH, BINDING, placed(**offsets))


@pytest.mark.parametrize(
    ("offsets", "other"),
    [
        ({"x": 61}, "a"),  # its last byte
        ({"x": 139}, "a"),  # its first byte
        ({"x": 100}, "a"),  # all of it
        ({"x": 161}, "b"),
        ({"x": 599}, "b"),
        ({"x": 300}, "b"),  # within
        ({"y": 596}, "b"),
    ],
)
def test_an_output_that_shares_a_byte_with_an_input_is_refused(offsets: dict[str, int], other: str) -> None:
    (output,) = offsets
    with pytest.raises(AssertionError, match=f"'{output}' and '{other}' share memory in one call"):
        prove_disjoint(GRAPH, BINDING, placed(**offsets))


def test_an_input_within_an_output_is_refused() -> None:
    around = dataclasses.replace(GRAPH, inputs=GRAPH.outputs, outputs=GRAPH.inputs)  # b, the large one, is written
    with pytest.raises(AssertionError, match="'b' and 'x' share memory in one call"):
        prove_disjoint(around, BINDING, placed(x=300))


def test_two_outputs_in_one_place_are_refused() -> None:
    with pytest.raises(AssertionError, match="'x' and 'y' share memory in one call"):
        prove_disjoint(GRAPH, BINDING, placed(y=736))


def test_two_names_of_one_tensor_are_refused(history: Manifest) -> None:
    plan = plan_memory(history, rows=1, steps=1)
    binding = {**bind(history, "update", variant=0, turn=0), "next_latent": "latent.0"}
    with pytest.raises(AssertionError, match="'next_latent' and 'latent' share memory in one call"):
        prove_disjoint(history.graphs["update"], binding, plan)


def test_inputs_may_share_what_nobody_writes() -> None:
    prove_disjoint(GRAPH, BINDING, placed(a=300))
