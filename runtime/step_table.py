"""The small numbers of every denoising step, worked out before the loop as one table."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taylorseer.manifest import Manifest, UpdateNumber
from taylorseer.runtime.backend import StepTable
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.step_plan import StepPlan

__all__ = ["prepare_table", "step_table"]

Floats = NDArray[np.float32]


def step_table(manifest: Manifest, plan: Sequence[StepPlan], sampler: Sampler, *, guidance: float) -> StepTable:
    """Return the step inputs of all steps that are not prepare's, by tensor name: float32 [steps, ...].

    Args:
        manifest: of the bundle.
        plan: what each step does.
        sampler: the noise scheduler, for as many steps.
        guidance: classifier-free, as far as the bundle says so.
    """
    by_role = {
        **_state_numbers(manifest, plan),
        "update_numbers": _update_numbers(sampler, guidance),
        "clip": np.full((len(plan), 1), sampler.clip or 0.0, np.float32),
    }
    specs = [spec for graph in manifest.graphs.values() for spec in graph.inputs]
    return {spec.name: by_role[spec.role] for spec in specs if spec.role in by_role}


def prepare_table(manifest: Manifest, sampler: Sampler, *, guidance: float) -> dict[str, Floats]:
    """Return what prepare is told of every step, by the name of its input: float32 [steps]."""
    pipeline = manifest.pipeline
    by_role = {
        "timestep": sampler.timesteps * np.float32(pipeline.timestep_scale),
        "guidance": np.full(sampler.steps, guidance * pipeline.guidance_factor, np.float32),
    }
    inputs = manifest.graphs["prepare"].inputs
    return {spec.name: by_role[spec.role] for spec in inputs if spec.role in by_role}


def _state_numbers(manifest: Manifest, plan: Sequence[StepPlan]) -> dict[str, Floats]:
    """The numbers that the state layout asks for, by the role of the input."""
    if manifest.folding is None:
        return {
            "coefficients": _numbers(plan, manifest.order + 1, full=False),
            "difference_scales": _numbers(plan, manifest.order, full=True),
        }
    return {"fold_weights": _numbers(plan, manifest.folding.accumulators, full=True)}


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
