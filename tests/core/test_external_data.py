"""Where a graph's weights lie, read from the bytes: the same places that onnx finds, and no crash on other bytes."""

import pathlib
import random

import onnx
import pytest

from taylorseer.errors import BundleError
from taylorseer.external_data import external_locations


def tensor(location: str, **more: str) -> onnx.TensorProto:
    made = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in ({"location": location} | more).items():
        made.external_data.add(key=key, value=value)
    return made


def model() -> onnx.ModelProto:
    """A graph with a tensor in every place that can hold one, each in a file of its own."""
    helper = onnx.helper
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    inner = helper.make_graph([], "inner", [], [value], [tensor("subgraph")])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("attribute")),
        helper.make_node("If", ["b"], ["i"], then_branch=inner, else_branch=inner),
        helper.make_node("Custom", [], ["t"], domain="x", many=[tensor("list-a"), tensor("list-b")], graphs=[inner]),
    ]
    inline = onnx.TensorProto(name="inline", data_type=onnx.TensorProto.FLOAT, dims=[4], raw_data=bytes(16))
    graph = helper.make_graph(nodes, "graph", [], [value], [tensor("initializer", offset="0", length="16"), inline])
    indices = helper.make_tensor("indices", onnx.TensorProto.INT64, [4], [0, 1, 2, 3])
    graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("sparse"), indices, [9]))
    made = helper.make_model(graph)
    body = [helper.make_node("Constant", [], ["y"], value=tensor("function"))]
    made.functions.append(helper.make_function("x", "F", [], ["y"], body, [helper.make_opsetid("", 20)]))
    made.training_info.add().algorithm.initializer.append(tensor("training"))
    return made


PLACES = frozenset(("subgraph", "attribute", "list-a", "list-b", "initializer", "sparse", "function", "training"))


def write(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    (folder / "graph.onnx").write_bytes(content)
    return folder / "graph.onnx"


def test_every_place_is_found(tmp_path: pathlib.Path) -> None:
    assert external_locations(write(tmp_path, model().SerializeToString())) == PLACES


def test_a_graph_without_external_data(tmp_path: pathlib.Path) -> None:
    bare = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], []))
    assert external_locations(write(tmp_path, bare.SerializeToString())) == frozenset()


def test_half_a_message_and_then_the_rest_is_one_message(tmp_path: pathlib.Path) -> None:
    """Protobuf joins the parts of a message that is written in pieces."""
    extra = onnx.ModelProto()
    extra.graph.initializer.append(tensor("second"))
    content = model().SerializeToString() + extra.SerializeToString()
    assert external_locations(write(tmp_path, content)) == PLACES | {"second"}


@pytest.mark.parametrize("content", [b"", b"\x00", b"no graph", b"\x3a\xff", b"\x3b", b"\xff" * 20, b"\x3a\x05\x0a"])
def test_what_is_no_message(tmp_path: pathlib.Path, content: bytes) -> None:
    with pytest.raises(BundleError, match=r"'graph\.onnx' is no ONNX graph .*build the bundle again"):
        external_locations(write(tmp_path, content))


def test_a_place_that_stands_twice_is_refused(tmp_path: pathlib.Path) -> None:
    made = onnx.ModelProto()
    made.graph.initializer.append(tensor("a"))
    entry = made.graph.initializer[0].external_data[0].SerializeToString()
    content = made.SerializeToString()
    twice = content.replace(entry, entry + entry)
    grown = len(entry)
    # Every length before the entry grows: entry, tensor, graph.
    raw = bytearray(twice)
    for at in (1, 3):
        raw[at] += grown
    raw[raw.index(entry) - 1] += grown
    parsed = onnx.ModelProto.FromString(bytes(raw))
    assert parsed.graph.initializer[0].external_data[0].value == "a"
    with pytest.raises(BundleError, match="not one known key and one value"):
        external_locations(write(tmp_path, bytes(raw)))


def test_nesting_has_an_end(tmp_path: pathlib.Path) -> None:
    graph = onnx.helper.make_graph([], "inner", [], [])
    for _ in range(30):
        node = onnx.helper.make_node("Loop", [], [], body=graph)
        graph = onnx.helper.make_graph([node], "g", [], [])
    made = onnx.ModelProto()
    made.graph.CopyFrom(graph)
    with pytest.raises(BundleError, match="nested deeper than 64 messages"):
        external_locations(write(tmp_path, made.SerializeToString()))


def test_damaged_graphs_give_places_or_a_typed_error(tmp_path: pathlib.Path) -> None:
    numbers, content = random.Random(0), model().SerializeToString()
    for _ in range(500):
        damaged = bytearray(content)
        for _ in range(numbers.choice((1, 2, 8))):
            damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        stop = numbers.choice((len(damaged), numbers.randrange(1, len(damaged))))
        try:
            found = external_locations(write(tmp_path, bytes(damaged[:stop])))
        except BundleError:
            continue
        assert all(isinstance(place, str) for place in found)
