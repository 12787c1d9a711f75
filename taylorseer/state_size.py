"""How many bytes the state of one request takes, for every layout, before anything is allocated."""

import dataclasses
import math
from collections.abc import Mapping

from taylorseer.errors import ModelError
from taylorseer.manifest import Manifest

__all__ = ["ITEMSIZE", "PUBLISHED", "Geometry", "state_bytes", "state_bytes_of_bundle"]


ITEMSIZE: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number of a state tensor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """What the size of the state depends on."""

    features: int
    """Live features (M)."""
    rows: int
    """Rows of one feature at the published size."""
    width: int
    """Numbers per row."""
    size: str
    """The published size that ``rows`` belongs to, in words."""


PUBLISHED: Mapping[str, Geometry] = {
    "flux": Geometry(features=76, rows=4096, width=3072, size="FLUX.1-dev, 1024x1024"),
    "hunyuan-video": Geometry(features=80, rows=118800, width=3072, size="HunyuanVideo, 1280x720, 129 frames"),
    "dit": Geometry(features=56, rows=256, width=1152, size="DiT-XL/2, 256x256"),
}
"""The published models; a test compares these numbers with the exported graphs."""


def state_bytes(geometry: Geometry, *, order: int, itemsize: int = 2, batch: int = 1) -> dict[str, int]:
    """Return the bytes per layout.

    ``history`` keeps order + 1 raw tensors per feature.  ``derivatives`` keeps as many, twice: a full step reads one
    set and writes the other, because an engine must not read and write the same memory.

    Args:
        geometry: the model at its size.
        order: of the forecasts.
        itemsize: bytes of one number, 2 in bf16 and fp16.
        batch: rows of the model's batch.

    Raises:
        ModelError: a negative order or batch.
    """
    if order < 0 or batch < 1:
        raise ModelError(f"Order {order} and batch {batch} have no state: give an order >= 0 and a batch >= 1.")
    history = (order + 1) * geometry.features * geometry.rows * geometry.width * itemsize * batch
    return {"derivatives": 2 * history, "history": history}


def state_bytes_of_bundle(manifest: Manifest, *, batch: int = 1) -> dict[str, int]:
    """Return the bytes per layout for a bundle's own features and order; ``batch`` counts rows of the model.

    Raises:
        ModelError: a batch below 1.
    """
    if batch < 1:
        raise ModelError(f"A batch of {batch} has no state: give 1 or more.")
    one_slot = sum(
        math.prod(batch if size == "batch" else int(size) for size in feature.shape) * ITEMSIZE[feature.dtype]
        for feature in manifest.features
    )
    history = (manifest.order + 1) * one_slot
    return {"derivatives": 2 * history, "history": history}
