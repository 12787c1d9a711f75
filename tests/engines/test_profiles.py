"""Optimization profiles: one range for every input with a batch, the other sizes fixed."""

import pytest

from taylorseer.engines.profiles import ShapeRange, batch_profile
from taylorseer.errors import BackendError
from taylorseer.manifest import GraphSpec, TensorSpec


@pytest.fixture
def graph() -> GraphSpec:
    return GraphSpec(
        file="graphs/full.onnx",
        inputs=(
            TensorSpec(name="latent", role="latent", shape=("batch", 3, 8), dtype="float32"),
            TensorSpec(name="coefficients", role="coefficients", shape=(3,), dtype="float32"),
            TensorSpec(name="state.a.0", role="state", shape=(4, "batch"), dtype="bfloat16", feature="a", index=0),
        ),
        outputs=(TensorSpec(name="prediction", role="prediction", shape=("batch", 3, 8), dtype="float32"),),
    )


def test_inputs_with_a_batch_have_a_range_wherever_it_stands(graph: GraphSpec) -> None:
    assert batch_profile(graph, smallest=1, best=2, largest=6) == (
        ShapeRange("latent", (1, 3, 8), (2, 3, 8), (6, 3, 8)),
        ShapeRange("state.a.0", (4, 1), (4, 2), (4, 6)),
    )


def test_one_batch_is_a_static_plan(graph: GraphSpec) -> None:
    for entry in batch_profile(graph, smallest=2, best=2, largest=2):
        assert entry.min == entry.opt == entry.max


def test_a_graph_without_a_batch_has_no_profile(graph: GraphSpec) -> None:
    static = GraphSpec(file=graph.file, inputs=graph.inputs[1:2], outputs=graph.outputs)
    assert batch_profile(static, smallest=1, best=1, largest=4) == ()


@pytest.mark.parametrize("batches", [(2, 1, 4), (1, 5, 4), (4, 4, 1), (0, 1, 1), (-1, 1, 1)])
def test_batches_that_descend_or_are_none(graph: GraphSpec, batches: tuple[int, int, int]) -> None:
    smallest, best, largest = batches
    with pytest.raises(BackendError) as refused:
        batch_profile(graph, smallest=smallest, best=best, largest=largest)
    assert str(refused.value) == (
        f"The batches of the optimization profile are {smallest}, {best} and {largest}: they must be 1 or more and "
        "not descend."
    )


def test_a_step_batch_has_a_range_of_its_own(graph: GraphSpec) -> None:
    timestep = TensorSpec(name="timestep", role="timestep", shape=("step_batch",), dtype="float32")
    prepare = GraphSpec(file="graphs/prepare.onnx", inputs=(timestep, *graph.inputs[:2]), outputs=graph.outputs)
    assert batch_profile(prepare, smallest=2, best=2, largest=4, step_rows=64) == (
        ShapeRange("timestep", (1,), (64,), (64,)),
        ShapeRange("latent", (2, 3, 8), (2, 3, 8), (4, 3, 8)),
    )


def test_a_step_batch_of_nothing(graph: GraphSpec) -> None:
    with pytest.raises(BackendError, match=r"^The step batch of the optimization profile is 0 at the most: it must be"):
        batch_profile(graph, smallest=1, best=1, largest=1, step_rows=0)
