"""What changes a plan's fingerprint and what does not, and the digest of the weights that one graph uses."""

import dataclasses
import itertools
import pathlib
import re
import sys
import tracemalloc
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.engines import fingerprint as module
from taylorseer.engines.fingerprint import (
    PlanRecipe,
    document_fingerprint,
    fingerprint,
    graph_digest,
    recipe_document,
    weights_digest,
)
from taylorseer.errors import BundleError, DependencyError

LATENT = ("latent", (1, 16, 64, 64), (2, 16, 64, 64), (4, 16, 64, 64))
TEXT = ("text", (1, 8), (2, 8), (4, 8))

RECIPE = PlanRecipe(
    graph_sha256="a" * 64,
    weights_sha256="b" * 64,
    profiles=(LATENT, TEXT),
    precision="bf16",
    options={"builder_optimization_level": 3, "STRONGLY_TYPED": True, "tactic_sources": None, "hardware": "none"},
    flavor="tensorrt",
    tensorrt_version="10.13.3",
    compute_capability="8.9",
    tool_version="0.1.0",
)

MUTATIONS: dict[str, list[Any]] = {
    "graph_sha256": ["a" * 63 + "b"],
    "weights_sha256": ["", "a" * 64],
    "profiles": [
        (),
        (LATENT,),
        (("x", *LATENT[1:]), TEXT),
        *((LATENT, (*TEXT[:i], (3, 8), *TEXT[i + 1 :])) for i in (1, 2, 3)),
        (LATENT, ("text", (1, 8), (2, 8), (4, 8, 1))),
        (("text", *LATENT[1:]), ("latent", *TEXT[1:])),
    ],
    "precision": ["fp16"],
    "options": [
        {},
        RECIPE.options | {"builder_optimization_level": 4},  # type: ignore[operator]
        RECIPE.options | {"builder_optimization_level": "3"},  # type: ignore[operator]
        RECIPE.options | {"STRONGLY_TYPED": 1},  # type: ignore[operator]
        RECIPE.options | {"tactic_sources": ""},  # type: ignore[operator]
        RECIPE.options | {"tactic_sources": 0},  # type: ignore[operator]
        RECIPE.options | {"new": None},  # type: ignore[operator]
    ],
    "flavor": ["tensorrt-rtx"],
    "tensorrt_version": ["10.13.30"],
    "compute_capability": ["9.0"],
    "tool_version": ["0.1.1"],
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(PlanRecipe)])
def test_every_field_changes_the_fingerprint(field: str) -> None:
    changed = [dataclasses.replace(RECIPE, **{field: value}) for value in MUTATIONS[field]]
    keys = {fingerprint(recipe) for recipe in [RECIPE, *changed]}
    assert len(keys) == 1 + len(changed) > 1


def test_two_fields_cannot_stand_for_each_other() -> None:
    swapped = dataclasses.replace(RECIPE, graph_sha256=RECIPE.weights_sha256, weights_sha256=RECIPE.graph_sha256)
    assert fingerprint(swapped) != fingerprint(RECIPE)


def test_the_order_of_profiles_and_options_does_not_matter() -> None:
    keys = {
        fingerprint(dataclasses.replace(RECIPE, profiles=profiles, options=dict(options)))
        for profiles in itertools.permutations(RECIPE.profiles)
        for options in itertools.permutations(RECIPE.options.items())
    }
    assert keys == {fingerprint(RECIPE)}


def test_a_fingerprint_is_64_hexadecimal_digits() -> None:
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(RECIPE))


def test_a_new_field_changes_the_fingerprint_even_with_a_default() -> None:
    later = dataclasses.make_dataclass(
        "Later", [("refittable", bool, False)], bases=(PlanRecipe,), frozen=True, kw_only=True
    )
    fields = {field.name: getattr(RECIPE, field.name) for field in dataclasses.fields(RECIPE)}
    assert fingerprint(later(**fields)) != fingerprint(RECIPE)


def test_a_new_format_changes_the_fingerprint_and_keeps_old_documents_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    before, document = fingerprint(RECIPE), recipe_document(RECIPE)
    monkeypatch.setattr(module, "_FORMAT", "taylorseer-plan/2")
    assert fingerprint(RECIPE) != before
    assert document_fingerprint(document) == before


def test_a_tensor_that_is_profiled_twice_is_a_bug() -> None:
    with pytest.raises(ValueError, match="names each tensor once"):
        dataclasses.replace(RECIPE, profiles=(TEXT, LATENT, TEXT))


def test_a_value_that_json_would_not_keep_is_a_bug() -> None:
    with pytest.raises(TypeError):
        fingerprint(dataclasses.replace(RECIPE, options={"flag": object()}))  # type: ignore[dict-item]


WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.int64),
}


def initializer(name: str, array: np.ndarray[Any, Any], offset: int, location: str = "weights.data") -> ir.Value:
    dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    tensor = ir.ExternalTensor(location, offset, array.nbytes, dtype, shape=shape, name=name)
    return ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=shape)


def save(folder: pathlib.Path, *values: ir.Value, nodes: tuple[ir.Node, ...] = ()) -> pathlib.Path:
    graph = ir.Graph([], [], nodes=nodes, initializers=values, opset_imports={"": 20}, name="graph")
    ir.save(ir.Model(graph, ir_version=10), folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.fixture
def graph(tmp_path: pathlib.Path) -> pathlib.Path:
    """Weights: 3 unused bytes, a, 2 unused bytes, b, 4 unused bytes."""
    (tmp_path / "weights.data").write_bytes(b"xyz" + WEIGHTS["a"].tobytes() + b"uv" + WEIGHTS["b"].tobytes() + b"rest")
    return save(tmp_path, initializer("a", WEIGHTS["a"], 3), initializer("b", WEIGHTS["b"], 29))


def test_the_digest_of_a_graph_is_that_of_its_bytes(graph: pathlib.Path) -> None:
    before = graph_digest(graph)
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert graph_digest(graph) != before
    with pytest.raises(BundleError, match=r"'.*none\.onnx' cannot be read: .*Build the bundle again"):
        graph_digest(graph.with_name("none.onnx"))


def test_exactly_the_used_bytes_count(graph: pathlib.Path) -> None:
    before, content = weights_digest(graph), (graph.parent / "weights.data").read_bytes()
    used = {*range(3, 27), *range(29, 69)}
    assert len(content) == 73
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1
        (graph.parent / "weights.data").write_bytes(changed)
        assert (weights_digest(graph) != before) == (index in used)


def test_where_the_bytes_lie_does_not_count(graph: pathlib.Path) -> None:
    before = weights_digest(graph)
    for name, array in WEIGHTS.items():
        (graph.parent / f"{name}.bin").write_bytes(array.tobytes())
    save(graph.parent, *(initializer(name, WEIGHTS[name], 0, f"{name}.bin") for name in ("b", "a")))
    assert weights_digest(graph) == before


@pytest.mark.parametrize(
    "changed",
    [
        initializer("c", WEIGHTS["a"], 3),
        initializer("a", WEIGHTS["a"].reshape(3, 2), 3),
        initializer("a", WEIGHTS["a"].view(np.int32), 3),
    ],
)
def test_name_shape_and_dtype_count(graph: pathlib.Path, changed: ir.Value) -> None:
    before = weights_digest(graph)
    save(graph.parent, changed, initializer("b", WEIGHTS["b"], 29))
    assert weights_digest(graph) != before


def test_a_graph_without_external_weights(graph: pathlib.Path) -> None:
    tensor = ir.tensor(WEIGHTS["a"], name="a")
    save(graph.parent, ir.Value(name="a", const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape))
    assert weights_digest(graph) == ""


def test_constants_and_subgraphs_count_too(graph: pathlib.Path) -> None:
    external = initializer("a", WEIGHTS["a"], 3)
    constant = ir.node("Constant", [], attributes={"value": external.const_value})  # type: ignore[dict-item]
    alone = save(graph.parent, nodes=(constant,))
    digest = weights_digest(alone)
    assert digest
    body = ir.Graph([], [], nodes=[], initializers=[initializer("a", WEIGHTS["a"], 3)], name="body")
    save(graph.parent, nodes=(ir.node("If", [], attributes={"then_branch": body}),))
    assert weights_digest(graph) == digest


def test_memory_does_not_grow_with_the_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 2**16)
    weights = np.random.default_rng(0).integers(0, 256, 2**24, np.uint8)
    weights.tofile(tmp_path / "weights.data")
    graph = save(tmp_path, initializer("w", weights, 0))
    weights_digest(graph)  # what is imported and remembered once
    tracemalloc.start()
    try:
        weights_digest(graph)
        assert tracemalloc.get_traced_memory()[1] < weights.nbytes / 8
    finally:
        tracemalloc.stop()


def test_blocks_do_not_change_the_digest(graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_digest(graph)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert weights_digest(graph) == before


def test_a_missing_weights_file(graph: pathlib.Path) -> None:
    (graph.parent / "weights.data").unlink()
    message = r"weights file '.*weights\.data', which graph\.onnx refers to, cannot be read: .*beside the graph"
    with pytest.raises(BundleError, match=message):
        weights_digest(graph)


def test_a_truncated_weights_file(graph: pathlib.Path) -> None:
    content = (graph.parent / "weights.data").read_bytes()
    (graph.parent / "weights.data").write_bytes(content[:68])
    message = r"weights\.data' has 68 bytes, but 'b' lies at 29 to 69: it was truncated or replaced\. Copy it again"
    with pytest.raises(BundleError, match=message):
        weights_digest(graph)


@pytest.mark.parametrize("location", ["../weights.data", "/etc/hostname"])
def test_weights_outside_the_folder(graph: pathlib.Path, location: str) -> None:
    save(graph.parent, initializer("a", WEIGHTS["a"], 0, location))
    with pytest.raises(BundleError, match=rf"weights of 'a' from '{location}', outside its folder: do not use"):
        weights_digest(graph)


@pytest.mark.parametrize("content", [b"no graph", None])
def test_a_file_that_is_no_graph(tmp_path: pathlib.Path, content: bytes | None) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"The graph '.*x\.onnx' cannot be read: .*Build the bundle again"):
        weights_digest(path)


def test_without_onnx_ir(graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)  # type: ignore[arg-type]
    with pytest.raises(DependencyError, match=r"needs onnx-ir: `pip install onnx-ir`"):
        weights_digest(graph)
