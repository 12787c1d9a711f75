"""The small numbers of every denoising step, worked out before the loop as one table."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taylorseer.manifest import Manifest, UpdateNumber
from taylorseer.runtime.backend import StepTable
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.step_plan import StepPlan

__all__ = ["step_table"]

Floats = NDArray[np.float32]


def step_table(
    manifest: Manifest, plan: Sequence[StepPlan], sampler: Sampler, *, guidance: float, rows: int
) -> StepTable:
    """Return the step inputs of all steps, by tensor name: float32 [steps, ...].

    Args:
        manifest: of the bundle.
        plan: what each step does.
        sampler: the noise scheduler, for as many steps.
        guidance: embedded or classifier-free, as the bundle says.
        rows: of the model's batch.
    """
    pipeline, steps = manifest.pipeline, len(plan)
    timesteps = sampler.timesteps * np.float32(pipeline.timestep_scale)
    by_role = {
        "timestep": np.repeat(timesteps[:, None], rows, axis=1),
        "guidance": np.full((steps, rows), guidance * pipeline.guidance_factor, np.float32),
        "coefficients": _numbers(plan, manifest.order + 1, full=False),
        "difference_scales": _numbers(plan, manifest.order, full=True),
        "update_numbers": _update_numbers(sampler, guidance),
        "clip": np.full((steps, 1), sampler.clip or 0.0, np.float32),
    }
    specs = [spec for graph in manifest.graphs.values() for spec in graph.inputs]
    return {spec.name: by_role[spec.role] for spec in specs if spec.role in by_role}


def _numbers(plan: Sequence[StepPlan], count: int, *, full: bool) -> Floats:
    """The numbers of the full or of the forecast steps [steps, count]; the other steps do not look at theirs."""
    table = np.zeros((len(plan), count), np.float32)
    for step, planned in enumerate(plan):
        if planned.is_full == full:
            table[step] = planned.numbers
    return table


def _update_numbers(sampler: Sampler, guidance: float) -> Floats:
    table = np.zeros((sampler.steps, len(UpdateNumber)), np.float32)
    table[:, : sampler.updates.shape[1]] = sampler.updates
    table[:, UpdateNumber.GUIDANCE] = guidance
    return table
