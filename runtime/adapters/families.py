"""What the adapter knows of each model family: its class in diffusers, the pipelines that call it, and how."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Final

import diffusers
from diffusers.configuration_utils import FrozenDict

from taylorseer.errors import InputError
from taylorseer.manifest import Manifest

__all__ = ["FAMILIES", "Family", "family_of", "full_config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A transformer of diffusers and the pipelines that call it as the bundle was built."""

    class_name: str
    """The transformer's class in diffusers."""
    pipelines: tuple[str, ...]
    """Pipeline classes of diffusers; one that derives from them is served as well."""
    position_ids: bool = False
    """The pipeline gives the positions of text and image, which the bundle has as constants."""
    may_ignore_guidance: bool = False
    """The pipeline gives a guidance also to models without one, which do not look at it."""

    def signature(self) -> inspect.Signature:
        """Return the parameters of the transformer's ``forward``, without self."""
        signature = inspect.signature(getattr(diffusers, self.class_name).forward)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


FAMILIES: Final[Mapping[str, Family]] = {
    "flux": Family(
        class_name="FluxTransformer2DModel",
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        position_ids=True,
    ),
    "hunyuan-video": Family(
        class_name="HunyuanVideoTransformer3DModel",
        pipelines=("HunyuanVideoPipeline",),
        may_ignore_guidance=True,
    ),
    "dit": Family(class_name="DiTTransformer2DModel", pipelines=("DiTPipeline",)),
}
"""By the manifest's name of the family."""


def family_of(pipe: Any, manifest: Manifest) -> Family:
    """Return how the bundle's model is called by ``pipe``.

    Raises:
        InputError: a pipeline that calls another model, or this one in a way that the bundle was not built for.
    """
    family = FAMILIES.get(manifest.family)
    classes = [kind.__name__ for kind in type(pipe).__mro__]
    if family is None or not set(classes) & set(family.pipelines):
        served = ", ".join(family.pipelines) if family else "no pipeline"
        raise InputError(
            f"The pipeline is a {classes[0]}, and a bundle of {manifest.model} ({manifest.family}) stands in for the "
            f"transformer of {served}: use one of these, or a bundle of the pipeline's own model. Pipelines that give "
            "the transformer more than a latent, text and guidance (ControlNet, Control, Fill, Kontext) have none."
        )
    return family


def full_config(family: Family, manifest: Manifest) -> Any:
    """Return the bundle's config as diffusers has it: what it leaves out has the class's default."""
    parameters = inspect.signature(getattr(diffusers, family.class_name).__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return FrozenDict({**defaults, **manifest.config})
