"""Bounds on what a manifest may say, so that no reader allocates, loops or divides by what a stranger wrote.

Each bound lies far above every model that diffusers has and far below what would hurt.
"""

import math
import re
from collections.abc import Iterator

from taylorseer.config import CacheConfig
from taylorseer.errors import BundleError, ScheduleError
from taylorseer.manifest import Manifest

__all__ = ["check_limits"]

MOST_FILES = 4096
MOST_FEATURES = 4096
MOST_TENSORS = 65536
"""Inputs, or outputs, of one graph."""
MOST_PLANS = 256
HIGHEST_ORDER = 16
MOST_ACCUMULATORS = 1024
MOST_STEPS = 10_000
"""Denoising steps of the default schedule."""
LARGEST_RANK = 8
MOST_ROWS = 2**20
"""Rows of a batch, of prepare's or of images."""
LARGEST_SIZE = 2**20
"""Pixels, frames or text tokens along one side."""
MOST_ELEMENTS = 2**40
"""Of one tensor, for one row of the batch."""
MOST_BYTES = 2**50
"""Of one file."""
LARGEST_SETTING = 1e9
"""Magnitude of guidance and of the factors that the pipeline multiplies by."""

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def check_limits(manifest: Manifest) -> None:
    """Refuse numbers and counts that no honest bundle has.

    Raises:
        BundleError: one is out of its bounds, or the default schedule is none; the message names the field.
    """
    try:
        numbers = list(_numbers(manifest))
    except ScheduleError as error:
        raise BundleError(f"manifest.cache: {error} Build the bundle again.") from error
    for where, value, low, high in numbers:
        if not low <= value <= high:
            raise BundleError(
                f"manifest.{where}: {value} is out of bounds, which are {low:g} to {high:g}; build the bundle again."
            )
    for where, shape in _shapes(manifest):
        sizes = [size for size in shape if isinstance(size, int)]
        if len(shape) > LARGEST_RANK or any(size < 1 for size in sizes) or math.prod(sizes) > MOST_ELEMENTS:
            raise BundleError(f"manifest.{where}: {list(shape)!r:.80} is no shape of a tensor; build the bundle again.")
    for name, file in manifest.files.items():
        if not _DIGEST.fullmatch(file.sha256):
            raise BundleError(f"manifest.files: {name!r:.80} has no SHA-256 digest; build the bundle again.")


_Bound = tuple[str, float, float, float]
"""Where, the value, the least and the greatest that is allowed."""


def _numbers(manifest: Manifest) -> Iterator[_Bound]:
    yield "files", len(manifest.files), 0, MOST_FILES
    yield "features", len(manifest.features), 0, MOST_FEATURES
    yield "dead_features", len(manifest.dead_features), 0, MOST_FEATURES
    yield "engine.plans", len(manifest.engine.plans), 0, MOST_PLANS
    yield "order", manifest.order, 0, HIGHEST_ORDER
    yield "prepare_rows", manifest.prepare_rows, 1, MOST_ROWS
    for name, size in manifest.sizes.items():
        yield f"sizes.{name}", size, 0 if name == "text_length" else 1, LARGEST_SIZE
    for kind, graph in manifest.graphs.items():
        yield f"graphs.{kind}.inputs", len(graph.inputs), 1, MOST_TENSORS
        yield f"graphs.{kind}.outputs", len(graph.outputs), 1, MOST_TENSORS
    for name, file in manifest.files.items():
        yield f"files.{name}.bytes", file.bytes, 0, MOST_BYTES
    yield "cache.steps", CacheConfig.from_json(manifest.cache).steps, 1, MOST_STEPS
    pipeline = manifest.pipeline
    for name in ("guidance", "guidance_factor", "timestep_scale"):
        yield f"pipeline.{name}", getattr(pipeline, name), -LARGEST_SETTING, LARGEST_SETTING
    if manifest.folding is not None:
        yield "folding.accumulators", manifest.folding.accumulators, 1, MOST_ACCUMULATORS


def _shapes(manifest: Manifest) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    for kind, graph in manifest.graphs.items():
        for spec in (*graph.inputs, *graph.outputs):
            yield f"graphs.{kind}.{spec.name}.shape", spec.shape
    for feature in manifest.features:
        yield f"features.{feature.name}.shape", feature.shape
    if manifest.folding is not None:
        yield "folding.shape", manifest.folding.shape
