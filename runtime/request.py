"""One request to a pool: everything that a denoising loop is told, in one immutable record."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from taylorseer.config import CacheConfig
from taylorseer.errors import ShapeError
from taylorseer.manifest import Manifest
from taylorseer.runtime.admission import check_settings, checked_array, checked_conditions
from taylorseer.runtime.memory import MemoryPlan
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.step_plan import BuiltState, plan_steps

__all__ = ["Request", "Shape", "check_request"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a session is made for; requests of one shape use each other's sessions."""

    batch: int
    """Images at a time."""
    steps: int
    """Denoising steps."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """The arguments of :meth:`~taylorseer.runtime.session.Session.denoise`; the arrays are not to change afterwards."""

    latent: Any
    """float32 [images, ...]: the initial noise, already scaled; NumPy's, or the device's through DLPack."""
    conditions: Mapping[str, Any]
    """The model's condition inputs by name, [images times the bundle's rows per image, ...]."""
    sampler: Sampler
    """The noise scheduler for ``cache.steps`` steps."""
    cache: CacheConfig
    """When and how to forecast."""
    guidance: float
    """The guidance, embedded or classifier-free as the bundle says."""
    every_step_full: bool = False
    """Run the baseline instead of the schedule."""
    on_device: bool = False
    """Give the latent where the device has it."""

    @property
    def shape(self) -> Shape:
        """Images and steps.

        Raises:
            ShapeError: the latent is no array of images.
        """
        sizes = getattr(self.latent, "shape", ())
        if not sizes:
            found = type(self.latent).__name__
            raise ShapeError(f"The latent is {found} without a batch: give float32 [images, ...] of the model's size.")
        return Shape(int(sizes[0]), self.cache.steps)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of :meth:`~taylorseer.runtime.session.Session.begin`, by name."""
        return {
            "latent": self.latent,
            "conditions": self.conditions,
            "sampler": self.sampler,
            "cache": self.cache,
            "guidance": self.guidance,
            "every_step_full": self.every_step_full,
        }


def check_request(manifest: Manifest, plan: MemoryPlan, request: Request) -> None:
    """Refuse what no session would serve, before it waits for one.

    Args:
        manifest: of the bundle.
        plan: memory plan of a session of the request's shape.
        request: to check; nothing of it is copied.

    Raises:
        ShapeError: an input of another shape or dtype than the bundle was built for, or a missing one.
        NonFiniteError: NaN or infinity in an input.
        ScheduleError: a cache configuration that the bundle cannot serve.
        InputError: anything else in it that does not go together.
    """
    steps = plan_steps(request.cache, BuiltState.of_bundle(manifest), baseline=request.every_step_full)
    check_settings(manifest, plan, request.sampler, len(steps), request.guidance)
    latent = (request.shape.batch, *plan.tensors["latent.0"].shape[1:])
    checked_array("latent", request.latent, latent, np.dtype(np.float32))
    checked_conditions(manifest, plan, request.conditions)
