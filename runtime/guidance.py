"""Between the latent of a request and the batch that the model sees."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassifierFree", "Embedded", "Guidance"]

Floats = NDArray[np.float32]


class Guidance(Protocol):
    """Spreads the latent over the model's batch and gathers the prediction."""

    latent: Floats
    """float32: what the sampler updates in place."""

    def spread(self) -> None:
        """Write the latent to the model's input."""

    def gather(self, scale: float) -> Floats:
        """Return the guided prediction, of the latent's shape; ``scale`` is the guidance."""


class Embedded:
    """The model takes the guidance as an input (or knows none): the latent is the model's input itself."""

    def __init__(self, model_input: Floats, prediction: Floats) -> None:
        self.latent = model_input
        self._prediction = prediction[:, : model_input.shape[1]] if model_input.ndim > 3 else prediction

    def spread(self) -> None:
        """Nothing to do: the latent is the model's input."""

    def gather(self, scale: float) -> Floats:
        """Return the prediction, without the channels of a learned variance."""
        return self._prediction


class ClassifierFree:
    """Conditional half first, unconditional half second, one state for both (DiTPipeline's order)."""

    def __init__(self, model_input: Floats, prediction: Floats) -> None:
        half, channels = len(model_input) // 2, model_input.shape[1]
        self.latent = np.zeros_like(model_input[:half])
        self._halves = model_input[:half], model_input[half:]
        self._conditional, self._unconditional = prediction[:half, :channels], prediction[half:, :channels]
        self._guided = np.zeros_like(self.latent)

    def spread(self) -> None:
        """Give both halves the same latent."""
        for half in self._halves:
            np.copyto(half, self.latent)

    def gather(self, scale: float) -> Floats:
        """Return unconditional + scale * (conditional - unconditional), without a learned variance's channels."""
        np.subtract(self._conditional, self._unconditional, out=self._guided)
        self._guided *= np.float32(scale)
        self._guided += self._unconditional
        return self._guided
