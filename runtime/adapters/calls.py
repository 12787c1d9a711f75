"""One call of the transformer: read by the names of diffusers, and refused where the bundle cannot honor it."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from taylorseer.errors import InputError, ShapeError
from taylorseer.manifest import Manifest, TensorSpec
from taylorseer.runtime.adapters.families import Family

__all__ = ["CallReader", "ModelCall"]

_KEYWORDS = ("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs")
"""Where pipelines pass on what attention processors and LoRA take."""

_REMEDIES = {
    "scale": "LoRA is part of the weights that a bundle is built of: fuse it into the checkpoint, and build of that",
    "controlnet_block_samples": "ControlNet's residuals were not there when the bundle was built: run without them",
    "controlnet_single_block_samples": "ControlNet's residuals were not there when the bundle was built: run without",
    "ip_adapter_image_embeds": "an IP-Adapter changes the attention, which the bundle has without it: run without it",
}
"""What to do about an argument, by its name or by its name in one of the keywords."""

_REMEDY = "it was not there when the bundle was built: leave it out, or run the pipeline outside of accelerate()"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCall:
    """What one call of the transformer is given, checked as far as one call can be."""

    latent: torch.Tensor
    """[rows, ...] of any floating dtype."""
    timestep: torch.Tensor
    """[rows], scaled by the pipeline."""
    guidance: torch.Tensor | None
    """[rows], scaled by the pipeline; None where the model has none."""
    conditions: Mapping[str, torch.Tensor]
    """The bundle's condition inputs by name."""
    return_dict: bool
    """Whether the prediction comes as diffusers' output object or in a tuple."""

    @property
    def fixed(self) -> dict[str, torch.Tensor]:
        """What has to stay the same over a denoising loop, by name."""
        return {**self.conditions, **({} if self.guidance is None else {"guidance": self.guidance})}


class CallReader:
    """Reads the calls of one bundle's transformer."""

    def __init__(self, manifest: Manifest, family: Family) -> None:
        self._manifest, self._family, self._signature = manifest, family, family.signature()
        graphs = manifest.graphs
        (self._latent,) = (spec for spec in graphs["full"].inputs if spec.role == "latent")
        self._guided = any(spec.role == "guidance" for spec in graphs["prepare"].inputs)
        self._conditions = manifest.conditions

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> ModelCall:
        """Return what a call gives.

        Raises:
            ShapeError: a latent of another size than the bundle was built for, or positions of one.
            InputError: an argument that the bundle cannot honor, or one that is missing.
        """
        given = self._by_name(arguments, keywords)
        return_dict = bool(given.pop("return_dict", True))
        latent = self._take(given, self._latent.name)
        self._check_size(latent)
        timestep = self._take(given, "timestep")
        conditions = {name: self._take(given, name) for name in self._conditions}
        self._check_classes(conditions)
        if self._family.position_ids:
            self._check_positions(self._take(given, "img_ids"), self._take(given, "txt_ids"))
        guidance = self._guidance(given)
        self._refuse(given)
        return ModelCall(
            latent=latent, timestep=timestep, guidance=guidance, conditions=conditions, return_dict=return_dict
        )

    def _by_name(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that differ from the parameters' defaults."""
        try:
            bound = self._signature.bind(*arguments, **keywords).arguments
        except TypeError as error:
            raise InputError(
                f"{self._family.class_name} of the installed diffusers does not take such a call: {error}."
            ) from error
        defaults = {p.name: p.default for p in self._signature.parameters.values()}
        absent = inspect.Parameter.empty
        return {n: v for n, v in bound.items() if defaults[n] is absent or v is not defaults[n]}

    def _take(self, given: dict[str, Any], name: str) -> torch.Tensor:
        value = given.pop(name, None)
        if not isinstance(value, torch.Tensor):
            raise InputError(f"The argument {name!r} is {type(value).__name__}, the model takes a tensor: give one.")
        return value

    def _guidance(self, given: dict[str, Any]) -> torch.Tensor | None:
        if self._guided:
            return self._take(given, "guidance")
        if self._family.may_ignore_guidance:
            given.pop("guidance", None)
        return None

    def _refuse(self, given: Mapping[str, Any]) -> None:
        """Refuse what is left: by the names within, where it is one of diffusers' collections of keywords."""
        for name, value in given.items():
            within = value if name in _KEYWORDS and isinstance(value, Mapping) else {name: value}
            for key in within:
                what = name if key == name else f"{name}[{key!r}]"
                raise InputError(f"The argument {what} cannot be honored: {_REMEDIES.get(str(key), _REMEDY)}.")

    def _check_size(self, latent: torch.Tensor) -> None:
        wanted = tuple(self._latent.shape[1:])
        if tuple(latent.shape[1:]) != wanted or not latent.is_floating_point():
            raise ShapeError(
                f"The pipeline's latent is {_dtype(latent)} {list(latent.shape)}, and this bundle was built for "
                f"{['batch', *wanted]}, that is {self._size()}: call the pipeline with this size, or build a bundle "
                "of the other."
            )

    def _size(self) -> str:
        sizes = self._manifest.sizes
        frames = f" and {sizes['frames']} frames" if sizes.get("frames", 1) > 1 else ""
        return f"height={sizes['height']} and width={sizes['width']}{frames}"

    def _check_classes(self, conditions: Mapping[str, torch.Tensor]) -> None:
        """A class that the table lacks would be whatever lies behind it."""
        labels = conditions.get("class_labels")
        null = self._manifest.config.get("num_embeds_ada_norm")
        if labels is not None and labels.numel() and not (labels.min() >= 0 and labels.max() <= null):
            raise InputError(
                f"class_labels has {labels.tolist()}, this model knows 0 to {null}, of which {null} is the "
                "unconditional one. DiTPipeline asks for 1000 there when guidance_scale is above 1: give 1 or less."
            )

    def _check_positions(self, image: torch.Tensor, text: torch.Tensor) -> None:
        """The tokens of 1024x1024 pixels are as many as those of 512x2048: the positions alone tell them apart."""
        length, rows = self._manifest.sizes["text_length"], int(self._latent.shape[1])
        for name, ids, wanted in (
            ("txt_ids", text, torch.zeros(length, 3)),
            ("img_ids", image, _image_positions(self._latent, self._manifest.sizes)),
        ):
            found = ids[0] if ids.ndim == 3 else ids
            if tuple(found.shape) != tuple(wanted.shape):
                raise ShapeError(
                    f"{name} is {list(ids.shape)}, and this bundle was built for {length} tokens of text "
                    f"(max_sequence_length={length}) and {rows} of the image ({self._size()}): give these."
                )
            if not torch.equal(found.cpu(), wanted.to(found.dtype)):
                raise ShapeError(
                    f"{name} has other positions than this bundle was built with, those of FluxPipeline at "
                    f"{self._size()}: call the pipeline with this size, or build a bundle of the other."
                )


def _image_positions(latent: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    """FluxPipeline's ids [rows, 3] of the image: (0, row, column) of each token."""
    tokens, height, width = int(latent.shape[1]), sizes["height"], sizes["width"]
    columns = round(math.sqrt(tokens * width / height))
    ids = torch.zeros(tokens // columns, columns, 3)
    ids[..., 1] = torch.arange(tokens // columns)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.reshape(-1, 3)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
