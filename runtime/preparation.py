"""What runs once a request: prepare, over all timesteps in chunks, into the step table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.backend import Call, Memory, StepInputs
from taylorseer.runtime.bindings import bind, prove_disjoint
from taylorseer.runtime.exchange import DeviceArray
from taylorseer.runtime.memory import PREPARE, MemoryPlan

if TYPE_CHECKING:
    from taylorseer.runtime.session import LoadedModel

__all__ = ["Preparation"]


class Preparation:
    """The prepare engine on the memory of one session."""

    def __init__(self, model: "LoadedModel", memory: Memory, plan: MemoryPlan, rows: int) -> None:
        """Bind the engine.

        Args:
            model: the loaded bundle.
            memory: of the session.
            plan: its memory plan.
            rows: of the model's batch.
        """
        self._model, self._memory, self._rows = model, memory, rows
        self._graph = model.manifest.graphs["prepare"]
        self._names = bind(model.manifest, "prepare", variant=0, turn=0)
        prove_disjoint(self._graph, self._names, plan)
        specs = (*self._graph.inputs, *self._graph.outputs)
        self._repeated = {spec.name for spec in specs if "step_batch" in spec.shape}
        self._tables = [spec.name for spec in self._graph.outputs if spec.role == "prepared"]
        self.chunk = min(max(1, model.manifest.prepare_rows // rows), plan.steps)
        """Steps at once."""
        tensors = {name: memory[tensor] for name, tensor in self._names.items()}
        self._call: Call | None = model.engines["prepare"].bind(tensors)
        self._call.run()  # for once, so that no request waits for what an engine sets up in its first run

    def run(
        self,
        conditions: Mapping[str, NDArray[Any] | DeviceArray],
        steps: Mapping[str, NDArray[np.float32]],
        inputs: StepInputs,
    ) -> None:
        """Prepare a request: afterwards the step table has every step's values.

        Args:
            conditions: the checked condition inputs by name.
            steps: what differs from step to step by input name, float32 [steps].
            inputs: the session's step inputs.
        """
        assert self._call is not None
        for name, values in conditions.items():
            self._memory[f"{PREPARE}{name}"].write(values, repeat=self.chunk if name in self._repeated else 1)
        count = len(next(iter(steps.values())))
        for start in range(0, count, self.chunk):
            size = min(self.chunk, count - start)
            for name, numbers in steps.items():
                # The last chunk is as long as the others: one shape, one execution context.
                padded = np.pad(numbers[start : start + size], (0, self.chunk - size), mode="edge")
                self._memory[f"{PREPARE}{name}"].write(np.repeat(padded, self._rows))
            self._call.run()
            for name in self._tables:
                inputs.store(name, start, self._memory[f"{PREPARE}{name}"].first(size * self._rows))

    def close(self) -> None:
        """Let the bound call go, which keeps the engine's execution context."""
        self._call = None
