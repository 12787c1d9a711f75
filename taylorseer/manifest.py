"""The schema of ``manifest.json``: what a bundle says about itself, as frozen dataclasses.

The manifest is the only thing the three stages share.  Reading is strict: an unknown key, a missing key or a value
of another type is refused, because a manifest that is half understood gives wrong images.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from taylorseer.errors import BundleError, VersionError

__all__ = [
    "FORMAT_VERSION",
    "EngineSpec",
    "FeatureSpec",
    "FileSpec",
    "GraphSpec",
    "Manifest",
    "PipelineSpec",
    "TensorSpec",
    "manifest_from_json",
    "manifest_to_json",
]

FORMAT_VERSION = 1
"""Raised whenever an older reader would misread a newer manifest."""

Role = Literal[
    "latent",
    "timestep",
    "guidance",
    "condition",
    "coefficients",
    "difference_scales",
    "state",
    "previous",
    "feature",
    "prediction",
]

Layout = Literal["derivatives", "history"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """The tensor's name in the ONNX graph."""
    role: Role
    """What the runtime does with it."""
    shape: tuple[int | str, ...]
    """Sizes; the string ``batch`` stands for the dynamic batch."""
    dtype: str
    """NumPy's name of the dtype, or ``bfloat16``."""
    feature: str | None = None
    """For state, previous and feature tensors: the feature they belong to."""
    index: int | None = None
    """For state and previous tensors: which slot (history) or which derivative (derivatives), counted from 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One ONNX graph of the bundle."""

    file: str
    """Path inside the bundle."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One live feature: a module output that a forecast step needs."""

    name: str
    """The module's name in the diffusers model, for example ``transformer_blocks.0.attn.to_out.0``."""
    shape: tuple[int | str, ...]
    """Shape of what is remembered, [batch, rows, width]."""
    dtype: str
    rows: tuple[int, int] | None = None
    """Which rows (start, stop) of the module's output are remembered; None: all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What the engine builder did."""

    backend: str
    """``onnxruntime``, ``tensorrt``, ``tensorrt-rtx`` or ``none`` (graphs only)."""
    version: str
    """Version of the backend's library that built or checked the engines."""
    provider: str = ""
    """ONNX Runtime: the execution provider."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """What turns a prompt into the model's inputs, and its prediction into an image."""

    scheduler: dict[str, Any]
    """diffusers' ``scheduler_config.json`` of the model's noise scheduler."""
    timestep_scale: float
    """The scheduler's timestep times this is the model's ``timestep`` input (FLUX: 1/1000)."""
    latent: Literal["packed", "spatial"]
    """``packed``: tokens [batch, rows, channels * 4] in FLUX's 2x2 order; ``spatial``: [batch, channels, ...]."""
    decoder: Literal["pixels", "none"]
    """``pixels``: the latent is the image in [-1, 1]; ``none``: the latent needs a decoder of the user's."""
    text: Literal["words", "none"]
    """``words``: prompts are encoded by the bundle's word table; ``none``: the user gives embeddings."""
    guidance: float
    """Default guidance."""
    guidance_factor: float
    """The guidance times this is the model's ``guidance`` input (HunyuanVideo: 1000)."""
    guidance_mode: Literal["embedded", "classifier-free", "none"]
    """``classifier-free``: the batch holds the conditional and the unconditional half."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSpec:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the runtime knows about a bundle before it opens a graph."""

    format_version: int
    tool_version: str
    model: str
    """The name given to ``--model``."""
    family: str
    precision: str
    """``fp32``, ``fp16`` or ``bf16``: dtype of weights and state; latents and predictions are float32 always."""
    sizes: dict[str, int]
    """``height``, ``width`` (pixels), ``frames``, ``text_length`` (tokens), ``max_batch``."""
    layout: Layout
    order: int
    """Largest order the graphs were built for: order + 1 remembered tensors per feature."""
    cache: dict[str, Any]
    """The default cache configuration, as ``CacheConfig.to_json`` gives it."""
    pipeline: PipelineSpec
    features: tuple[FeatureSpec, ...]
    dead_features: tuple[str, ...]
    """Features that exist in the full graph and that no forecast needs."""
    graphs: dict[str, GraphSpec]
    """``full`` and ``forecast``."""
    engine: EngineSpec
    weights: str
    """Where the weights came from: ``checkpoint:...``, ``random`` or ``none`` (graphs only)."""
    config: dict[str, Any]
    """The diffusers model's config, for the torch reference."""
    files: dict[str, FileSpec]
    """Every file of the bundle but the manifest itself."""


def manifest_to_json(manifest: Manifest) -> str:
    """Return ``manifest`` as indented JSON text."""
    return json.dumps(dataclasses.asdict(manifest), indent=1) + "\n"


def manifest_from_json(text: str) -> Manifest:
    """Return the manifest that ``text`` holds.

    Raises:
        VersionError: the manifest was written by a newer format than this tool reads.
        BundleError: the text is not JSON, or not of this schema.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"The manifest is not JSON ({error}); build the bundle again.") from error
    if not isinstance(data, dict):
        raise BundleError("The manifest is not a JSON object; build the bundle again.")
    version = data.get("format_version")
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        raise VersionError(
            f"The manifest has format {version}, this tool reads up to {FORMAT_VERSION} (it was written by "
            f"{data.get('tool_version', 'an unknown version')}): upgrade taylorseer-trt, or build the bundle again."
        )
    if version != FORMAT_VERSION:
        raise BundleError(f"The manifest has format {version!r}, not {FORMAT_VERSION}; build the bundle again.")
    manifest = _decode(Manifest, data, "manifest")
    _check_parts(manifest)
    return manifest


def _check_parts(manifest: Manifest) -> None:
    """Refuse a manifest whose parts do not belong together, which every reader would otherwise stumble over later."""
    if set(manifest.graphs) != {"full", "forecast"}:
        raise BundleError(f"manifest.graphs: found {sorted(manifest.graphs)}, not full and forecast; {_AGAIN}.")
    for size in ("height", "width", "frames", "text_length", "max_batch"):
        if size not in manifest.sizes:
            raise BundleError(f"manifest.sizes: the key {size!r} is missing; {_AGAIN}.")
    features = {feature.name for feature in manifest.features}
    tensors = [spec for graph in manifest.graphs.values() for spec in (*graph.inputs, *graph.outputs)]
    parts: list[TensorSpec | FeatureSpec] = [*tensors, *manifest.features]
    for part in parts:
        if part.dtype not in _DTYPES or any(isinstance(n, str) and n != "batch" for n in part.shape):
            raise BundleError(
                f"manifest: {part.name!r} is {part.dtype} {list(part.shape)}, which is unknown; {_AGAIN}."
            )
    for spec in tensors:
        stateful = spec.role in ("state", "previous", "feature")
        if stateful and (spec.feature not in features or not 0 <= (spec.index or 0) <= manifest.order):
            raise BundleError(f"manifest: the state tensor {spec.name!r} belongs to no feature; {_AGAIN}.")


_DTYPES = ("float32", "float16", "bfloat16", "int64")
_AGAIN = "build the bundle again"


_T = TypeVar("_T")


def _decode(cls: type[_T], data: object, where: str) -> _T:
    """Build dataclass ``cls`` from a JSON object, refusing what does not fit."""
    if not isinstance(data, Mapping):
        raise BundleError(f"{where}: an object is expected, found {type(data).__name__}; build the bundle again.")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise BundleError(f"{where}: unknown key {unknown[0]!r}; build the bundle again.")
    hints = typing.get_type_hints(cls)
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING:
            raise BundleError(f"{where}: the key {name!r} is missing; build the bundle again.")
    return cls(**values)


def _convert(hint: Any, value: object, where: str) -> Any:
    """Check ``value`` against a type hint of this module and give it the hint's container type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _decode(typing.cast(type, hint), value, where)
    if origin is Literal and value in arguments:
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if origin is tuple and isinstance(value, list):
        return _convert_tuple(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise BundleError(f"{where}: {value!r:.80} is not allowed there; build the bundle again.")


def _convert_union(choices: tuple[Any, ...], value: object, where: str) -> Any:
    for choice in choices:
        if choice is type(None) and value is None:
            return None
        try:
            return _convert(choice, value, where)
        except BundleError:
            continue
    raise BundleError(f"{where}: {value!r:.80} is not allowed there; build the bundle again.")


def _convert_tuple(arguments: tuple[Any, ...], value: list[object], where: str) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(arguments) != len(value):
        raise BundleError(f"{where}: {len(arguments)} values are expected; build the bundle again.")
    return tuple(
        _convert(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )
