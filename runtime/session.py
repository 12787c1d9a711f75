"""The denoising loop: at each step the full or the forecast engine runs, on state that outlives the calls."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from taylorseer.config import CacheConfig
from taylorseer.manifest import Manifest
from taylorseer.runtime.admission import check_settings, checked_array, checked_conditions, require_finite, total
from taylorseer.runtime.backend import Backend, Call, Engine
from taylorseer.runtime.denoising import Denoising, Result
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.step_plan import StepPlan, plan_steps
from taylorseer.runtime.step_table import prepare_table, step_table
from taylorseer.runtime.workspace import Workspace

__all__ = ["LoadedModel", "Result", "Session"]


class LoadedModel:
    """The engines of a bundle, loaded once and shared by its sessions."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.manifest = manifest
        self.backend = backend
        self.engines: Mapping[str, Engine] = {kind: backend.load(kind) for kind in manifest.graphs}

    def session(self, batch: int = 1, *, steps: int | None = None) -> "Session":
        """Return a session for ``batch`` images at a time; its memory is allocated here and lives as long as it.

        Args:
            batch: images.
            steps: denoising steps of the longest request; None: the bundle's default.

        Raises:
            ShapeError: the bundle was built for smaller batches.
            InputError: fewer than one step.
            MemoryPlanError: the session does not fit the device.
        """
        return Session(self, batch, int(self.manifest.cache["steps"]) if steps is None else steps)


class Session(Workspace):
    """One request at a time: its state, its buffers, its loop.  Leaving its ``with`` block frees its memory."""

    def __init__(self, model: LoadedModel, batch: int, steps: int) -> None:
        super().__init__(model, batch, rows_per_image=model.manifest.rows_per_image, steps=steps)
        self.batch = batch
        try:
            self._probe = self.memory.probe("probe")
            self._clock = self.memory.clock(steps + 1)
            self._calls = self._bind_all()
        except BaseException:
            self.memory.close()
            raise

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent that :meth:`denoise` takes and gives, the batch first."""
        return (self.batch, *self.memory_plan.tensors["latent.0"].shape[1:])

    def denoise(
        self,
        latent: Any,
        conditions: Mapping[str, Any],
        *,
        sampler: Sampler,
        cache: CacheConfig,
        guidance: float,
        every_step_full: bool = False,
        on_step: Callable[[int, bool], None] | None = None,
        on_device: bool = False,
    ) -> Result:
        """Run the loop.

        Arrays may be NumPy's, or lie on the session's device and offer DLPack or ``__cuda_array_interface__``.

        Args:
            latent: float32 of :attr:`latent_shape`, the initial noise, already scaled.
            conditions: the model's condition inputs by name, the model's batch first.
            sampler: the noise scheduler for ``cache.steps`` steps.
            cache: when and how to forecast.
            guidance: the guidance, embedded or classifier-free as the bundle says.
            every_step_full: run the baseline instead of the schedule.
            on_step: called after each step with its index and whether it was full; the loop then waits for each step.
            on_device: give the latent where the device has it.

        Raises:
            ShapeError: an input of another shape or dtype than the bundle was built for, or a missing one.
            NonFiniteError: NaN or infinity in an input or in a prediction of a full step.
            ScheduleError: a cache configuration that the bundle cannot serve.
            InputError: the session is already running a request, or was closed.
        """
        loop = self.begin(
            latent, conditions, sampler=sampler, cache=cache, guidance=guidance, every_step_full=every_step_full
        )
        with loop:
            for number, is_full in enumerate(loop):
                if on_step is not None:
                    loop.wait()
                    on_step(number, is_full)
            return loop.result(on_device=on_device)

    def begin(
        self,
        latent: Any,
        conditions: Mapping[str, Any],
        *,
        sampler: Sampler,
        cache: CacheConfig,
        guidance: float,
        every_step_full: bool = False,
    ) -> Denoising:
        """Admit a request and return its loop, to be advanced step by step, from any thread, and to be closed.

        The session is busy until then.  Arguments and errors are those of :meth:`denoise`, the errors of a step aside.
        """
        self._take()
        try:
            plan = plan_steps(cache, self._state, baseline=every_step_full)
            self._admit(latent, conditions, sampler, plan, guidance)
            return Denoising(plan, self._loop(plan), self.memory, self._clock, self._finished, self._busy.release)
        except BaseException:
            self._busy.release()
            raise

    def _loop(self, plan: Sequence[StepPlan]) -> Generator[bool, None, None]:
        """Denoise the admitted latent; give after each step whether it was full."""
        calls, probe, clock = self._calls, self._probe, self._clock
        clock.start()
        for number, step in enumerate(plan):
            self._select(number, step)
            calls["full" if step.is_full else "forecast", step.variant, number % 2].run()
            if step.is_full or number == len(plan) - 1:
                probe.send()
                require_finite(probe.latest(), f"The prediction of denoising step {number}")
            clock.mark()
            yield step.is_full

    def _admit(
        self,
        latent: Any,
        conditions: Mapping[str, Any],
        sampler: Sampler,
        plan: Sequence[StepPlan],
        guidance: float,
    ) -> None:
        """Check a request and copy it in; afterwards the state is empty and no input is left unset."""
        check_settings(self.manifest, self.memory_plan, sampler, len(plan), guidance)
        noise = checked_array("latent", latent, self.latent_shape, np.dtype(np.float32))
        given = checked_conditions(self.manifest, self.memory_plan, conditions)
        table = step_table(self.manifest, plan, sampler, guidance=guidance)
        self._load(given, table, prepare_table(self.manifest, sampler, guidance=guidance))
        self.memory["latent.0"].write(noise, repeat=self.manifest.rows_per_image)
        self._probe.reset()

    def _finished(self, steps: int, on_device: bool) -> Any:
        """Return the latent after the last step, the first row of each image."""
        buffer = self.memory[f"latent.{steps % 2}"]
        require_finite(self._probe.latest(), "The prediction of a denoising step")
        if on_device:
            return buffer.export(self.batch)
        latent = buffer.read(self.batch)
        require_finite(total(latent), "The latent after the last denoising step")
        return latent

    def _bind_all(self) -> dict[tuple[str, int, int], Call]:
        """Bind every call that a loop can make, by (kind, variant, turn), and prove each free of shared memory."""
        sequence = self.model.backend.sequence
        return {
            (kind, variant, turn): sequence([*self.calls(kind, variant, turn), *self.calls("update", 0, turn)])
            for kind, count in self._state.variants().items()
            for variant in range(count)
            for turn in range(2)
        }
