"""The timesteps of a pipeline's noise scheduler, as the transformer is given them."""

import dataclasses
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from taylorseer.errors import InputError
from taylorseer.runtime.adapters.tensors import one_number

__all__ = ["Timeline"]

_ROUNDING = 2.0
"""Last places: pipelines scale a timestep once, in a dtype of their own and where the latent lies."""


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Which timestep each denoising step of one loop has, from the loop's first call on."""

    source: torch.Tensor
    """The scheduler's own tensor: a loop that begins anew has set another."""
    numbers: NDArray[np.float32]
    """float32 [steps]: the transformer's input at each denoising step."""
    tolerance: float
    """Relative: rounding in the dtype of the pipeline's timesteps."""

    @classmethod
    def of(cls, scheduler: Any, first: torch.Tensor, scale: float) -> Self:
        """Return the timeline of a loop.

        Args:
            scheduler: the pipeline's, its timesteps set.
            first: [rows], the timestep of the loop's first call; a loop may begin late, as image-to-image does.
            scale: the scheduler's timestep times this is the transformer's.

        Raises:
            InputError: a scheduler that asks the transformer several times a step, or one without that timestep.
        """
        source, order = getattr(scheduler, "timesteps", None), getattr(scheduler, "order", 1)
        if not isinstance(source, torch.Tensor):
            raise InputError(f"{type(scheduler).__name__} has no timesteps yet: set them before the loop.")
        if order != 1:
            raise InputError(
                f"{type(scheduler).__name__} asks for {order} predictions a step, at latents that are no sequence in "
                "time, so that they are not forecast from each other: use a scheduler of order 1."
            )
        # By the same operations as the pipeline, so that both round alike.
        scaled = source.to(first.device).to(first.dtype) / (1 / scale)
        numbers = scaled.to(torch.float32).cpu().numpy()
        tolerance = _ROUNDING * torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
        number = one_number("timestep", first)
        starts = np.flatnonzero(_alike(numbers, number, tolerance)).tolist()
        if not starts:
            raise InputError(
                f"The transformer is called at timestep {number:g}, which is none of the {len(numbers)} of the "
                "pipeline's scheduler: set its timesteps before the loop, as pipelines do."
            )
        begin = getattr(scheduler, "begin_index", None)
        return cls(source, numbers[begin if begin in starts else starts[0] :], tolerance)

    @property
    def steps(self) -> int:
        """Denoising steps of the loop."""
        return len(self.numbers)

    def is_at(self, step: int, timestep: float) -> bool:
        """Return whether ``timestep`` is that of denoising step ``step``."""
        return step < self.steps and bool(_alike(self.numbers[step], timestep, self.tolerance))


def _alike(numbers: Any, number: float, tolerance: float) -> Any:
    return np.abs(numbers - np.float32(number)) <= tolerance * abs(number)
