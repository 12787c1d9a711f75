"""How many bytes the state of one request takes and moves, for every layout, before anything is allocated."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from taylorseer.accumulators import Accumulators, accumulators_of, built_accumulators
from taylorseer.config import CacheConfig
from taylorseer.errors import ModelError
from taylorseer.manifest import Manifest

__all__ = [
    "ITEMSIZE",
    "PUBLISHED",
    "Fold",
    "Geometry",
    "LayoutSize",
    "layout_sizes",
    "layout_sizes_of_bundle",
    "state_bytes",
    "state_bytes_of_bundle",
]


ITEMSIZE: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number of a state tensor."""

_FLUSH_BYTES, _LARGEST_GROUP = 2 * 2**30, 12
"""A build's own choice of a flush group: as many features as fit these bytes, 12 at the most."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
    """How the state is folded, as far as bytes depend on it."""

    accumulators: Accumulators
    dtype: str = "float32"
    """Of the accumulators: ``float32`` or ``bfloat16``."""
    flush_group: int | None = None
    """Features that are added at once; None: a build's own choice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutSize:
    """Bytes of one state layout; M live features of F bytes each, an accumulator of B = rows * width numbers."""

    state: int
    """Outlives a step.  history: (order + 1) M F.  derivatives: twice that, for a full step reads one set and writes
    the other.  folded: (order + 1) * window * B."""
    carry: int = 0
    """Needed within a full step, beside the state.  folded: order * window * B, read while others are written."""
    flush: int = 0
    """Needed within a full step, in the engine's working memory.  folded: the features of one flush group."""
    forecast_moves: int
    """Read at a forecast step.  history, derivatives: (order + 1) M F.  folded: B."""
    full_moves: int
    """Read and written for the state at a full step.  history: M F written.  derivatives: order * M F read and
    (order + 1) M F written.  folded: M F read, the carried accumulators read and all written, and for each flush group
    after the first all of them read and written once more."""


def layout_sizes(
    geometry: Geometry, *, order: int, fold: Fold | None = None, itemsize: int = 2, batch: int = 1
) -> dict[str, LayoutSize]:
    """Return the bytes of every layout, ``folded`` among them where ``fold`` says how.

    Args:
        geometry: the model at its size.
        order: of the forecasts.
        fold: how the state is folded.
        itemsize: bytes of one number of a feature, 2 in bf16 and fp16.
        batch: rows of the model's batch.

    Raises:
        ModelError: a negative order or batch, or a flush group of nothing.
    """
    if order < 0 or batch < 1:
        raise ModelError(f"Order {order} and batch {batch} have no state: give an order >= 0 and a batch >= 1.")
    numbers = geometry.rows * geometry.width
    sizes = _unfolded(geometry.features * numbers * itemsize * batch, order)
    if fold is not None:
        sizes["folded"] = _folded([numbers * itemsize] * geometry.features, numbers, batch, fold)
    return sizes


def layout_sizes_of_bundle(
    manifest: Manifest, *, batch: int = 1, dtype: str | None = None, flush_group: int | None = None
) -> dict[str, LayoutSize]:
    """Return the bytes of every layout for a bundle's own features, order and schedule.

    ``folded`` is as the bundle was built, or predicted for one that was built for another layout; features of several
    shapes have no such prediction.

    Args:
        manifest: of the bundle.
        batch: rows of the model's batch.
        dtype: of the accumulators; None: the bundle's, or float32.
        flush_group: features that are added at once; None: the bundle's, or a build's own choice.

    Raises:
        ModelError: a batch below 1, or a flush group of nothing.
    """
    if batch < 1:
        raise ModelError(f"A batch of {batch} has no state: give 1 or more.")
    features = [math.prod(map(int, f.shape[1:])) * ITEMSIZE[f.dtype] for f in manifest.features]
    sizes = _unfolded(sum(features) * batch, manifest.order)
    shapes = {feature.shape[1:] for feature in manifest.features}
    if manifest.folding is not None:
        shapes = {manifest.folding.shape[1:]}
    if len(shapes) == 1:
        numbers = math.prod(map(int, shapes.pop()))
        sizes["folded"] = _folded(features, numbers, batch, _fold_of(manifest, dtype, flush_group))
    return sizes


def state_bytes(
    geometry: Geometry, *, order: int, fold: Fold | None = None, itemsize: int = 2, batch: int = 1
) -> dict[str, int]:
    """Return for each layout the bytes that outlive a step; arguments and errors as of :func:`layout_sizes`."""
    sizes = layout_sizes(geometry, order=order, fold=fold, itemsize=itemsize, batch=batch)
    return {layout: size.state for layout, size in sizes.items()}


def state_bytes_of_bundle(manifest: Manifest, *, batch: int = 1) -> dict[str, int]:
    """Return for each layout the bytes that outlive a step, for a bundle's own features, order and schedule.

    Raises:
        ModelError: a batch below 1.
    """
    return {layout: size.state for layout, size in layout_sizes_of_bundle(manifest, batch=batch).items()}


def _unfolded(features: int, order: int) -> dict[str, LayoutSize]:
    """Return the layouts that keep every feature; ``features``: bytes of all of them, once."""
    slots = (order + 1) * features
    return {
        "derivatives": LayoutSize(state=2 * slots, forecast_moves=slots, full_moves=order * features + slots),
        "history": LayoutSize(state=slots, forecast_moves=slots, full_moves=features),
    }


def _folded(features: Sequence[int], numbers: int, batch: int, fold: Fold) -> LayoutSize:
    """Return the folded layout; for one row of the batch, bytes of each feature and numbers of one accumulator."""
    built, accumulator = fold.accumulators, numbers * ITEMSIZE[fold.dtype] * batch
    largest = max(features)
    group = min(len(features), _group(largest) if fold.flush_group is None else fold.flush_group)
    if group < 1:
        raise ModelError(f"A flush group of {fold.flush_group} features adds nothing: give 1 or more.")
    again = 2 * built.count * (-(-len(features) // group) - 1)
    return LayoutSize(
        state=built.count * accumulator,
        carry=built.carried * accumulator,
        flush=group * largest * batch,
        forecast_moves=accumulator,
        full_moves=sum(features) * batch + (built.ring + again) * accumulator,
    )


def _group(feature_bytes: int) -> int:
    return max(1, min(_LARGEST_GROUP, _FLUSH_BYTES // feature_bytes))


def _fold_of(manifest: Manifest, dtype: str | None, flush_group: int | None) -> Fold:
    """Return how a bundle folds, or would."""
    spec = manifest.folding
    if spec is not None:
        group = spec.flush_group if flush_group is None else flush_group
        return Fold(accumulators=built_accumulators(spec), dtype=dtype or spec.dtype, flush_group=group)
    built = accumulators_of(CacheConfig.from_json(manifest.cache).schedule(), manifest.order)
    return Fold(accumulators=built, dtype=dtype or "float32", flush_group=flush_group)
