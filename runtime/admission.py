"""What a request must be before a byte of it is copied: shapes, dtypes, finite numbers, settings that go together."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import InputError, NonFiniteError, ShapeError
from taylorseer.manifest import Manifest
from taylorseer.runtime.exchange import DeviceArray, as_array
from taylorseer.runtime.memory import MemoryPlan
from taylorseer.runtime.samplers import Sampler

__all__ = ["check_settings", "checked_array", "checked_conditions", "require_finite", "total"]


def check_settings(manifest: Manifest, memory: MemoryPlan, sampler: Sampler, steps: int, guidance: float) -> None:
    """Check that sampler, schedule, session and guidance go together.

    Raises:
        InputError: a sampler for other steps or of another kind, or more steps than the session was planned for.
        NonFiniteError: a guidance that is no number.
    """
    if sampler.steps != steps:
        raise InputError(f"The sampler has {sampler.steps} steps, the schedule {steps}: give both the same.")
    if steps > memory.steps:
        raise InputError(
            f"The request has {steps} steps, this session was planned for up to {memory.steps}: open one with "
            f"steps={steps}."
        )
    clips = any(spec.role == "clip" for spec in manifest.graphs["update"].inputs)
    if (sampler.clip is not None) != clips:
        does, other = ("does not clip", "clips") if clips else ("clips", "does not")
        raise InputError(
            f"The sampler {does} the clean sample, and the bundle's noise scheduler {other}: make the sampler of the "
            "bundle's own scheduler config, or build with the other one."
        )
    if not abs(guidance * manifest.pipeline.guidance_factor) < float(np.finfo(np.float32).max):
        raise NonFiniteError(f"The guidance is {guidance}: give a finite number that float32 can hold.")


def checked_conditions(
    manifest: Manifest, memory: MemoryPlan, conditions: Mapping[str, Any]
) -> dict[str, NDArray[Any] | DeviceArray]:
    """Return the condition inputs by name, all of them and no other.

    Raises:
        ShapeError: an unknown or missing input, or one of another shape or dtype than the bundle was built for.
        NonFiniteError: NaN or infinity in one.
    """
    specs, rows = manifest.conditions, memory.tensors["latent.0"].shape[0]
    for name in conditions.keys() - specs.keys():
        raise ShapeError(f"The model has no input {name!r}; it takes {', '.join(specs) or 'no conditions'}.")
    given = {}
    for name, spec in specs.items():
        shape = (rows, *(int(size) for size in spec.shape[1:]))
        if name not in conditions:
            raise ShapeError(f"The input {name!r} is missing: give an array of shape {list(shape)}.")
        given[name] = checked_array(name, conditions[name], shape, np.dtype(spec.dtype))
    return given


def checked_array(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | DeviceArray:
    """Return ``value`` as an array of exactly that shape and dtype, finite if it lies where the CPU can see it.

    Raises:
        ShapeError: anything else.
        NonFiniteError: NaN or infinity in it.
    """
    array = as_array(value)
    if array is None or array.shape != shape or array.dtype != dtype:
        found = f"{getattr(value, 'dtype', type(value).__name__)} {list(getattr(value, 'shape', np.shape(value)))}"
        raise ShapeError(
            f"The input {name!r} is {found}, this bundle was built for {dtype} {list(shape)}: resize the request, or "
            "build a bundle of that size."
        )
    if isinstance(array, np.ndarray) and dtype.kind == "f":
        require_finite(total(array), f"The input {name!r}")
    return array


def total(array: NDArray[Any]) -> float:
    """Return a number that is finite only if every element is; float64 keeps it from overflowing."""
    with np.errstate(invalid="ignore"):  # infinities of both signs: the error says it better than a warning
        return float(np.sum(array, dtype=np.float64))


def require_finite(number: float, what: str) -> None:
    """Raise NonFiniteError unless ``number``, taken of ``what``, is finite."""
    if not math.isfinite(number):
        raise NonFiniteError(
            f"{what} holds NaN or infinity: check the inputs and the precision of the bundle; nothing was returned."
        )
