"""Finds a checkpoint: the repository's own demo models, a local diffusers folder, or a hub id."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import taylorseer
from taylorseer.bundle import BundleDraft
from taylorseer.errors import CheckpointError
from taylorseer.exporter.families import FAMILIES, NamedModel
from taylorseer.exporter.weights import CheckpointWeights

__all__ = ["Checkpoint", "demo_checkpoint", "find_checkpoint"]

_WORD_FILES = ("vocabulary.json", "embeddings.safetensors")
_CLASSES_FILE = "classes.json"

_HUB_PATTERNS = ["transformer/*.json", "transformer/*.safetensors", "scheduler/*.json", "model_index.json"]
"""What is downloaded of a pipeline: the transformer and the noise scheduler's config, not the encoders."""


class Checkpoint:
    """A diffusers pipeline folder (``transformer/``, perhaps more) or a bare transformer.

    The rest of a pipeline is read where it is there: ``scheduler/``, ``words/`` (a word table) and ``classes.json``
    (the names of the classes in their order).
    """

    def __init__(self, folder: pathlib.Path, model: NamedModel, origin: str | None = None) -> None:
        """Read the configs and the headers of the weights.

        Raises:
            CheckpointError: something is missing or malformed, or the transformer is of another class.
        """
        transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
        self.folder = folder
        self.weights = CheckpointWeights(transformer)
        self.weights.origin = f"checkpoint:{origin or folder.resolve().name}"
        self.config: Mapping[str, Any] = dict(model.config) | self.weights.config
        found, wanted = self.config.get("_class_name"), FAMILIES[model.family].class_name
        if found != wanted:
            raise CheckpointError(
                f"The checkpoint {str(folder)!r} holds a {found}, but --model {model.name} is a {wanted}: give the "
                "--model of the checkpoint's family."
            )
        self.scheduler = self._scheduler()
        if model.pipeline.text == "words":
            self._require_words()
        if self._has_class_names():
            self._check_class_names()

    def copy_words(self, draft: BundleDraft) -> None:
        """Copy what gives prompts a meaning, where the model has it: the word table, the names of the classes."""
        for name in (f"words/{file}" for file in _WORD_FILES):
            if (self.folder / name).is_file():
                draft.path(name).write_bytes(_read(self.folder / name))
        if self._has_class_names():
            draft.path(_CLASSES_FILE).write_bytes(_read(self.folder / _CLASSES_FILE))

    def _scheduler(self) -> dict[str, Any] | None:
        path = self.folder / "scheduler" / "scheduler_config.json"
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} cannot be read: it is no JSON object.")
        return content

    def _require_words(self) -> None:
        for name in _WORD_FILES:
            if not (self.folder / "words" / name).is_file():
                raise CheckpointError(
                    f"The checkpoint {str(self.folder)!r} lacks words/{name}, which encodes this model's prompts."
                )

    def _has_class_names(self) -> bool:
        return "num_embeds_ada_norm" in self.config and (self.folder / _CLASSES_FILE).is_file()

    def _check_class_names(self) -> None:
        """Refuse names that do not tell each class of the model from the others."""
        path, count = self.folder / _CLASSES_FILE, self.config["num_embeds_ada_norm"]
        try:
            names = json.loads(_read(path))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != count:
            raise CheckpointError(
                f"{path} must hold a JSON list of {count} names, one for each class of the model: correct it, or leave "
                "it out, as classes have numbers too."
            )
        different = {name.strip().casefold() for name in names}
        if len(different) < len(names) or any(not name or name.isdigit() for name in different):
            raise CheckpointError(
                f"{path} must name each class differently, and none with a number alone: correct it, or leave it out."
            )


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def demo_checkpoint(name: str) -> pathlib.Path:
    """Return where the repository keeps the weights of the demo model ``name``, whether or not they are there."""
    return pathlib.Path(taylorseer.__file__).resolve().parent.parent / "models" / name


def find_checkpoint(model: NamedModel, asked: str | None) -> Checkpoint:
    """Return the checkpoint for ``model``.

    Args:
        asked: a local folder or a hub id; None: the repository's own weights, or the published ones.

    Raises:
        CheckpointError: there is none, or the hub cannot be reached.
    """
    if asked is not None and pathlib.Path(asked).is_dir():
        return Checkpoint(pathlib.Path(asked), model)
    if asked is None and demo_checkpoint(model.name).is_dir():
        return Checkpoint(demo_checkpoint(model.name), model)
    hub_id = asked or model.hub_id
    if hub_id is None:
        raise CheckpointError(
            f"{model.name} has no published weights and {str(demo_checkpoint(model.name))!r} does not exist: give "
            "--checkpoint FOLDER, or --random-weights."
        )
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/", "~")):
        raise CheckpointError(
            f"There is no checkpoint folder {hub_id!r}, and it is no hub id (owner/name): give --checkpoint an "
            "existing folder, or --random-weights."
        )
    return Checkpoint(_download(hub_id), model, hub_id)


def _download(hub_id: str) -> pathlib.Path:
    # Imported here: local checkpoints need no hub client.
    from huggingface_hub import snapshot_download

    try:
        return pathlib.Path(snapshot_download(hub_id, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the client raises its own, requests' and OS errors alike
        raise CheckpointError(
            f"The checkpoint {hub_id!r} could not be fetched from the hub ({type(error).__name__}): check the id, the "
            "network and your access token; or give --checkpoint a local folder, or --random-weights."
        ) from error
