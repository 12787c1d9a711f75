"""Data files beside ONNX graphs: their tensors detached, put into a bundle as links, and read from there again.

A bundle's data files are hard links to those of the model it was made of where the file system allows that, so 24 GB of
weights are neither read nor written.  A linked file must not be changed in place, for the bundle would notice other
content; and ``onnx.load`` and ``onnx_ir.load`` refuse its tensors until one of the two names is gone.
"""

import os
import pathlib
import posixpath
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from taylorseer.bundle import Bundle, require_space
from taylorseer.errors import BundleError, CheckpointError, GraphError

__all__ = ["detach_weights", "load_graph", "place_weights"]

_SMALL = 1024
"""Bytes.  External tensors up to this size are read: shapes and axes may be among them, which folding has to know."""

_CHUNK = 1 << 24


def detach_weights(model: ir.Model, file: pathlib.Path) -> tuple[dict[str, ir.ExternalTensor], dict[str, pathlib.Path]]:
    """Take the data of external initializers away; small ones are read instead.

    Args:
        model: opened from ``file``.
        file: the ONNX file; its data files lie in its folder.

    Returns:
        The tensors that were taken away by name, as they will be in the bundle; and the data file behind each name
        there.

    Raises:
        CheckpointError: a data file is missing or too short, or data lies outside the file's folder.
        GraphError: external data in a subgraph or an attribute.
    """
    if any(_nested_external(model)):
        raise GraphError(
            f"{file.name!r} keeps external data in a subgraph or an attribute, which is not followed: export the "
            "transformer without control flow."
        )
    weights: dict[str, ir.ExternalTensor] = {}
    names: dict[pathlib.Path, str] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        path = _data_file(tensor, file)
        value.shape, value.type = tensor.shape, ir.TensorType(tensor.dtype)
        if tensor.nbytes <= _SMALL:
            value.const_value = _read(tensor, path)
            continue
        # Names of our own: theirs may be that of a graph, and writing to a link would write to their file.
        stored = names.setdefault(path, f"weights-{len(names)}.data")
        weights[name] = _refer(tensor, stored)
        value.const_value = None
    return weights, {name: path for path, name in names.items()}


def place_weights(
    files: Mapping[str, pathlib.Path], folder: pathlib.Path, progress: Callable[[float], None] = lambda fraction: None
) -> None:
    """Put each data file into ``folder`` under its name: a hard link, or a copy where that is impossible.

    Args:
        files: data files by the names that the graphs use.
        folder: where the graphs will be saved.
        progress: called with the fraction of the bytes to be copied that is behind.

    Raises:
        OutputError: too little space for what has to be copied.
    """
    copies = {name: path for name, path in files.items() if not _link(path, folder / name)}
    total, done = sum(path.stat().st_size for path in copies.values()), 0
    require_space(folder, total)
    for name, path in copies.items():
        with open(path, "rb") as source, open(folder / name, "xb") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                done += len(chunk)
                progress(done / total)


def load_graph(bundle: Bundle, kind: str) -> ir.Model:
    """Return a graph of a bundle, its weights to be read from the bundle's files, hard links or not.

    Args:
        bundle: with weights.
        kind: a key of its manifest's ``graphs``.

    Raises:
        BundleError: the graph keeps a weight in a file that was not checked with the bundle.
    """
    file = bundle.manifest.graphs[kind].file
    model = ir.load(bundle.path(file))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            name = posixpath.join(posixpath.dirname(file), tensor.location)
            if name not in bundle.manifest.files:
                raise BundleError(
                    f"{file!r} keeps {tensor.name!r} in {str(tensor.location)!r}, which is none of the bundle's files: "
                    "do not use this bundle."
                )
            value.const_value = _refer(tensor, str(bundle.path(name)))
    return model


def _link(path: pathlib.Path, target: pathlib.Path) -> bool:
    try:
        os.link(path, target)
    except OSError:  # another file system, one without links, or another user's file
        return False
    return True


def _nested_external(model: ir.Model) -> Iterator[bool]:
    """Yield whether each tensor is external that is no initializer of the main graph."""
    for graph in model.graphs():
        if graph is not model.graph:
            yield from (isinstance(value.const_value, ir.ExternalTensor) for value in graph.initializers.values())
        for node in graph:
            yield from (isinstance(attribute.value, ir.ExternalTensor) for attribute in node.attributes.values())


def _data_file(tensor: ir.ExternalTensor, file: pathlib.Path) -> pathlib.Path:
    """Return the file that holds ``tensor``, all of it, inside the folder of the ONNX file and with links followed."""
    location = pathlib.PurePath(tensor.location)
    try:
        path = (file.parent / location).resolve()
    except (OSError, ValueError, RuntimeError):  # names that no file can have, and links in a circle
        path = pathlib.Path()
    if location.is_absolute() or ".." in location.parts or not path.is_relative_to(file.parent.resolve()):
        raise CheckpointError(
            f"{file.name!r} keeps {tensor.name!r} in {str(location)!r}, outside its own folder, where no data is read: "
            "put the data file itself beside the ONNX file, not a link to it."
        )
    if not path.is_file() or not os.access(path, os.R_OK):
        raise CheckpointError(
            f"The data file {str(location)!r} of {file.name!r} is missing in {str(file.parent)!r} or cannot be read: "
            "fetch it too and put it there."
        )
    offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or length != tensor.nbytes or offset + length > path.stat().st_size:
        raise CheckpointError(
            f"The data file {str(location)!r} of {file.name!r} has {path.stat().st_size} bytes and cannot hold "
            f"{tensor.name!r} ({tensor.nbytes} bytes, stored as {length} at {offset}): fetch both files again."
        )
    return path


def _read(tensor: ir.ExternalTensor, path: pathlib.Path) -> ir.Tensor:
    values = _refer(tensor, str(path)).numpy().copy()
    return ir.Tensor(values, dtype=tensor.dtype, name=tensor.name)


def _refer(tensor: ir.ExternalTensor, location: str) -> ir.ExternalTensor:
    """Return the tensor in another file, whose place is checked; without a base folder onnx-ir counts no links."""
    return ir.ExternalTensor(
        location, tensor.offset or 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=tensor.name
    )
