"""A backend whose predictions are checked against, and replaced by, those of a reference on the same inputs.

The session's loop then follows the reference, and at every step the engine's own error is measured without the feedback
of earlier ones.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.runtime.backend import Backend, Buffer, Call, CallSequence, Engine, Memory
from taylorseer.runtime.memory import MemoryPlan

__all__ = ["ShadowBackend", "relative_error"]

Predict = Callable[[int, NDArray[np.float32]], NDArray[np.float32]]
"""(denoising step, the latent as the model sees it) -> prediction."""


def relative_error(value: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return ||value - reference|| / ||reference||, in float64."""
    difference = np.asarray(value, np.float64) - np.asarray(reference, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(reference, np.float64)))


class ShadowBackend:
    """Wraps a backend for one denoising loop."""

    def __init__(self, inner: Backend, predict: Predict) -> None:
        self.errors: list[tuple[str, float]] = []
        """(graph kind, relative error of the prediction), one entry a denoising step."""
        self._inner, self._predict = inner, predict
        self._memory: Memory

    def load(self, kind: str) -> Engine:
        """Return the engine ``kind`` of the wrapped backend, shadowed where it predicts."""
        engine = self._inner.load(kind)
        return engine if kind in ("prepare", "update") else _ShadowEngine(self, kind, engine)

    def reserve(self, plan: MemoryPlan) -> Memory:
        """Return memory of the wrapped backend."""
        self._memory = self._inner.reserve(plan)
        return self._memory

    def sequence(self, calls: Sequence[Call]) -> Call:
        """Return one call that does ``calls`` one after another."""
        return CallSequence(tuple(calls))

    def scratch_bytes(self) -> int:
        """Return what the wrapped backend needs."""
        return self._inner.scratch_bytes()

    def check(self, kind: str, tensors: Mapping[str, Buffer]) -> None:
        """Compare the prediction that the engine left with the reference's, and put that in its place."""
        step = len(self.errors)
        expected = self._predict(step, self._memory[f"latent.{step % 2}"].read())
        self.errors.append((kind, relative_error(tensors["prediction"].read(), expected)))
        tensors["prediction"].write(expected)


@dataclasses.dataclass(frozen=True)
class _ShadowEngine:
    owner: ShadowBackend
    kind: str
    engine: Engine

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        """Bind the wrapped engine."""
        return _ShadowCall(self, self.engine.bind(tensors), dict(tensors))


@dataclasses.dataclass(frozen=True)
class _ShadowCall:
    engine: _ShadowEngine
    call: Call
    tensors: Mapping[str, Buffer]

    def run(self) -> None:
        """Run the engine, then the reference."""
        self.call.run()
        self.engine.owner.check(self.engine.kind, self.tensors)
