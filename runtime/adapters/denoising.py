"""One run of a pipeline's denoising loop: every call of the transformer belongs to a branch and to a step."""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, ScheduleError, ShapeError
from taylorseer.runtime.adapters.calls import ModelCall
from taylorseer.runtime.adapters.tensors import Watched, one_number, to_array, to_tensor
from taylorseer.runtime.adapters.timeline import Timeline
from taylorseer.runtime.predicting import Predictor
from taylorseer.runtime.session import LoadedModel
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["Denoising", "PredictorPool", "config_for"]


class PredictorPool:
    """The predictors of a pipeline, one for each branch, kept from one request to the next where they fit."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._open: list[Predictor] = []

    def take(self, branch: int, rows: int, steps: int) -> Predictor:
        """Return the predictor of a branch, with memory for ``rows`` and ``steps``; it has no request."""
        if branch < len(self._open):
            kept = self._open[branch]
            if kept.rows == rows and kept.memory_plan.steps >= steps:
                return kept
            self._open.pop(branch).close()
        self._open.insert(branch, Predictor(self.model, rows, steps))
        return self._open[branch]

    def close(self) -> None:
        """Free all memory."""
        while self._open:
            self._open[-1].close()
            self._open.pop()


@dataclasses.dataclass
class _Branch:
    """The calls with one set of conditions."""

    name: str | None
    fixed: Watched
    predictor: Predictor
    next: int = 0


class Denoising:
    """A loop that has begun."""

    def __init__(self, pool: PredictorPool, timeline: Timeline, cache: CacheConfig, *, every_step_full: bool) -> None:
        """Begin a loop of which nothing was predicted yet.

        Args:
            pool: where its branches find their memory.
            timeline: its timesteps.
            cache: when and how to forecast, for as many steps.
            every_step_full: run the baseline.
        """
        self._pool, self._manifest = pool, pool.model.manifest
        self.timeline, self._cache, self._every_step_full = timeline, cache, every_step_full
        self._branches: list[_Branch] = []
        self._failed = False

    @property
    def is_over(self) -> bool:
        """Whether every branch has had its last step."""
        return bool(self._branches) and all(branch.next == self.timeline.steps for branch in self._branches)

    @property
    def full_steps(self) -> NDArray[np.bool_]:
        """[steps] which steps are full; empty before the first."""
        return self._branches[0].predictor.full_steps if self._branches else np.zeros(0, np.bool_)

    def predict(self, name: str | None, call: ModelCall) -> torch.Tensor:
        """Return the prediction of a call, [rows, ...] of the latent's dtype and on its device.

        Args:
            name: of the branch, where the pipeline gives one.
            call: what the transformer was called with.

        Raises:
            InputError: a call that does not belong here: the loop ends with it.
            TaylorSeerError: what :class:`Predictor` raises, and the loop ends with it.
        """
        if self._failed:
            raise InputError("This denoising loop failed at an earlier call: start the pipeline again.")
        self._failed = True  # until the call is through
        timestep = one_number("timestep", call.timestep)
        branch = self._branch(name, call, timestep)
        if not self.timeline.is_at(branch.next, timestep):
            raise InputError(self._out_of_order(branch, timestep))
        on_device = self._manifest.engine.backend in FLAVORS and call.latent.is_cuda
        latent = to_array("hidden_states", call.latent, "float32", on_device=on_device)
        prediction = to_tensor(branch.predictor.predict(branch.next, latent, on_device=on_device), call.latent)
        branch.next += 1
        self._failed = False
        return prediction

    def _branch(self, name: str | None, call: ModelCall, timestep: float) -> _Branch:
        """Return the branch of a call; during the first step it may be a new one."""
        named = [branch for branch in self._branches if branch.name == name]
        changes = [branch.fixed.changed(call.fixed) for branch in named]
        for branch, changed in zip(named, changes, strict=True):
            if not changed:
                self._check_rows(branch, call)
                return branch
        is_first_step = all(branch.next <= 1 for branch in self._branches) and self.timeline.is_at(0, timestep)
        if not is_first_step or (name is not None and named):
            changed = min(changes, key=len, default=["cache_context"])
            raise InputError(
                f"{', '.join(changed)} changed during the denoising loop, and what is remembered is of what they were "
                "before: keep them the same from the first step to the last, and the batch too."
            )
        return self._open_branch(name, call)

    def _open_branch(self, name: str | None, call: ModelCall) -> _Branch:
        rows = call.latent.shape[0]
        predictor = self._pool.take(len(self._branches), rows, self.timeline.steps)
        predictor.begin(
            {name: self._condition(name, tensor, rows) for name, tensor in call.conditions.items()},
            timesteps=self.timeline.numbers,
            cache=self._cache,
            guidance=None if call.guidance is None else one_number("guidance", call.guidance),
            every_step_full=self._every_step_full,
        )
        self._branches.append(_Branch(name, Watched(call.fixed), predictor))
        return self._branches[-1]

    def _condition(self, name: str, tensor: torch.Tensor, rows: int) -> Any:
        """Return a condition for every row; torch broadcasts one for all, and several images of a prompt rely on it."""
        whole = tensor.expand(rows, *tensor.shape[1:]) if tensor.shape[0] == 1 else tensor
        on_device = self._manifest.engine.backend in FLAVORS
        return to_array(name, whole, self._manifest.conditions[name].dtype, on_device=on_device)

    def _check_rows(self, branch: _Branch, call: ModelCall) -> None:
        if call.latent.shape[0] != branch.predictor.rows:
            raise ShapeError(
                f"The denoising loop began with {branch.predictor.rows} rows and goes on with {call.latent.shape[0]}: "
                "keep the batch the same from the first step to the last."
            )

    def _out_of_order(self, branch: _Branch, timestep: float) -> str:
        called = f"The transformer is called at timestep {timestep:g}"
        if branch.next == self.timeline.steps:
            return f"{called}, and this loop has had all of its {branch.next}: start the pipeline again."
        return (
            f"{called}, and {self.timeline.numbers[branch.next]:g} comes next, that of denoising step {branch.next}: "
            "each timestep has one call, in the scheduler's order. Run a loop of another kind outside of accelerate()."
        )


def config_for(cache: CacheConfig, steps: int, *, every_step_full: bool) -> CacheConfig:
    """Return ``cache`` for a loop of ``steps`` denoising steps.

    Raises:
        ScheduleError: it is for another number of steps and names steps one by one, or the loop is too short.
    """
    if every_step_full:
        return CacheConfig(steps=steps)
    if steps != cache.steps and (cache.full_steps is not None or cache.table is not None):
        what = "a table of weights" if cache.table is not None else "its full steps one by one"
        raise ScheduleError(
            f"The pipeline's loop has {steps} denoising steps, and the cache configuration names {what} for "
            f"{cache.steps}: run as many steps, or give accelerate() another cache configuration."
        )
    config = dataclasses.replace(cache, steps=steps)
    try:
        config.schedule()
    except ScheduleError as error:
        raise ScheduleError(f"{error} accelerate(..., every_step_full=True) runs such a loop.") from error
    return config
