"""The manifest as JSON text, read strictly.

An unknown key, a missing key or a value of another type is refused, because a manifest that is half understood gives
wrong images.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from taylorseer.accumulators import stacked_shape
from taylorseer.errors import BundleError, VersionError
from taylorseer.manifest import FORMAT_VERSION, FeatureSpec, FoldingSpec, Manifest, Role, TensorSpec

__all__ = ["manifest_from_json", "manifest_to_json"]

_DTYPES = ("float32", "float16", "bfloat16", "int64")
_AGAIN = "build the bundle again"

_FOLDED_ROLES: tuple[Role, ...] = ("accumulator", "carried", "fold_weights", "gates_ahead")
_FEATURE_ROLES: tuple[Role, ...] = ("coefficients", "difference_scales", "state", "previous", "feature")
"""Roles of tensors that belong to the folded state, and to the layouts that remember features."""

_T = TypeVar("_T")


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
    if set(manifest.graphs) != {"prepare", "full", "forecast", "update"}:
        raise BundleError(
            f"manifest.graphs: found {sorted(manifest.graphs)}, not prepare, full, forecast, update; {_AGAIN}."
        )
    for size in ("height", "width", "frames", "text_length", "max_batch"):
        if size not in manifest.sizes:
            raise BundleError(f"manifest.sizes: the key {size!r} is missing; {_AGAIN}.")
    if manifest.prepare_rows < manifest.sizes["max_batch"]:
        raise BundleError(f"manifest.prepare_rows: {manifest.prepare_rows} is below sizes.max_batch; {_AGAIN}.")
    features = {feature.name for feature in manifest.features}
    tensors = [spec for graph in manifest.graphs.values() for spec in (*graph.inputs, *graph.outputs)]
    parts: list[TensorSpec | FeatureSpec] = [*tensors, *manifest.features]
    for part in parts:
        if part.dtype not in _DTYPES or any(
            isinstance(n, str) and n not in ("batch", "step_batch") for n in part.shape
        ):
            raise BundleError(
                f"manifest: {part.name!r} is {part.dtype} {list(part.shape)}, which is unknown; {_AGAIN}."
            )
    for spec in tensors:
        stateful = spec.role in ("state", "previous", "feature")
        if stateful and (spec.feature not in features or not 0 <= (spec.index or 0) <= manifest.order):
            raise BundleError(f"manifest: the state tensor {spec.name!r} belongs to no feature; {_AGAIN}.")
    _check_layout(manifest, tensors)


def _check_layout(manifest: Manifest, tensors: Sequence[TensorSpec]) -> None:
    """Refuse a layout that the tensors are not of."""
    folding, layout = manifest.folding, manifest.layout
    if (folding is not None) != (layout == "folded"):
        held = "is missing" if folding is None else "is given"
        raise BundleError(f"manifest.folding: it {held}, and the layout is {layout!r}; {_AGAIN}.")
    foreign = _FOLDED_ROLES if folding is None else _FEATURE_ROLES
    for spec in tensors:
        if spec.role in foreign:
            raise BundleError(f"manifest: {spec.name!r} is no tensor of the layout {layout!r}; {_AGAIN}.")
    if folding is not None:
        _check_folding(manifest, folding)


def _check_folding(manifest: Manifest, folding: FoldingSpec) -> None:
    """Refuse accumulators that the graphs do not have as the folded state needs them."""
    count, carried = folding.accumulators, folding.carried
    if not 0 <= carried < count or carried % (count - carried) or folding.flush_group < 1:
        raise BundleError(
            f"manifest.folding: {count} accumulators, {carried} of them carried on, in flush groups of "
            f"{folding.flush_group} are no folded state; {_AGAIN}."
        )
    features = sorted(feature.name for feature in manifest.features)
    if sorted(term.feature for term in folding.terms) != features:
        raise BundleError(f"manifest.folding: the proof has not one term for each feature; {_AGAIN}.")
    if folding.gates not in (None, *(spec.name for spec in manifest.graphs["prepare"].outputs)):
        raise BundleError(f"manifest.folding: prepare makes no table {folding.gates!r}; {_AGAIN}.")
    full, forecast = manifest.graphs["full"], manifest.graphs["forecast"]
    stacked, shape = stacked_shape(folding)
    tensor = (shape, folding.dtype)
    _require("full", full.outputs, "accumulator", [(n, *tensor) for n in range(count // stacked)])
    _require("full", full.inputs, "carried", [(n, *tensor) for n in range(carried // stacked)])
    _require("full", full.inputs, "fold_weights", [(None, (count,), "float32")])
    _require("full", full.inputs, "gates_ahead", _gates_ahead(manifest, folding))
    _require("forecast", forecast.inputs, "accumulator", [(None, folding.shape, folding.dtype)])


_Form = tuple[int | None, tuple[int | str, ...], str]
"""Index, shape and dtype of a tensor."""


def _gates_ahead(manifest: Manifest, folding: FoldingSpec) -> list[_Form]:
    """The rows of the gates table for each accumulator."""
    tables = [spec for spec in manifest.graphs["full"].inputs if spec.name == folding.gates]
    return [(None, (folding.accumulators, *table.shape), table.dtype) for table in tables]


def _require(kind: str, specs: Sequence[TensorSpec], role: Role, expected: Sequence[_Form]) -> None:
    """Refuse tensors of ``role`` that are not the expected ones."""
    found = [(spec.index, spec.shape, spec.dtype) for spec in specs if spec.role == role]
    if found != list(expected):
        raise BundleError(
            f"manifest.graphs.{kind}: {len(found)} tensors of the role {role!r} where {len(expected)} are expected, or "
            f"of another index, shape or dtype than the folding says; {_AGAIN}."
        )


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
        if dataclasses.is_dataclass(choice) and isinstance(value, Mapping):
            return _convert(choice, value, where)  # its refusal says which field is wrong
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
