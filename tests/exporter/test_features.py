"""Features are found by module scope."""

import onnx_ir as ir
import pytest

from taylorseer.errors import GraphError
from taylorseer.exporter.families import FAMILIES
from taylorseer.exporter.features import find_features

SCOPES = "pkg.torch.onnx.name_scopes"


def scoped(body: str, scopes: dict[str, list[str]], outputs: str = "float[B,4] y") -> ir.Model:
    """A graph whose nodes, named by their first outputs, carry module scopes from the outermost to the innermost."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]> g (float[B,4] x) => ({outputs}) {{ {body} }}')
    for node in model.graph:
        node.metadata_props[SCOPES] = repr(["", *scopes.get(str(node.outputs[0].name), [])])
    return model


TWO_BLOCKS = "a = Neg(x) b = Exp(a) c = Add(b, x) d = Neg(c) e = Exp(d) y = Add(e, c)"
FF = {
    "a": ["blocks.0", "blocks.0.ff", "blocks.0.ff.0"],
    "b": ["blocks.0", "blocks.0.ff"],
    "c": ["blocks.0"],
    "d": ["blocks.10", "blocks.10.ff"],
    "e": ["blocks.10", "blocks.10.ff"],
    "y": ["blocks.10"],
}


def test_a_feature_is_what_leaves_its_module() -> None:
    found = find_features(scoped(TWO_BLOCKS, FF).graph, ["blocks.*.ff"])
    assert [(feature.name, feature.value.name) for feature in found] == [("blocks.0.ff", "b"), ("blocks.10.ff", "e")]


def test_a_star_is_an_index_and_a_dot_is_a_dot() -> None:
    graph = scoped(TWO_BLOCKS, FF).graph
    for pattern in ("blocks.*.f", "blocks.*", "blocks.*ff", "*.ff", "blocks...ff"):
        if pattern == "blocks.*":  # a block as a whole is a module too
            assert [feature.name for feature in find_features(graph, [pattern])] == ["blocks.0", "blocks.10"]
        else:
            with pytest.raises(GraphError, match="No module of the graph matches"):
                find_features(graph, [pattern])


def test_one_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(GraphError, match=r"'blocks\.\*\.attn'"):
        find_features(scoped(TWO_BLOCKS, FF).graph, ["blocks.*.ff", "blocks.*.attn"])


def test_a_graph_without_scopes_is_refused() -> None:
    model = scoped(TWO_BLOCKS, FF)
    for node in model.graph:
        node.metadata_props.clear()
    with pytest.raises(GraphError, match="dynamo=True"):
        find_features(model.graph, ["blocks.*.ff"])


def test_a_module_that_hands_on_two_tensors_is_refused() -> None:
    model = scoped("a = Neg(x) b = Exp(a) y = Add(a, b)", {"a": ["m.0"], "b": ["m.0"]})
    with pytest.raises(GraphError, match="hands on 2 tensors"):
        find_features(model.graph, ["m.*"])


def test_a_module_whose_output_is_the_graphs_is_a_feature() -> None:
    (feature,) = find_features(scoped("a = Neg(x) y = Exp(a)", {"a": ["m.0"], "y": ["m.0"]}).graph, ["m.*"])
    assert feature.value.name == "y"


@pytest.mark.parametrize(
    ("name", "double", "single"), [("flux-tiny", 2, 3), ("hunyuan-video-tiny", 2, 2), ("dit-tiny", 3, 0)]
)
def test_each_family_has_all_its_features(whole_model, name: str, double: int, single: int) -> None:  # type: ignore[no-untyped-def]
    family = FAMILIES[name.removesuffix("-tiny")]
    found = find_features(whole_model(name).graph, family.features)
    per_block = 4 if single else 2
    assert len(found) == double * per_block + single
    assert len({feature.name for feature in found}) == len(found)
    assert all(feature.value.shape is not None and len(feature.value.shape) == 3 for feature in found)
