"""A backend whose predictions are checked against, and replaced by, those of a reference on the same inputs.

The session's loop then follows the reference, and at every step the engine's own error is measured without the feedback
of earlier ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.manifest import Manifest
from taylorseer.runtime.backend import Backend, Buffer, Call, Engine, HostBuffer

__all__ = ["ShadowBackend", "relative_error"]

Predict = Callable[[int, Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""(denoising step, the model's inputs by name) -> prediction."""


def relative_error(value: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return ||value - reference|| / ||reference||, in float64."""
    difference = np.asarray(value, np.float64) - np.asarray(reference, np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(reference, np.float64)))


class ShadowBackend:
    """Wraps a backend for one denoising loop."""

    def __init__(self, inner: Backend, manifest: Manifest, predict: Predict) -> None:
        self.errors: list[tuple[str, float]] = []
        """(graph kind, relative error of the prediction), one entry a denoising step."""
        self._inner, self._predict = inner, predict
        roles = ("latent", "timestep", "guidance", "condition")
        self._names = [spec.name for spec in manifest.graphs["full"].inputs if spec.role in roles]

    def load(self, kind: str) -> Engine:
        """Return the engine ``kind`` of the wrapped backend, shadowed."""
        return _ShadowEngine(self, kind, self._inner.load(kind))

    def allocate(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        """Return a buffer of the wrapped backend."""
        return self._inner.allocate(shape, dtype)

    def allocate_state(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Return a buffer of the wrapped backend."""
        return self._inner.allocate_state(shape, dtype)

    def check(self, kind: str, tensors: Mapping[str, Any]) -> None:
        """Compare the prediction that the engine left with the reference's, and put that in its place."""
        prediction = tensors["prediction"].host
        expected = self._predict(len(self.errors), {name: tensors[name].host for name in self._names})
        self.errors.append((kind, relative_error(prediction, expected)))
        np.copyto(prediction, expected)


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
