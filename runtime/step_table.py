"""The small numbers of every denoising step, worked out before the loop as one table."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from taylorseer.manifest import GraphSpec, Manifest, UpdateNumber
from taylorseer.runtime.backend import StepTable
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.step_plan import StepPlan

__all__ = ["model_table", "prepare_table", "state_table", "step_table"]

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
        "update_numbers": _update_numbers(sampler, guidance),
        "clip": np.full((len(plan), 1), sampler.clip or 0.0, np.float32),
    }
    return {**state_table(manifest, plan), **_by_name(manifest.graphs.values(), by_role)}


def state_table(manifest: Manifest, plan: Sequence[StepPlan]) -> StepTable:
    """Return the part of the step table that the state asks for, and no noise scheduler: float32 [steps, ...]."""
    return _by_name(manifest.graphs.values(), _state_numbers(manifest, plan))


def prepare_table(manifest: Manifest, sampler: Sampler, *, guidance: float) -> dict[str, Floats]:
    """Return what prepare is told of every step, by the name of its input: float32 [steps]."""
    pipeline = manifest.pipeline
    timesteps = sampler.timesteps * np.float32(pipeline.timestep_scale)
    return model_table(manifest, timesteps, guidance=guidance * pipeline.guidance_factor)


def model_table(manifest: Manifest, timesteps: Floats, *, guidance: float) -> dict[str, Floats]:
    """Return the same of numbers that are the model's own inputs, scaled already.

    Args:
        manifest: of the bundle.
        timesteps: float32 [steps].
        guidance: without meaning for a model that has no such input.
    """
    by_role = {"timestep": timesteps, "guidance": np.full(len(timesteps), guidance, np.float32)}
    return _by_name([manifest.graphs["prepare"]], by_role)


def _by_name(graphs: Iterable[GraphSpec], by_role: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return what is known by the role of an input by the names of the inputs of ``graphs``."""
    specs = [spec for graph in graphs for spec in graph.inputs]
    return {spec.name: by_role[spec.role] for spec in specs if spec.role in by_role}


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
