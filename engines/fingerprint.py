"""All that makes a TensorRT plan stale, in one record, and the record's digest: the plan's name in the store."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from taylorseer.errors import BundleError, DependencyError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "PlanRecipe",
    "ShapeProfile",
    "document_fingerprint",
    "fingerprint",
    "graph_digest",
    "recipe_document",
    "weights_digest",
]

ShapeProfile = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Tensor name; its smallest, optimal and largest shape."""

_FORMAT = "taylorseer-plan/1"
"""Changes when the meaning of a field changes; a new field changes every fingerprint by its name alone."""

_BLOCK = 4 * 2**20
"""Bytes read at once: large enough for a disk's full speed, and all that hashing needs of memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """What a plan is built from; two builds of equal recipes are interchangeable."""

    graph_sha256: str
    """Digest of the ONNX file's bytes."""
    weights_sha256: str
    """Digest of the external weights that this graph refers to, of :func:`weights_digest`; '' without any."""
    profiles: tuple[ShapeProfile, ...]
    """The optimization profile: one entry for each input of dynamic shape, in any order."""
    precision: str
    """``fp32``, ``fp16`` or ``bf16``."""
    options: Mapping[str, str | int | bool | None]
    """TensorRT's own name of a builder option: its value."""
    flavor: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    tensorrt_version: str
    """Of the library that builds; a plan loads in no other."""
    compute_capability: str
    """Of the GPU that the plan is for, such as ``8.9``."""
    tool_version: str
    """Of this tool, whose builder sets what is not an option."""

    def __post_init__(self) -> None:
        names = [name for name, *_ in self.profiles]
        if len(set(names)) != len(names):
            raise ValueError(f"one optimization profile names each tensor once, not {sorted(names)}")


def fingerprint(recipe: PlanRecipe) -> str:
    """Return the recipe's digest: 64 hexadecimal digits, whatever the order of its profiles and options."""
    return document_fingerprint(recipe_document(recipe))


def recipe_document(recipe: PlanRecipe) -> dict[str, Any]:
    """Return the recipe as it is hashed and stored: every field under its name, beside the format."""
    fields = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {"format": _FORMAT, "recipe": fields | {"profiles": sorted(recipe.profiles), "options": {**recipe.options}}}


def document_fingerprint(document: Mapping[str, Any]) -> str:
    """Return the digest of a :func:`recipe_document`, also of one that another version of this tool wrote."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def graph_digest(graph_file: pathlib.Path) -> str:
    """Return the digest of the ONNX file's own bytes.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        with open(graph_file, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"The graph {str(graph_file)!r} cannot be read: {error}. Build the bundle again.") from error


def weights_digest(graph_file: pathlib.Path) -> str:
    """Return the digest of the external weights that one graph refers to; '' if it refers to none.

    Tensors are hashed by name, with dtype, shape and bytes.  Where they lie in their file does not matter, and bytes
    that this graph does not use are not read: a change in them keeps its plan.  Memory use does not grow with the
    weights.

    Raises:
        BundleError: the graph or a weights file is missing, unreadable or too short, or a tensor lies outside the
            graph's folder.
        DependencyError: onnx-ir is not installed.
    """
    tensors = sorted(_external_tensors(graph_file), key=lambda tensor: (tensor.name or "", str(tensor.location)))
    if not tensors:
        return ""
    digest, block = hashlib.sha256(b"taylorseer-weights/1\n"), bytearray(_BLOCK)
    with contextlib.ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for tensor in tensors:
            path = _weights_path(graph_file, tensor)
            try:
                if path not in files:
                    files[path] = stack.enter_context(open(path, "rb"))
                _hash_tensor(digest, files[path], tensor, memoryview(block))
            except OSError as error:
                raise BundleError(
                    f"The weights file {path!r}, which {graph_file.name} refers to, cannot be read: {error}. "
                    "Put it beside the graph, or build the bundle again."
                ) from error
    return digest.hexdigest()


class _Digest(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


def _external_tensors(graph_file: pathlib.Path) -> Iterator["ir.ExternalTensor"]:
    """Yield every tensor whose data is outside the ONNX file: initializers and constants, of subgraphs too."""
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise DependencyError("Reading graphs needs onnx-ir: `pip install onnx-ir`.") from error
    try:
        model = ir.load(graph_file)
    except Exception as error:  # protobuf's errors and onnx-ir's share no base class
        raise BundleError(f"The graph {str(graph_file)!r} cannot be read: {error}. Build the bundle again.") from error
    for graph in model.graphs():
        values = [value.const_value for value in graph.initializers.values()]
        values += [attribute.value for node in graph for attribute in node.attributes.values()]
        yield from (value for value in values if isinstance(value, ir.ExternalTensor))


def _weights_path(graph_file: pathlib.Path, tensor: "ir.ExternalTensor") -> str:
    location = pathlib.PurePath(tensor.location)
    if location.is_absolute() or ".." in location.parts:
        raise BundleError(
            f"{graph_file.name} wants the weights of {tensor.name!r} from {str(location)!r}, outside its folder: do "
            "not use this graph."
        )
    return os.path.join(tensor.base_dir, location)


def _hash_tensor(digest: _Digest, file: BinaryIO, tensor: "ir.ExternalTensor", block: memoryview) -> None:
    """Add one tensor to ``digest``: a line that says what it is and how long, then its bytes."""
    size = tensor.nbytes if tensor.length is None else tensor.length
    start, held = tensor.offset or 0, os.fstat(file.fileno()).st_size
    if min(start, size) < 0 or start + size > held:
        raise BundleError(
            f"The weights file {file.name!r} has {held} bytes, but {tensor.name!r} lies at {start} to {start + size}: "
            "it was truncated or replaced. Copy it again, or build the bundle again."
        )
    facts = [tensor.name, tensor.dtype.name, [int(length) for length in tensor.shape], size]  # type: ignore[arg-type]
    digest.update(json.dumps(facts).encode("ascii") + b"\n")
    file.seek(start)
    while size > 0:
        count = file.readinto(block[: min(size, len(block))])  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"it ended while {tensor.name!r} was read")
        digest.update(block[:count])
        size -= count
