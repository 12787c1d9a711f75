"""What a session and a predictor share: memory made once, engines bound to it, one request at a time."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import InputError, ShapeError
from taylorseer.runtime.accumulator_slots import AccumulatorSlots
from taylorseer.runtime.backend import Buffer, Call, StepTable
from taylorseer.runtime.bindings import bind, prove_disjoint
from taylorseer.runtime.exchange import DeviceArray
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.preparation import Preparation
from taylorseer.runtime.step_plan import BuiltState, StepPlan

if TYPE_CHECKING:
    from taylorseer.runtime.session import LoadedModel

__all__ = ["Workspace"]

_GATES_AHEAD = "gates_ahead"
"""The input of a folded full graph that is gathered from the step table, by its name there."""


class Workspace:
    """Memory of one request, and the engines on it.  Leaving its ``with`` block frees the memory."""

    def __init__(self, model: "LoadedModel", batch: int, *, rows_per_image: int, steps: int) -> None:
        """Reserve the memory, and run prepare once on it.

        Args:
            model: the loaded bundle.
            batch: images.
            rows_per_image: rows of the model's batch that each takes.
            steps: denoising steps of the longest request.

        Raises:
            ShapeError: the bundle was built for smaller batches.
            InputError: fewer than one step.
            MemoryPlanError: it does not fit the device.
        """
        self.manifest, rows = model.manifest, batch * rows_per_image
        largest = self.manifest.sizes["max_batch"]
        if not 1 <= rows <= largest:
            raise ShapeError(
                f"A batch of {batch} needs {rows} rows of the model, this bundle serves up to {largest}: ask "
                f"for fewer images at a time, or build with --batch {rows}."
            )
        if steps < 1:
            raise InputError(f"A session for requests of {steps} steps serves none: give 1 or more.")
        self.model = model
        self._busy = threading.Lock()
        self._state = BuiltState.of_bundle(self.manifest)
        self._gates = self.manifest.folding.gates if self.manifest.folding else None
        self.memory_plan = plan_memory(
            self.manifest, rows=rows, steps=steps, scratch_bytes=model.backend.scratch_bytes()
        )
        self._calls: dict[tuple[str, int, int], Call] = {}
        self.memory = model.backend.reserve(self.memory_plan)
        try:
            self._inputs = self.memory.step_inputs()
            self._preparation = Preparation(model, self.memory, self.memory_plan, rows)
            folding = self.manifest.folding
            self._slots = AccumulatorSlots(folding, self.memory, rows) if folding else None
        except BaseException:
            self.memory.close()
            raise

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the memory."""
        self.close()

    def close(self) -> None:
        """Free the memory; no request runs on it afterwards.

        Raises:
            InputError: one is running: end that first, for its engines work on this memory.
        """
        if not self._busy.acquire(blocking=False):
            raise InputError("This session is running a request, so it is not closed: wait for it, or stop it first.")
        try:
            self._calls.clear()
            self._preparation.close()
            self.memory.close()
        finally:
            self._busy.release()

    @property
    def rows(self) -> int:
        """Rows of the model's batch."""
        return self.memory_plan.tensors["latent.0"].shape[0]

    @property
    def state_bytes(self) -> int:
        """Bytes of the state that outlives the engine calls."""
        return self.memory_plan.bytes_by_use()["state"]

    def tensors(self, kind: str, variant: int = 0, turn: int = 0) -> dict[str, Buffer]:
        """Return the buffers of one call by the names of the graph, proven not to be read and written at once.

        Args:
            kind: ``prepare``, ``full``, ``forecast`` or ``update``.
            variant: which slot, set or base, as in :func:`taylorseer.runtime.bindings.bind`.
            turn: which of the two latents is current.
        """
        names = bind(self.manifest, kind, variant=variant, turn=turn)
        prove_disjoint(self.manifest.graphs[kind], names, self.memory_plan)
        buffers = {name: self.memory[tensor] for name, tensor in names.items()}
        if self._slots and kind == "forecast":
            reads = next(spec.name for spec in self.manifest.graphs[kind].inputs if spec.role == "accumulator")
            buffers[reads] = self._slots.readable(variant)
        return buffers

    def calls(self, kind: str, variant: int = 0, turn: int = 0) -> list[Call]:
        """Return the call of an engine, after what has to be copied for it; arguments as of :meth:`tensors`."""
        call = self.model.engines[kind].bind(self.tensors(kind, variant, turn))
        return [*self._slots.staging(variant), call] if self._slots and kind == "forecast" else [call]

    def _take(self) -> None:
        """Keep this memory for one request, until ``_busy`` is released, with its device current.

        Raises:
            InputError: something runs on this memory already, or it was freed.
        """
        if not self._busy.acquire(blocking=False):
            raise InputError("This session is running a request already: use one session per concurrent request.")
        try:
            self.memory.activate()
            if not self._calls:
                raise InputError("This session was closed: open another one.")
        except BaseException:
            self._busy.release()
            raise

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Run what is inside alone; errors as of :meth:`_take`."""
        self._take()
        try:
            yield
        finally:
            self._busy.release()

    def _load(
        self,
        conditions: Mapping[str, NDArray[Any] | DeviceArray],
        table: StepTable,
        steps: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Copy a checked request in and prepare it; afterwards the state is empty.

        Args:
            conditions: the condition inputs by name.
            table: the step inputs that are not prepare's.
            steps: what prepare is told of every step.
        """
        self._inputs.load(table)
        self._preparation.run(conditions, steps, self._inputs)
        for name, tensor in self.memory_plan.tensors.items():
            if tensor.use == "state" and not self._state.accumulators:  # of which a plan says what it clears
                self.memory[name].clear()

    def _select(self, number: int, step: StepPlan) -> None:
        """Let the inputs and the state be what denoising step ``number`` starts from, in order with the calls."""
        self._inputs.select(number, full=step.is_full)
        if self._slots:
            for slot in step.cleared:
                self._slots.clear(slot)
        if self._gates and step.ahead:
            self._inputs.look_ahead(_GATES_AHEAD, self._gates, step.ahead)
