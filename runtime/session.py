"""The denoising loop: at each step the full or the forecast engine runs, on state that outlives the calls."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, NonFiniteError, ShapeError
from taylorseer.manifest import GraphSpec, Manifest, TensorSpec
from taylorseer.runtime.backend import Backend, Buffer, Call, Engine, HostBuffer
from taylorseer.runtime.guidance import ClassifierFree, Embedded, Guidance
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.step_plan import StepPlan, plan_steps, state_variants

__all__ = ["LoadedModel", "Result", "Session"]

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a denoising loop leaves behind."""

    latent: Floats
    """float32, the caller's own copy."""
    step_seconds: NDArray[np.float64]
    """[steps] wall time of each denoising step."""
    full_steps: NDArray[np.bool_]
    """[steps] which of them were full."""


class LoadedModel:
    """The engines of a bundle, loaded once and shared by its sessions."""

    def __init__(self, manifest: Manifest, backend: Backend) -> None:
        self.manifest = manifest
        self.backend = backend
        self.full: Engine = backend.load("full")
        self.forecast: Engine = backend.load("forecast")

    def session(self, batch: int = 1) -> "Session":
        """Return a session for ``batch`` images at a time; its memory is allocated here and lives as long as it.

        Raises:
            ShapeError: the bundle was built for smaller batches.
        """
        return Session(self, batch)


class Session:
    """One request at a time: its state, its buffers, its loop."""

    def __init__(self, model: LoadedModel, batch: int) -> None:
        self.manifest = model.manifest
        self.batch = batch
        factor = self.manifest.rows_per_image
        largest = self.manifest.sizes["max_batch"]
        if not 1 <= batch * factor <= largest:
            raise ShapeError(
                f"A batch of {batch} needs {batch * factor} rows of the model, this bundle serves up to {largest}: ask "
                f"for fewer images at a time, or build with --batch {batch * factor}."
            )
        self._model = model
        self._rows = batch * factor
        self._slots = self.manifest.order + 1
        self._busy = threading.Lock()
        self._shared = self._allocate_shared()
        self._state = self._allocate_state()
        self._full = [self._bind_full(variant) for variant in range(self._variants)]
        forecast_variants = 1 if self.manifest.layout == "history" else 2
        self._forecast = [self._bind_forecast(variant) for variant in range(forecast_variants)]
        kind: type[Embedded] | type[ClassifierFree] = ClassifierFree if factor == 2 else Embedded
        self._guidance: Guidance = kind(self._view("latent"), self._view("prediction"))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent that :meth:`denoise` takes and gives, the batch first."""
        return self._guidance.latent.shape

    @property
    def state_bytes(self) -> int:
        """Bytes of the state that outlives the engine calls."""
        return sum(buffer.nbytes for buffer in self._state.values())

    def denoise(
        self,
        latent: Floats,
        conditions: Mapping[str, NDArray[Any]],
        *,
        sampler: Sampler,
        cache: CacheConfig,
        guidance: float,
        every_step_full: bool = False,
        on_step: Callable[[int, bool], None] | None = None,
    ) -> Result:
        """Run the loop.

        Args:
            latent: float32 of :attr:`latent_shape`, the initial noise, already scaled.
            conditions: the model's condition inputs by name, the model's batch first.
            sampler: the noise scheduler for ``cache.steps`` steps.
            cache: when and how to forecast.
            guidance: the guidance, embedded or classifier-free as the bundle says.
            every_step_full: run the baseline instead of the schedule.
            on_step: called after each step with its index and whether it was full.

        Raises:
            ShapeError: an input of another shape or dtype than the bundle was built for, or a missing one.
            NonFiniteError: NaN or infinity in an input or in a prediction of a full step.
            ScheduleError: a cache configuration that the bundle cannot serve.
            InputError: the session is already running a request.
        """
        if not self._busy.acquire(blocking=False):
            raise InputError("This session is running a request already: use one session per concurrent request.")
        try:
            plan = plan_steps(cache, self.manifest.layout, self._slots, baseline=every_step_full)
            self._admit(latent, conditions, sampler, cache.steps, guidance)
            seconds = self._loop(plan, sampler, guidance, on_step)
            _require_finite(self._guidance.latent, "The latent after the last denoising step")
            return Result(self._guidance.latent.copy(), seconds, np.array([step.is_full for step in plan]))
        finally:
            self._busy.release()

    def _loop(
        self,
        plan: Sequence[StepPlan],
        sampler: Sampler,
        guidance: float,
        on_step: Callable[[int, bool], None] | None,
    ) -> NDArray[np.float64]:
        """Denoise the admitted latent in place; return the seconds [steps] that each step took."""
        seconds, timesteps, guided = np.zeros(len(plan)), self._view("timestep"), self._guidance
        for number, step in enumerate(plan):
            start = time.perf_counter()
            timesteps.fill(sampler.timesteps[number] * self.manifest.pipeline.timestep_scale)
            guided.spread()
            if step.is_full:
                self._set("difference_scales", step.numbers)
                self._full[step.variant].run()
            else:
                self._set("coefficients", step.numbers)
                self._forecast[step.variant].run()
            prediction = guided.gather(guidance)
            if step.is_full:
                _require_finite(prediction, f"The prediction of denoising step {number}")
            sampler.step(guided.latent, prediction, number)
            seconds[number] = time.perf_counter() - start
            if on_step is not None:
                on_step(number, step.is_full)
        return seconds

    def _admit(
        self,
        latent: Floats,
        conditions: Mapping[str, NDArray[Any]],
        sampler: Sampler,
        steps: int,
        guidance: float,
    ) -> None:
        """Check a request and copy it in; afterwards the state is empty and no input is left unset."""
        if sampler.steps != steps:
            raise InputError(f"The sampler has {sampler.steps} steps, the schedule {steps}: give both the same.")
        _check_tensor("latent", latent, self._guidance.latent.shape, np.dtype(np.float32))
        specs = {spec.name: spec for spec in self.manifest.graphs["full"].inputs if spec.role == "condition"}
        for name in conditions.keys() - specs.keys():
            raise ShapeError(f"The model has no input {name!r}; it takes {', '.join(specs) or 'no conditions'}.")
        for name, spec in specs.items():
            if name not in conditions:
                raise ShapeError(f"The input {name!r} is missing: give an array of shape {list(self._shape(spec))}.")
            _check_tensor(name, conditions[name], self._shape(spec), np.dtype(spec.dtype))
            np.copyto(self._shared[name].host, conditions[name])
        if not abs(guidance * self.manifest.pipeline.guidance_factor) < np.finfo(np.float32).max:
            raise NonFiniteError(f"The guidance is {guidance}: give a finite number that float32 can hold.")
        self._set_role("guidance", guidance * self.manifest.pipeline.guidance_factor)
        np.copyto(self._guidance.latent, latent)
        for buffer in self._state.values():
            buffer.clear()
        sampler.prepare(self._guidance.latent.shape)

    # Buffers and bindings, all made before the first step.

    @property
    def _variants(self) -> int:
        return state_variants(self.manifest.layout, self._slots)

    def _specs(self, kind: str) -> list[TensorSpec]:
        graph: GraphSpec = self.manifest.graphs[kind]
        return [*graph.inputs, *graph.outputs]

    def _shape(self, spec: TensorSpec) -> tuple[int, ...]:
        return tuple(self._rows if size == "batch" else int(size) for size in spec.shape)

    def _allocate_shared(self) -> dict[str, HostBuffer]:
        """Buffers for everything but state, shared by both engines."""
        specs = {spec.name: spec for kind in ("full", "forecast") for spec in self._specs(kind)}
        kept = {name: spec for name, spec in specs.items() if spec.role not in ("state", "previous", "feature")}
        return {name: self._model.backend.allocate(self._shape(spec), spec.dtype) for name, spec in kept.items()}

    def _allocate_state(self) -> dict[tuple[str, int, int], Buffer]:
        """State buffers by (feature, index, set); ``history`` has one set, ``derivatives`` two."""
        sets = 1 if self.manifest.layout == "history" else 2
        state = {}
        for feature in self.manifest.features:
            shape = tuple(self._rows if size == "batch" else int(size) for size in feature.shape)
            for index in range(self._slots):
                for number in range(sets):
                    buffer = self._model.backend.allocate_state(shape, feature.dtype)
                    state[feature.name, index, number] = buffer
        return state

    def _bind_full(self, variant: int) -> Call:
        """History: slot ``variant`` is written.  Derivatives: set ``variant`` is written, the other one read."""
        tensors: dict[str, Buffer] = dict(self._shared)
        for spec in self._specs("full"):
            if spec.role == "feature":
                tensors[spec.name] = self._state[str(spec.feature), variant, 0]
            elif spec.role in ("state", "previous"):
                number = variant if spec.role == "state" else 1 - variant
                tensors[spec.name] = self._state[str(spec.feature), int(spec.index or 0), number]
        return self._model.full.bind(tensors)

    def _bind_forecast(self, variant: int) -> Call:
        tensors: dict[str, Buffer] = dict(self._shared)
        for spec in self._specs("forecast"):
            if spec.role == "state":
                tensors[spec.name] = self._state[str(spec.feature), int(spec.index or 0), variant]
        return self._model.forecast.bind(tensors)

    def _view(self, role: str) -> NDArray[Any]:
        """Return the host view of the one tensor with this role."""
        names = {spec.name for kind in ("full", "forecast") for spec in self._specs(kind) if spec.role == role}
        (name,) = names
        return self._shared[name].host

    def _set(self, name: str, numbers: NDArray[np.float32]) -> None:
        if name in self._shared:
            np.copyto(self._shared[name].host, numbers)

    def _set_role(self, role: str, number: float) -> None:
        for spec in self.manifest.graphs["full"].inputs:
            if spec.role == role:
                self._shared[spec.name].host.fill(number)


def _check_tensor(name: str, value: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != dtype:
        found = f"{getattr(value, 'dtype', type(value).__name__)} {list(np.shape(value))}"
        raise ShapeError(
            f"The input {name!r} is {found}, this bundle was built for {dtype} {list(shape)}: resize the request, or "
            "build a bundle of that size."
        )
    if value.dtype.kind == "f":
        _require_finite(value, f"The input {name!r}")


def _require_finite(value: NDArray[Any], what: str) -> None:
    # A sum is finite only if every element is (or it overflows, which float64 prevents), and allocates nothing.
    with np.errstate(invalid="ignore"):  # infinities of both signs: the error below says it better than a warning
        total = float(np.sum(value, dtype=np.float64))
    if not math.isfinite(total):
        raise NonFiniteError(
            f"{what} holds NaN or infinity: check the inputs and the precision of the bundle; nothing was returned."
        )
