"""All memory of a session, planned before the first allocation: what is kept, how large, and where it lies."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from taylorseer.accumulators import built_accumulators, stacked_shape
from taylorseer.errors import MemoryPlanError
from taylorseer.manifest import FoldingSpec, Manifest
from taylorseer.state_size import ITEMSIZE

__all__ = ["ACCUMULATORS", "ALIGNMENT", "PREPARE", "STAGED", "MemoryPlan", "PlannedTensor", "Use", "plan_memory"]

Use = Literal["state", "carry", "staged", "ahead", "latent", "prediction", "request", "prepare", "step", "probe"]
"""A tensor is remembered, makes room so that what is remembered is not written where it is read, takes a copy of what
lies in pieces there, holds the gates of steps to come, is the loop's own, belongs to the request, serves to prepare it,
or differs by step."""

ALIGNMENT = 512
"""TensorRT wants tensors on multiples of 256 bytes and working memory on multiples of 512."""

_ITEMSIZE = {**ITEMSIZE, "int64": 8}

_USES: Mapping[str, Use] = {
    "latent": "latent",
    "prediction": "prediction",
    "request": "request",
    "prepared": "step",
    "coefficients": "step",
    "difference_scales": "step",
    "fold_weights": "step",
    "gates_ahead": "ahead",
    "update_numbers": "step",
    "clip": "step",
    "probe": "probe",
}
"""Role of a graph's input or output -> use; state tensors, and those that prepare works on, are planned apart."""

PREPARE = "prepare."
"""Stands before the names of prepare's own tensors: its inputs, and the rows of the tables that it makes at once."""

ACCUMULATORS = "accumulators."
"""Stands before the number of a tensor in the ring of accumulators, which holds one slot or a window of them."""

STAGED = "accumulator.staged"
"""The accumulator that a forecast reads, where it lies in pieces: of a window, with several rows of the batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor of a session."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the dtype, or ``bfloat16``."""
    use: Use
    offset: int
    """Bytes from the start of the session's memory."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor itself, without padding."""
        return math.prod(self.shape) * _ITEMSIZE[self.dtype]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype in NumPy; bfloat16 is uint16 there, its bits."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of one session: ``[tensors][step table][scratch]``, one block."""

    tensors: Mapping[str, PlannedTensor]
    """By name, each at its own place; no two overlap."""
    steps: int
    """Rows of the step table: denoising steps of the longest request."""
    row_bytes: int
    """Bytes of the step inputs of one step; they lie together, from :attr:`row_offset` on."""
    forecast_row_bytes: int
    """Of these the ones that a forecast step reads, the first ones."""
    row_offset: int
    table_offset: int
    scratch_offset: int
    scratch_bytes: int
    """Working memory that the engines of the session share, for they never run at the same time."""

    @property
    def total_bytes(self) -> int:
        """Bytes of the block."""
        return self.scratch_offset + self.scratch_bytes

    def bytes_by_use(self) -> dict[str, int]:
        """Return the bytes for each use, the step table and the scratch included, and the padding between them."""
        sums: dict[str, int] = {}
        for tensor in self.tensors.values():
            sums[tensor.use] = sums.get(tensor.use, 0) + tensor.nbytes
        sums["step"] = sums.get("step", 0) + self.steps * self.row_bytes
        sums["scratch"] = self.scratch_bytes
        return {**sums, "padding": self.total_bytes - sum(sums.values())}

    def require_fits(self, free: int, suggestion: str = "") -> None:
        """Refuse before the first allocation what the device cannot hold.

        Args:
            free: bytes that are free on the device.
            suggestion: what would fit, as a sentence.

        Raises:
            MemoryPlanError: too little memory.
        """
        if self.total_bytes > free:
            parts = ", ".join(f"{use} {size / 1e9:.2f}" for use, size in self.bytes_by_use().items() if size > 5e6)
            raise MemoryPlanError(
                f"The session needs {self.total_bytes / 1e9:.2f} GB ({parts}) and {free / 1e9:.2f} GB are free on the "
                f"device. {suggestion or 'Free memory there, or ask for fewer images at a time.'}"
            )


def plan_memory(manifest: Manifest, *, rows: int, steps: int, scratch_bytes: int = 0) -> MemoryPlan:
    """Return the memory plan of a session.

    State tensors are called ``state.FEATURE.SLOT`` (history), ``state.FEATURE.INDEX.SET`` (derivatives) or
    ``accumulators.NUMBER`` (folded), the two latents that take turns ``latent.0`` and ``latent.1``, everything else
    as in the graphs.

    Args:
        manifest: of the bundle.
        rows: of the model's batch.
        steps: denoising steps of the longest request.
        scratch_bytes: working memory of the engines.
    """
    inputs = _step_inputs(manifest)
    wanted = {**inputs, **_loop_tensors(manifest), **_prepare(manifest), **_state(manifest, rows)}
    forecast = {spec.name for kind in ("forecast", "update") for spec in manifest.graphs[kind].inputs}
    sizes = {"batch": rows, "step_batch": min(manifest.prepare_rows // rows, steps) * rows}
    tensors, offset, row_bytes, forecast_bytes = {}, 0, 0, 0
    for name, (use, spec_shape, dtype) in wanted.items():
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec_shape)
        tensors[name] = tensor = PlannedTensor(name=name, shape=shape, dtype=dtype, use=use, offset=offset)
        offset += _aligned(tensor.nbytes)
        row_bytes = offset if use == "step" else row_bytes
        forecast_bytes = offset if name in forecast and use == "step" else forecast_bytes
    table_offset, scratch_offset = offset, offset + steps * row_bytes
    return MemoryPlan(
        tensors=tensors,
        steps=steps,
        row_bytes=row_bytes,
        forecast_row_bytes=forecast_bytes,
        row_offset=0,
        table_offset=table_offset,
        scratch_offset=scratch_offset,
        scratch_bytes=_aligned(scratch_bytes),
    )


_Wanted = dict[str, tuple[Use, Sequence[int | str], str]]


def _step_inputs(manifest: Manifest) -> _Wanted:
    """The tensors that change with the step come first, and of these the ones that a forecast reads.

    They are copied together, as one row of the step table or as its beginning.
    """
    specs = [spec for kind in ("update", "forecast", "full") for spec in manifest.graphs[kind].inputs]
    return {spec.name: ("step", spec.shape, spec.dtype) for spec in specs if _USES.get(spec.role) == "step"}


def _prepare(manifest: Manifest) -> _Wanted:
    graph = manifest.graphs["prepare"]
    own = [*graph.inputs, *(spec for spec in graph.outputs if spec.role == "prepared")]
    return {f"{PREPARE}{spec.name}": ("prepare", spec.shape, spec.dtype) for spec in own}


def _loop_tensors(manifest: Manifest) -> _Wanted:
    wanted: _Wanted = {}
    specs = [
        spec
        for kind in ("full", "forecast", "update")
        for spec in (*manifest.graphs[kind].inputs, *manifest.graphs[kind].outputs)
    ]
    for spec in specs:
        use = _USES.get(spec.role)
        if use == "latent":
            wanted["latent.0"] = wanted["latent.1"] = (use, spec.shape, spec.dtype)
        elif use is not None and use != "step":
            wanted[spec.name] = (use, spec.shape, spec.dtype)
    return wanted


def _state(manifest: Manifest, rows: int) -> _Wanted:
    if manifest.folding is not None:
        return _ring(manifest.folding, rows)
    history, slots = manifest.layout == "history", range(manifest.order + 1)
    return {
        f"state.{feature.name}.{index}{suffix}": ("state", feature.shape, feature.dtype)
        for feature in manifest.features
        for index in slots
        for suffix in ([""] if history else [".0", ".1"])
    }


def _ring(folding: FoldingSpec, rows: int) -> _Wanted:
    """Of the ring's slots as many outlive a full step as it writes; the others are room."""
    built, (stacked, shape) = built_accumulators(folding), stacked_shape(folding)
    ring: _Wanted = {
        f"{ACCUMULATORS}{number}": ("state" if slot < built.count else "carry", shape, folding.dtype)
        for number, slot in enumerate(range(0, built.ring, stacked))
    }
    if stacked > 1 and rows > 1:
        ring[STAGED] = ("staged", folding.shape, folding.dtype)
    return ring


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
