"""The **prepare** graph: all that depends on the request and the timestep, and never on the latent.

Gates, shifts, scales, embedded text and token refiners run once a request, batched over its timesteps.  The full and
the forecast graph read what they need of a step from one row of a table, and lose the weights that made it.

Before: ``latent-dependent(x, Unsqueeze(Split(Gemm(silu(embedding(timestep))))))``
After:  prepare: ``prepared = Concat(Flatten(...), ...)``; elsewhere: ``latent-dependent(x, Reshape(Slice(prepared)))``
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from taylorseer.exporter.features import module_scopes
from taylorseer.exporter.passes.cleaning import drop_unused, finish
from taylorseer.manifest import Role

__all__ = [
    "STEP_BATCH",
    "Boundary",
    "PreparedValue",
    "find_boundary",
    "prepare_graph",
    "read_from_tables",
    "table_dtype",
    "take_inputs",
]

STEP_BATCH = "step_batch"
"""The dynamic batch of what is computed for every timestep: rows of the model's batch times steps of a chunk."""

_WIDE = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclasses.dataclass(frozen=True)
class PreparedValue:
    """A value that crosses from prepare to the other graphs."""

    name: str
    """Of the value in the whole model's graph."""
    shape: tuple[int | str, ...]
    """The batch first."""
    dtype: ir.DataType
    every_step: bool
    """Whether it differs from step to step; otherwise it is computed once a request."""

    @property
    def input_name(self) -> str:
        """The name of the graph input that stands for it: for good, or until the tables are known."""
        return f"{'prepared' if self.every_step else 'request'}.{self.name}"

    @property
    def size(self) -> int:
        """Numbers per row of the batch."""
        return math.prod(int(size) for size in self.shape[1:])


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Where a model is cut."""

    values: tuple[PreparedValue, ...]
    repeated: frozenset[str]
    """Inputs of prepare that come once for each timestep: the timestep, and what is combined with it."""


def find_boundary(model: ir.Model, roles: Mapping[str, Role], features: Iterable[str]) -> Boundary:
    """Return the values that depend on the request alone and are read by what depends on the latent.

    Rows of tokens inside a block stay there, though the first block's text does not know the latent yet: a table of
    them for every step would be large, and computing them is a full step's work anyway.

    Args:
        model: the whole transformer.
        roles: of its inputs.
        features: names of the features, whose blocks are not looked into for rows of tokens.
    """
    blocks = {match[0] for name in features if (match := re.match(r".*?\.\d+(?=\.)", name))}
    needs = _dependences(model, roles, blocks)
    repeated = _repeated_inputs(needs, {n for n, role in roles.items() if role in ("timestep", "guidance")})
    values = [
        _prepared(value, names, repeated)
        for value, names in needs.items()
        if names and _LATENT not in names and any(_LATENT in needs[user.outputs[0]] for user, _ in value.uses())
    ]
    return Boundary(tuple(values), frozenset(repeated))


_LATENT = ""
"""Stands for the latent among the names of inputs that a value depends on."""

_Needs = dict[ir.Value, frozenset[str]]


def _dependences(model: ir.Model, roles: Mapping[str, Role], blocks: set[str]) -> _Needs:
    """Return for each value the inputs that it depends on; what stays with the latent depends on :data:`_LATENT`."""
    needs: _Needs = {
        value: frozenset({_LATENT if roles[str(value.name)] == "latent" else str(value.name)})
        for value in model.graph.inputs
    }
    for node in model.graph:
        names = frozenset().union(*(needs.get(value, frozenset()) for value in node.inputs if value is not None))
        for output in node.outputs:
            tokens = names and output.shape is not None and len(output.shape) > 2 and output.shape[1] != 1
            inside = tokens and not blocks.isdisjoint(module_scopes(node))
            needs[output] = names | {_LATENT} if inside else names
    return needs


def _repeated_inputs(needs: _Needs, step_inputs: set[str]) -> set[str]:
    """Return the inputs that are combined with the timestep on the way, and so have to come once for each."""
    repeated, before = set(step_inputs), 0
    while len(repeated) > before:
        before = len(repeated)
        for names in needs.values():
            if _LATENT not in names and not repeated.isdisjoint(names):
                repeated |= names
    return repeated


def _prepared(value: ir.Value, names: frozenset[str], repeated: set[str]) -> PreparedValue:
    assert value.shape is not None and value.dtype is not None
    shape = tuple(size if isinstance(size, int) else "batch" for size in value.shape)
    return PreparedValue(str(value.name), shape, value.dtype, not repeated.isdisjoint(names))


def take_inputs(model: ir.Model, boundary: Boundary) -> None:
    """Replace the boundary's values by graph inputs, one each, in place, and drop what only served to compute them."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    values |= {str(value.name): value for value in model.graph.inputs}
    for prepared in boundary.values:
        value = values[prepared.name]
        stand_in = ir.Value(name=prepared.input_name, shape=value.shape, type=value.type)
        model.graph.inputs.append(stand_in)
        value.replace_all_uses_with(stand_in, replace_graph_outputs=True)
    drop_unused(model)


def prepare_graph(model: ir.Model, boundary: Boundary, tables: Mapping[str, Sequence[PreparedValue]]) -> ir.Model:
    """Return the graph that makes the tables, and what is computed once; ``model`` itself is left as it was.

    Args:
        model: the whole transformer.
        boundary: where it is cut.
        tables: name of a table -> its values, in the order of their columns, all of one dtype.
    """
    prepare = model.clone()
    graph = prepare.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    values |= {str(value.name): value for value in graph.inputs}
    graph.outputs.clear()
    for name, columns in tables.items():
        parts = [_flat(graph, values[column.name], column) for column in columns]
        table = _append(graph, "Concat", parts, axis=1)
        _yield(graph, table, name, (STEP_BATCH, sum(column.size for column in columns)), table_dtype(columns[0]))
    for once in (value for value in boundary.values if not value.every_step):
        _yield(graph, _append(graph, "Identity", [values[once.name]]), once.input_name, once.shape, once.dtype)
    drop_unused(prepare)
    for value in graph.inputs:
        assert value.shape is not None
        batch = STEP_BATCH if value.name in boundary.repeated else "batch"
        value.shape = ir.Shape([size if isinstance(size, int) else batch for size in value.shape])
    _name_step_batch(prepare, boundary)
    finish(prepare)
    return prepare


def _name_step_batch(prepare: ir.Model, boundary: Boundary) -> None:
    """Say which values have a row for each timestep: whoever counts work or memory has only the shapes to go by."""
    roles: dict[str, Role] = dict.fromkeys((str(value.name) for value in prepare.graph.inputs), "condition")
    for value, names in _dependences(prepare, roles, set()).items():
        if value.shape is not None and not boundary.repeated.isdisjoint(names):
            sizes = [STEP_BATCH if str(size) == "batch" else size for size in value.shape]
            value.shape = ir.Shape(sizes)


def read_from_tables(model: ir.Model, tables: Mapping[str, Sequence[PreparedValue]]) -> None:
    """Replace the stand-ins of :func:`take_inputs` by columns of the tables, in place, as far as ``model`` has them."""
    graph = model.graph
    stand_ins = {str(value.name): value for value in graph.inputs}
    for name, columns in tables.items():
        width, start = sum(column.size for column in columns), 0
        table = ir.Value(name=name, shape=ir.Shape(["batch", width]), type=ir.TensorType(table_dtype(columns[0])))
        for column in columns:
            stand_in = stand_ins.pop(column.input_name, None)  # what two tables have is read from the first
            if stand_in is not None:
                part = _columns(graph, table, start, start + column.size)
                stand_in.replace_all_uses_with(_restored(graph, part, column))
                graph.inputs.remove(stand_in)
            start += column.size
        if table.uses():
            graph.inputs.append(table)
    finish(model)


def table_dtype(value: PreparedValue) -> ir.DataType:
    """Return the dtype of a value's column: masks travel as numbers."""
    return value.dtype if value.dtype in _WIDE else ir.DataType.FLOAT


def _flat(graph: ir.Graph, value: ir.Value, column: PreparedValue) -> ir.Value:
    flat = _append(graph, "Reshape", [value, _integers(graph, -1, column.size)])
    return flat if column.dtype in _WIDE else _append(graph, "Cast", [flat], to=int(ir.DataType.FLOAT))


def _columns(graph: ir.Graph, table: ir.Value, start: int, stop: int) -> ir.Value:
    if (start, stop) == (0, int(table.shape[1])):  # type: ignore[index,arg-type]
        return table
    bounds = [_integers(graph, number) for number in (start, stop, 1)]
    return _prepend(graph, "Slice", [table, *bounds], ("batch", stop - start), table.dtype)


def _restored(graph: ir.Graph, part: ir.Value, column: PreparedValue) -> ir.Value:
    sizes = [-1, *(int(size) for size in column.shape[1:])]
    if column.dtype not in _WIDE:
        part = _prepend(graph, "Cast", [part], tuple(part.shape or ()), column.dtype, to=int(column.dtype))
    if len(sizes) == 2:
        return part
    return _prepend(graph, "Reshape", [part, _integers(graph, *sizes)], column.shape, column.dtype)


def _yield(graph: ir.Graph, value: ir.Value, name: str, shape: Sequence[int | str], dtype: ir.DataType) -> None:
    value.name, value.shape, value.type = name, ir.Shape(list(shape)), ir.TensorType(dtype)
    graph.outputs.append(value)


def _append(graph: ir.Graph, op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
    node = ir.node(op_type, list(inputs), attributes=dict(attributes) or None)
    graph.append(node)
    return node.outputs[0]


def _prepend(
    graph: ir.Graph,
    op_type: str,
    inputs: Sequence[ir.Value],
    shape: Sequence[object],
    dtype: ir.DataType | None,
    **attributes: int,
) -> ir.Value:
    node = ir.node(op_type, list(inputs), attributes=dict(attributes) or None)
    graph.append(node)  # put in its place by the sort at the end
    output = node.outputs[0]
    output.shape = ir.Shape([size if isinstance(size, int) else "batch" for size in shape])
    output.type = None if dtype is None else ir.TensorType(dtype)
    return output


def _integers(graph: ir.Graph, *numbers: int) -> ir.Value:
    name = "integers." + ".".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(numbers, np.int64), name=name)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
