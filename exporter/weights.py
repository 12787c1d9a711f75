"""Where parameters come from: a diffusers checkpoint, read tensor by tensor, or random numbers for measuring.

Nothing here holds a model in memory: a source hands out one tensor at a time, in the precision of the build.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import safetensors
import torch
from onnx_ir.tensor_adapters import TorchTensor

from taylorseer.errors import CheckpointError

__all__ = ["CheckpointWeights", "RandomWeights", "WeightSource", "attach_weights", "store_weights"]

WEIGHTS_FILE = "weights.data"
"""Raw little-endian tensors, one after another: ONNX external data, shared by all graphs of a bundle."""

_INDEX = "diffusion_pytorch_model.safetensors.index.json"
_SINGLE = "diffusion_pytorch_model.safetensors"


class WeightSource(Protocol):
    """Gives parameters by their diffusers names."""

    origin: str
    """``checkpoint:...`` or ``random``, for the manifest."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the parameter's shape, or None when the source has no such parameter."""

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return the parameter as a contiguous CPU tensor of ``dtype``."""


class CheckpointWeights:
    """A folder with a diffusers transformer: ``config.json`` and safetensors, one file or an index of shards."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open the checkpoint's headers.

        Raises:
            CheckpointError: the folder, its config or its safetensors are missing or malformed.
        """
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(
                f"There is no checkpoint folder {str(folder)!r}: give --checkpoint a diffusers folder or a hub id, "
                "or --random-weights."
            )
        self.origin = f"checkpoint:{self.folder.name}"
        self.config = self._load_json("config.json")
        try:
            self._files = self._locate()
            paths = sorted(set(self._files.values()))
            self._open: dict[pathlib.Path, Any] = {path: safetensors.safe_open(path, "pt") for path in paths}
            self._require_listed()
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"The weights in {str(folder)!r} cannot be read: {error}. Fetch them again."
            ) from error

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the parameter's shape [...], or None."""
        path = self._files.get(name)
        return None if path is None else tuple(self._open[path].get_slice(name).get_shape())  # type: ignore[no-untyped-call]

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return the parameter, converted to ``dtype``."""
        tensor: torch.Tensor = self._open[self._files[name]].get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor.to(dtype).contiguous()

    def _load_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): --checkpoint is the folder of the transformer, as "
                "`save_pretrained` writes it."
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds no JSON object: give a folder as `save_pretrained` writes it.")
        return content

    def _locate(self) -> dict[str, pathlib.Path]:
        """Return the file of each parameter."""
        if (self.folder / _SINGLE).is_file():
            with safetensors.safe_open(self.folder / _SINGLE, "pt") as file:
                return dict.fromkeys(file.keys(), self.folder / _SINGLE)
        if not (self.folder / _INDEX).is_file():
            raise CheckpointError(
                f"There are no weights in {str(self.folder)!r} (neither {_SINGLE} nor {_INDEX}): convert the "
                "checkpoint with `save_pretrained(..., safe_serialization=True)`."
            )
        shards = self._load_json(_INDEX).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{_INDEX} in {str(self.folder)!r} cannot be read: it has no weight_map.")
        for shard in shards.values():
            if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
                raise CheckpointError(
                    f"{_INDEX} in {str(self.folder)!r} cannot be read: {shard!r} is no shard beside it."
                )
        return {name: self.folder / shard for name, shard in shards.items()}

    def _require_listed(self) -> None:
        """Refuse an index that names parameters which its shards do not hold."""
        held = {path: set(file.keys()) for path, file in self._open.items()}
        for name, path in self._files.items():
            if name not in held[path]:
                raise CheckpointError(
                    f"The weights in {str(self.folder)!r} cannot be read: {path.name} lacks {name!r}, which the index "
                    "says it holds. Fetch them again."
                )


class RandomWeights:
    """Seeded random parameters of a sensible scale: for tests, and for measuring a model nobody downloaded."""

    origin = "random"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        self._shapes = dict(shapes)
        self._seed = seed

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the parameter's shape [...], or None."""
        return self._shapes.get(name)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return normal numbers of standard deviation 1/sqrt(inputs); norms' weights lie around 1, biases near 0."""
        shape = self._shapes[name]
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        noise = np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(shape, dtype=np.float32)
        if len(shape) < 2:
            noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            noise /= np.sqrt(np.prod(shape[1:]))
        return torch.from_numpy(np.asarray(noise, np.float32)).to(dtype)


def attach_weights(model: ir.Model, source: WeightSource, dtype: torch.dtype) -> None:
    """Give every data-less initializer a lazy tensor that reads from ``source``.

    Raises:
        CheckpointError: the source lacks a parameter, or has it in another shape.
    """
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            continue
        assert value.shape is not None and value.dtype is not None
        wanted, found = tuple(int(size) for size in value.shape), source.shape(name)  # type: ignore[arg-type]
        if found is None:
            raise CheckpointError(f"The checkpoint has no parameter {name!r}: is it of this model family?")
        if found != wanted:
            raise CheckpointError(
                f"The checkpoint's {name!r} has shape {list(found)}, this model needs {list(wanted)}: give the "
                "--model that the checkpoint was trained as."
            )
        value.const_value = ir.LazyTensor(_reader(source, name, dtype), value.dtype, value.shape, name=name)


def _reader(source: WeightSource, name: str, dtype: torch.dtype) -> Callable[[], ir.TensorProtocol]:
    return lambda: TorchTensor(source.read(name, dtype), name=name)


def store_weights(model: ir.Model, folder: pathlib.Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write every lazy initializer once to ``folder/weights.data`` and refer to it there.

    Args:
        model: its lazy initializers become external tensors, in place.
        folder: where the graphs will be saved too.
        progress: called with (tensors written, tensors in all).
    """
    values = [value for value in model.graph.initializers.values() if isinstance(value.const_value, ir.LazyTensor)]
    tensors = [value.const_value for value in values if value.const_value is not None]

    def report(tensor: object, info: Any) -> None:
        if progress is not None:
            progress(info.index + 1, info.total)

    external = ir.external_data.convert_tensors_to_external(
        tensors, folder, WEIGHTS_FILE, callback=report, max_workers=1, max_in_flight_bytes=1 << 28
    )
    for value, tensor in zip(values, external, strict=True):
        value.const_value = tensor
