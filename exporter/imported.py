"""A model that was exported, and perhaps quantized, elsewhere: checked and cleaned without reading its weights.

What lies in data files beside the ONNX file is a weight, which :mod:`taylorseer.exporter.data_files` takes away before
the graph is cleaned: parameters have no data after a trace either.  Afterwards they refer to the bundle's own files.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from taylorseer.errors import CheckpointError, GraphError
from taylorseer.exporter.data_files import detach_weights
from taylorseer.exporter.families import ModelFamily, ModelInput
from taylorseer.exporter.features import Feature, module_scopes
from taylorseer.exporter.passes.cleaning import clean
from taylorseer.exporter.tracing import strip_prefix

__all__ = ["ImportedModel", "import_model", "require_precision"]

_DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

_FLOATS = {*_DTYPES.values(), ir.DataType.DOUBLE}


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """A whole transformer and where its weights are."""

    model: ir.Model
    """Cleaned; external tensors refer to the names in ``files``."""
    files: Mapping[str, pathlib.Path]
    """The data file behind each name beside the bundle's graphs."""


def import_model(
    file: pathlib.Path,
    family: ModelFamily,
    inputs: Sequence[ModelInput],
    constants: Mapping[str, npt.NDArray[np.float32]],
) -> ImportedModel:
    """Open the ONNX model ``file`` and make it what a trace of the same transformer would be.

    Its prediction is the one output, float32 and called ``prediction``; float inputs of another precision are cast
    from float32; inputs that the sizes determine (position ids) become constants.

    Args:
        file: a model of ``torch.onnx.export(dynamo=True)``.
        family: the model family that it has to be of.
        inputs: the family's inputs, at the sizes that the model was exported for.
        constants: the arguments of ``forward`` that the sizes determine.

    Raises:
        CheckpointError: the file or its data is missing or malformed, data lies outside the file's folder, or the model
            is of another family or size.
        GraphError: no node says in which module it was traced.
    """
    model = _open(file)
    _strip_modules_prefix(model, family, file)
    common.RemoveInitializersFromInputsPass()(model)
    _fix_constants(model, constants, file)
    _require_inputs(model, inputs, family, file)
    _take_float32(model, inputs)
    _name_prediction(model, file)
    weights, files = detach_weights(model, file)
    clean(model)
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = weights[name]
    return ImportedModel(model, files)


def require_precision(features: Sequence[Feature], precision: str, file: pathlib.Path) -> None:
    """Refuse features that cannot be remembered in ``precision``.

    Raises:
        GraphError: a feature of another dtype, or one that is not [batch, rows, width] of known sizes.
    """
    known = {dtype: name for name, dtype in _DTYPES.items()}
    for feature in features:
        dtype, shape = feature.value.dtype, feature.value.shape
        if shape is None or len(shape) != 3 or not all(isinstance(size, int) for size in list(shape)[1:]):
            raise GraphError(
                f"The feature {feature.name!r} of {file.name!r} has the shape {_sizes(shape)}, not [batch, rows, "
                "width] of fixed rows and width: export it with the batch as its only dynamic dimension."
            )
        if dtype != _DTYPES[precision]:
            advice = f"give --precision {known[dtype]}" if dtype in known else "export it in a precision of those"
            raise GraphError(
                f"The feature {feature.name!r} of {file.name!r} is {dtype}, and --precision {precision} was asked: "
                f"{advice} ({', '.join(_DTYPES)})."
            )


def _open(file: pathlib.Path) -> ir.Model:
    if not file.is_file():
        raise CheckpointError(f"There is no ONNX file {str(file)!r}: give --onnx the file of a whole transformer.")
    try:
        return ir.load(file, format="protobuf")
    except Exception as error:  # protobuf, onnx and onnx-ir each raise their own
        raise CheckpointError(
            f"{str(file)!r} cannot be read as an ONNX model ({type(error).__name__}: {error}): give --onnx the file of "
            "a whole transformer."
        ) from error


def _strip_modules_prefix(model: ir.Model, family: ModelFamily, file: pathlib.Path) -> None:
    """Give modules and parameters their names in diffusers when the transformer was part of a larger module."""
    patterns = "|".join(re.escape(pattern).replace(r"\*", r"\d+") for pattern in family.features)
    matcher = re.compile(rf"(|.*\.)(?:{patterns})")
    scopes = {scope for node in model.graph for scope in module_scopes(node)}
    prefixes = {match[1] for scope in scopes if (match := matcher.fullmatch(scope))}
    if len(prefixes) != 1:
        found = f"modules of {len(prefixes)} transformers" if prefixes else "no module"
        raise GraphError(
            f"{file.name!r} names {found} like {family.features[0]!r} in the metadata of its nodes, where one "
            f"{family.name} transformer is wanted: export it by torch.onnx.export(dynamo=True), which records the "
            "module scopes, and let optimizers and quantizers keep them."
        )
    if prefix := prefixes.pop():
        strip_prefix(model, prefix)


def _fix_constants(model: ir.Model, constants: Mapping[str, npt.NDArray[np.float32]], file: pathlib.Path) -> None:
    """Replace position ids, inputs or stored, by the family's for these sizes."""
    named = {str(value.name): value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for name in constants.keys() & named.keys():
        value, array = named[name], constants[name]
        if value.dtype not in _FLOATS or value.shape is None or not _fits(value.shape, array.shape):
            raise _another_size(file, name, value, f"float32 {list(array.shape)}")
        value.const_value = ir.tensor(array.astype(value.dtype.numpy()), dtype=value.dtype, name=name)
        value.shape = ir.Shape(array.shape)
        if value.is_graph_input():
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)


def _require_inputs(model: ir.Model, inputs: Sequence[ModelInput], family: ModelFamily, file: pathlib.Path) -> None:
    found, wanted = {str(value.name): value for value in model.graph.inputs}, {spec.name: spec for spec in inputs}
    if found.keys() != wanted.keys():
        raise CheckpointError(
            f"{file.name!r} takes the inputs {', '.join(sorted(found)) or '(none)'}; this {family.name} model takes "
            f"{', '.join(sorted(wanted))}: give the --model that was exported, its inputs named as in diffusers."
        )
    for name, spec in wanted.items():
        value = found[name]
        dtypes = _FLOATS if spec.dtype == "float32" else {ir.DataType.INT64}
        if value.dtype not in dtypes or value.shape is None or not _fits(value.shape, spec.shape):
            raise _another_size(file, name, value, f"{spec.dtype} {_sizes(spec.shape)}")


def _fits(found: ir.Shape, wanted: Sequence[int | str]) -> bool:
    """Whether the sizes are the same; ``batch`` wants a dynamic one, and a dynamic one is good for ``batch`` only."""
    sizes = [size if isinstance(size, int) else "batch" for size in found]
    return sizes == list(wanted)


def _another_size(file: pathlib.Path, name: str, value: ir.Value, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"The input {name!r} of {file.name!r} is {value.dtype} {_sizes(value.shape)}, these sizes need {wanted}: give "
        "the --height, --width, --frames and --text-length that it was exported for; its batch has to be dynamic, and "
        "nothing else."
    )


def _sizes(shape: ir.Shape | Sequence[int | str] | None) -> str:
    return "unknown" if shape is None else f"[{', '.join(str(size) for size in shape)}]"


def _take_float32(model: ir.Model, inputs: Sequence[ModelInput]) -> None:
    """Before: ``latent [bf16]``.  After: ``Cast(latent [float32], to=bf16)``; requests are float32 at any precision."""
    floats = {spec.name for spec in inputs if spec.dtype == "float32"}
    first = next(iter(model.graph))
    for index, value in enumerate(model.graph.inputs):
        if value.name in floats and value.dtype != ir.DataType.FLOAT:
            given = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
            cast = _cast(given, value.dtype, f"{value.name}.cast")
            model.graph.insert_before(first, cast)
            value.replace_all_uses_with(cast.outputs[0])
            model.graph.inputs[index] = given


def _name_prediction(model: ir.Model, file: pathlib.Path) -> None:
    outputs = model.graph.outputs
    if len(outputs) != 1 or outputs[0].dtype not in _FLOATS or outputs[0].shape is None:
        found = ", ".join(f"{value.name} ({value.dtype} {_sizes(value.shape)})" for value in outputs) or "nothing"
        raise CheckpointError(
            f"{file.name!r} yields {found}; one output is wanted, the prediction, of a float dtype and known shape: "
            "export the transformer's forward with return_dict=False, and its first result alone."
        )
    if outputs[0].dtype != ir.DataType.FLOAT:
        cast = _cast(outputs[0], ir.DataType.FLOAT, "prediction")
        model.graph.append(cast)
        outputs[0] = cast.outputs[0]
    outputs[0].name = "prediction"


def _cast(value: ir.Value, dtype: ir.DataType | None, name: str) -> ir.Node:
    node = ir.node("Cast", [value], attributes={"to": int(dtype or 0)})
    output = node.outputs[0]
    output.name, output.shape, output.type = name, value.shape, ir.TensorType(dtype)
    return node
