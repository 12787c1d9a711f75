"""What the manifest says of a graph: its inputs and outputs, each with its role."""

from collections.abc import Mapping

import onnx_ir as ir

from taylorseer.exporter.families import ModelInput
from taylorseer.exporter.prepare import STEP_BATCH
from taylorseer.manifest import GraphSpec, Role, TensorSpec

__all__ = ["graph_spec"]

_NAMED: Mapping[str, Role] = {
    "latent": "latent",
    "next_latent": "next_latent",
    "prediction": "prediction",
    "clip": "clip",
    "probe": "probe",
    "update_numbers": "update_numbers",
    "coefficients": "coefficients",
    "difference_scales": "difference_scales",
    "accumulator": "accumulator",
    "fold_weights": "fold_weights",
    "gates_ahead": "gates_ahead",
}

_PREFIXED: Mapping[str, Role] = {
    "prepared": "prepared",
    "request": "request",
    "feature": "feature",
    "state": "state",
    "previous": "previous",
    "next": "state",
    "accumulator": "accumulator",
    "carried": "carried",
}
"""What stands before the first dot of a name that the split made."""


def graph_spec(model: ir.Model, file: str, inputs: tuple[ModelInput, ...]) -> GraphSpec:
    """Return the spec of one graph.

    Args:
        model: the graph; shapes and dtypes of its inputs and outputs are known.
        file: its path inside the bundle.
        inputs: of the whole transformer, as its family says.
    """
    roles: dict[str, Role] = {spec.name: spec.role for spec in inputs}
    return GraphSpec(
        file=file,
        inputs=tuple(_tensor_spec(value, roles) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value, roles) for value in model.graph.outputs),
    )


def _tensor_spec(value: ir.Value, roles: Mapping[str, Role]) -> TensorSpec:
    name = str(value.name)
    assert value.shape is not None and value.dtype is not None
    shape = tuple(_size(size) for size in value.shape)
    dtype = value.dtype.numpy().name
    if name in _NAMED or name in roles:
        return TensorSpec(name=name, role=_NAMED.get(name) or roles[name], shape=shape, dtype=dtype)
    kind, _, rest = name.partition(".")
    role = _PREFIXED[kind]
    if role in ("prepared", "request"):
        return TensorSpec(name=name, role=role, shape=shape, dtype=dtype)
    if role == "feature":
        return TensorSpec(name=name, role=role, shape=shape, dtype=dtype, feature=rest)
    if role in ("accumulator", "carried"):
        return TensorSpec(name=name, role=role, shape=shape, dtype=dtype, index=int(rest))
    feature, _, index = rest.rpartition(".")
    return TensorSpec(name=name, role=role, shape=shape, dtype=dtype, feature=feature, index=int(index))


def _size(size: "int | ir.SymbolicDim") -> int | str:
    if isinstance(size, int):
        return size
    return STEP_BATCH if size.value == STEP_BATCH else "batch"
