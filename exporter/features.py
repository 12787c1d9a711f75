"""Finds feature values through the module scope that the exporter records on each node."""

import ast
import dataclasses
import re
from collections.abc import Sequence

import onnx_ir as ir

from taylorseer.errors import GraphError

__all__ = ["Feature", "find_features", "module_scopes"]

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclasses.dataclass(frozen=True)
class Feature:
    """The output of one module: a graph value [batch, rows, width], taken before its gate."""

    name: str
    """The module's name in diffusers, for example ``transformer_blocks.0.ff``."""
    value: ir.Value


def find_features(graph: ir.Graph, patterns: Sequence[str]) -> list[Feature]:
    """Return the features of ``graph``, in graph order.

    Args:
        graph: an exported graph whose nodes carry their module scopes.
        patterns: module names in which ``*`` stands for a block's index.

    Raises:
        GraphError: a pattern names no module, or a module hands on anything but one tensor.
    """
    matchers = [(pattern, re.compile(re.escape(pattern).replace(r"\*", r"\d+"))) for pattern in patterns]
    members: dict[str, list[ir.Node]] = {}
    seen: set[str] = set()
    for node in graph:
        for scope in module_scopes(node):
            for pattern, matcher in matchers:
                if matcher.fullmatch(scope):
                    seen.add(pattern)
                    members.setdefault(scope, []).append(node)
    if missing := [pattern for pattern in patterns if pattern not in seen]:
        raise GraphError(
            f"No module of the graph matches the feature {missing[0]!r}. Was it exported by torch.onnx.export("
            "dynamo=True), which records module scopes, and is it of this model family?"
        )
    return [Feature(name, _output(name, nodes, graph)) for name, nodes in members.items()]


def module_scopes(node: ir.Node) -> list[str]:
    """Return the modules that ``node`` was traced in, the outermost first."""
    text = node.metadata_props.get(_SCOPES)
    return ast.literal_eval(text) if text else []


def _output(name: str, nodes: list[ir.Node], graph: ir.Graph) -> ir.Value:
    """Return the one value that leaves the module whose nodes are given."""
    inside = set(nodes)
    leaving = [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
    ]
    if len(leaving) != 1:
        raise GraphError(f"The module {name!r} hands on {len(leaving)} tensors, not one; it cannot be a feature.")
    return leaving[0]
