"""What a built engine consists of: TensorRT's engine inspector, and its layers beside their times.

TensorRT fuses, so its layers are not the graph's nodes.  With ``profiling_verbosity`` detailed the inspector tells each
layer's tensors and the ONNX nodes it came from; with less, names alone.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from taylorseer.engines.engine_times import LayerTime
from taylorseer.errors import BackendError

__all__ = ["EngineLayer", "LayerRow", "LayerTensor", "layer_table", "read_engine_layers"]

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """A tensor that a layer reads or writes."""

    name: str
    shape: tuple[int, ...]
    """-1 stands for a size that is known at run time only."""
    dtype: str
    """TensorRT's name of the dtype, with older versions of dtype and format."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of an engine; all but the name is empty unless it was built with detailed profiling verbosity."""

    name: str
    kind: str = ""
    """TensorRT's word, such as ``gemm``; ``signal`` and ``wait`` are what streams say to each other."""
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    tactic: str = ""
    """The kernel that TensorRT chose."""
    onnx_nodes: tuple[str, ...] = ()
    """The graph's nodes that this layer computes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A layer and its time; a layer that no profiler reports has no time, one that is not in the engine no layer."""

    name: str
    layer: EngineLayer | None
    time: LayerTime | None


def read_engine_layers(text: str) -> tuple[EngineLayer, ...]:
    """Return the layers that ``IEngineInspector.get_engine_information(LayerInformationFormat.JSON)`` describes.

    Raises:
        BackendError: the text is no such description.
    """
    try:
        information = json.loads(text, strict=False)  # names may hold control characters
    except ValueError as error:
        raise BackendError(
            f"The engine inspector's text is no JSON: {error}. Ask it for LayerInformationFormat.JSON."
        ) from error
    layers = information.get("Layers") if isinstance(information, dict) else None
    if not isinstance(layers, list):
        raise BackendError("The engine inspector's JSON has no list of 'Layers': it does not describe a whole engine.")
    return tuple(_layer(index, entry) for index, entry in enumerate(layers))


def layer_table(layers: Sequence[EngineLayer], times: Sequence[LayerTime]) -> tuple[LayerRow, ...]:
    """Join by name: the engine's layers in order, then the times that no layer claims.

    A name that several layers share is one row to a profiler; the first of them gets its time.
    """
    unclaimed = {time.name: time for time in times}
    rows = [LayerRow(name=layer.name, layer=layer, time=unclaimed.pop(layer.name, None)) for layer in layers]
    rows += [LayerRow(name=name, layer=None, time=time) for name, time in unclaimed.items()]
    return tuple(rows)


def _layer(index: int, entry: Any) -> EngineLayer:
    if isinstance(entry, str):
        return EngineLayer(name=entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
        raise BackendError(f"Layer {index} of the engine inspector's JSON has no name: {str(entry)[:80]}")
    return EngineLayer(
        name=entry["Name"],
        kind=str(entry.get("LayerType", "")),
        inputs=_tensors(index, entry, "Inputs"),
        outputs=_tensors(index, entry, "Outputs"),
        tactic=str(entry.get("TacticName") or entry.get("TacticValue") or ""),
        onnx_nodes=tuple(_ONNX_NODE.findall(str(entry.get("Metadata", "")))),
    )


def _tensors(index: int, entry: dict[str, Any], side: str) -> tuple[LayerTensor, ...]:
    try:
        return tuple(
            LayerTensor(
                name=str(tensor.get("Name", "")),
                shape=tuple(int(size) for size in tensor.get("Dimensions", ())),
                dtype=str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""),
            )
            for tensor in entry.get(side, ())
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise BackendError(
            f"Layer {index} of the engine inspector's JSON has {side} of an unknown schema: {error}"
        ) from error
