"""Predictions alone, for a denoising loop that somebody else runs: a pipeline with a noise scheduler of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.runtime.admission import checked_array, checked_conditions, require_finite, total
from taylorseer.runtime.backend import Call
from taylorseer.runtime.step_plan import StepPlan, plan_steps
from taylorseer.runtime.step_table import model_table, state_table
from taylorseer.runtime.workspace import Workspace

if TYPE_CHECKING:
    from taylorseer.runtime.session import LoadedModel

__all__ = ["Predictor"]

_LATENT = "latent.0"
"""The session's two latents take turns; here each step's latent comes from outside, into the first."""


class Predictor(Workspace):
    """The state of one request and branch: at each step a latent comes in and the model's prediction goes out.

    Two branches of classifier-free guidance that the model is asked for one after the other are two predictors; both
    in one batch are one.
    """

    def __init__(self, model: "LoadedModel", rows: int, steps: int) -> None:
        """Reserve the memory, which lives until :meth:`close`.

        Args:
            model: the loaded bundle.
            rows: of the model's batch, whatever they stand for.
            steps: denoising steps of the longest request.

        Raises:
            ShapeError: the bundle was built for smaller batches.
            InputError: fewer than one step.
            MemoryPlanError: it does not fit the device.
        """
        super().__init__(model, rows, rows_per_image=1, steps=steps)
        self._plan: Sequence[StepPlan] = ()
        self._next = 0
        outputs = self.manifest.graphs["full"].outputs
        (self._prediction,) = (spec.name for spec in outputs if spec.role == "prediction")
        try:
            self._calls = self._bind_all()
        except BaseException:
            self.memory.close()
            raise

    @property
    def full_steps(self) -> NDArray[np.bool_]:
        """[steps] which steps of the request are full; empty when none is running."""
        return np.array([step.is_full for step in self._plan], np.bool_)

    def begin(
        self,
        conditions: Mapping[str, Any],
        *,
        timesteps: NDArray[np.float32],
        cache: CacheConfig,
        guidance: float | None = None,
        every_step_full: bool = False,
    ) -> None:
        """Begin a request; one that is running ends.

        Args:
            conditions: the model's condition inputs by name, its batch first; NumPy arrays, or arrays on the device.
            timesteps: float32 [steps], the model's input ``timestep`` at each denoising step, scaled already.
            cache: when and how to forecast, for as many steps.
            guidance: the model's input ``guidance``, scaled already; None where it has none.
            every_step_full: run the baseline instead of the schedule.

        Raises:
            ShapeError: an input of another shape or dtype than the bundle was built for, or a missing one.
            NonFiniteError: NaN or infinity in an input.
            ScheduleError: a cache configuration that the bundle cannot serve.
            InputError: more steps than there is memory for, or than the cache configuration has.
        """
        with self._exclusive():
            self._plan, self._next = (), 0
            plan = plan_steps(cache, self._state, baseline=every_step_full)
            self._check(timesteps, len(plan), guidance)
            given = checked_conditions(self.manifest, self.memory_plan, conditions)
            steps = model_table(self.manifest, timesteps, guidance=guidance or 0.0)
            self._load(given, state_table(self.manifest, plan), steps)
            self._plan = plan

    def predict(self, step: int, latent: Any, *, on_device: bool = False) -> Any:
        """Return the model's prediction, float32 [rows, ...], the caller's own copy.

        Args:
            step: denoising step, from 0 on and none left out.
            latent: float32 [rows, ...] of the model's own shape.
            on_device: give the prediction where the device has it, for DLPack; otherwise as a NumPy array.

        Raises:
            ShapeError: a latent of another shape or dtype.
            NonFiniteError: NaN or infinity in a latent that lies on the host, or in the prediction of a full step or
                of the last one.
            InputError: no request was begun, or another step comes next.
        """
        with self._exclusive():
            plan, prediction = self._plan, self.memory[self._prediction]
            if step != self._next or step >= len(plan):
                raise InputError(self._out_of_order(step))
            shape = self.memory_plan.tensors[_LATENT].shape
            given = checked_array("latent", latent, shape, np.dtype(np.float32))
            self._plan = ()  # a step that fails ends the request
            self.memory[_LATENT].write(given)
            self._run(step, plan[step])
            if plan[step].is_full or step == len(plan) - 1:
                require_finite(total(prediction.read()), f"The prediction of denoising step {step}")
            self._plan, self._next = plan, step + 1
            return prediction.export(self.rows) if on_device else prediction.read()

    def end(self) -> None:
        """Drop the request; a new one has to begin before the next prediction."""
        with self._exclusive():
            self._plan, self._next = (), 0

    def _run(self, number: int, step: StepPlan) -> None:
        self._select(number, step)
        self._calls["full" if step.is_full else "forecast", step.variant, 0].run()

    def _bind_all(self) -> dict[tuple[str, int, int], Call]:
        sequence, variants = self.model.backend.sequence, self._state.variants().items()
        return {(kind, v, 0): sequence(self.calls(kind, v)) for kind, count in variants for v in range(count)}

    def _check(self, timesteps: NDArray[np.float32], planned: int, guidance: float | None) -> None:
        """Refuse timesteps that the schedule or the memory is not for, and guidance that the model does not take."""
        checked_array("timesteps", timesteps, (planned,), np.dtype(np.float32))
        if planned > self.memory_plan.steps:
            raise InputError(
                f"The request has {planned} steps, this predictor has memory for {self.memory_plan.steps}: open one "
                "for more."
            )
        takes = any(spec.role == "guidance" for spec in self.manifest.graphs["prepare"].inputs)
        if takes != (guidance is not None):
            wanted = "takes a guidance" if takes else "takes no guidance"
            raise InputError(f"The model {wanted}, and the request has {guidance}: {'give' if takes else 'drop'} it.")
        require_finite(guidance or 0.0, "The guidance")

    def _out_of_order(self, step: int) -> str:
        if not self._plan:
            return f"Denoising step {step} was asked, and no request is running: begin one."
        if self._next == len(self._plan):
            return f"Denoising step {step} was asked, and all {len(self._plan)} steps are done: begin another request."
        return f"Denoising step {step} was asked, and {self._next} comes next: ask for the steps in their order."
