"""What a model family must tell the exporter, and nothing more; the graph work is the same for all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from taylorseer.errors import ModelError
from taylorseer.manifest import PipelineSpec, Role

__all__ = ["ModelFamily", "ModelInput", "NamedModel", "Sizes", "latent_grid"]

Config = Mapping[str, Any]
"""The diffusers model's ``config.json``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is fixed at build; the batch stays dynamic."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    frames: int = 1
    """Frames of the clip; 1 for images."""
    text_length: int = 0
    """Text tokens; 0 for families without text."""
    max_batch: int = 8
    """Largest batch that the engines serve."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInput:
    """One input of the transformer's ``forward``."""

    name: str
    """The argument's name in diffusers."""
    role: Role
    shape: tuple[int | str, ...]
    """Sizes; the string ``batch`` stands for the dynamic batch."""
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedModel:
    """One size of a family: what ``--model NAME`` means."""

    name: str
    family: str
    config: Config
    """The config when no checkpoint brings its own."""
    sizes: Sizes
    """Defaults of ``--height --width --frames --text-length --batch``."""
    pixels_per_latent: int
    """Pixels per latent row or column: 8 behind the published autoencoders, 1 for models of pixels."""
    frames_per_latent: int = 1
    pipeline: PipelineSpec
    preset: str
    """The cache preset when no other is asked."""
    hub_id: str | None = None
    """Where the published weights live."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A transformer class of diffusers and its features."""

    name: str
    class_name: str
    """The class in ``diffusers``."""
    features: tuple[str, ...]
    """Module names whose outputs are remembered; ``*`` stands for the index of a block."""
    inputs: Callable[[Config, NamedModel, Sizes], tuple[ModelInput, ...]]
    """The inputs of ``forward`` at the given sizes, the latent first."""
    constants: Callable[[Config, NamedModel, Sizes], dict[str, npt.NDArray[np.float32]]]
    """Arguments of ``forward`` that the sizes determine (position ids); they become constants of the graph."""


def latent_grid(model: NamedModel, sizes: Sizes, patch: int) -> tuple[int, int, int]:
    """Return (frames, rows, columns) of the latent at ``sizes``, in latent pixels.

    Raises:
        ModelError: the pixels do not divide into patches of ``patch`` latent pixels, or the frames into latent frames.
    """
    unit = model.pixels_per_latent * patch
    if sizes.height < unit or sizes.width < unit or sizes.height % unit or sizes.width % unit:
        raise ModelError(
            f"{model.name}: {sizes.width}x{sizes.height} pixels do not divide into patches of {unit}: "
            f"give --height and --width as multiples of {unit}."
        )
    if sizes.frames < 1 or (sizes.frames - 1) % model.frames_per_latent:
        raise ModelError(
            f"{model.name}: {sizes.frames} frames do not fit: give --frames as a multiple of "
            f"{model.frames_per_latent} plus 1."
        )
    frames = (sizes.frames - 1) // model.frames_per_latent + 1
    return frames, sizes.height // model.pixels_per_latent, sizes.width // model.pixels_per_latent
