"""The registry of model families and of the named models in ``exporter/models``."""

import difflib
import functools
import importlib.resources
import json
import typing

from taylorseer.errors import ModelError
from taylorseer.exporter.families.dit import DIT
from taylorseer.exporter.families.family import ModelFamily, ModelInput, NamedModel, Sizes
from taylorseer.exporter.families.flux import FLUX
from taylorseer.exporter.families.hunyuan_video import HUNYUAN_VIDEO
from taylorseer.manifest import PipelineSpec

__all__ = ["FAMILIES", "ModelFamily", "ModelInput", "NamedModel", "Sizes", "load_model", "model_names"]

FAMILIES: typing.Final = {family.name: family for family in (FLUX, HUNYUAN_VIDEO, DIT)}


@functools.cache
def model_names() -> tuple[str, ...]:
    """Return every name that ``--model`` accepts, sorted."""
    folder = importlib.resources.files("taylorseer.exporter") / "models"
    return tuple(sorted(path.name.removesuffix(".json") for path in folder.iterdir() if path.name.endswith(".json")))


def load_model(name: str) -> NamedModel:
    """Return the named model ``name``.

    Raises:
        ModelError: nobody registered that name.
    """
    if name not in model_names():
        close = difflib.get_close_matches(name, model_names(), 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ModelError(f"There is no model {name!r}.{hint} Known models: {', '.join(model_names())}.")
    text = (importlib.resources.files("taylorseer.exporter") / "models" / f"{name}.json").read_text("utf-8")
    data = json.loads(text)
    data["sizes"] = Sizes(**data["sizes"])
    data["pipeline"] = PipelineSpec(**data["pipeline"])
    return NamedModel(name=name, **data)
