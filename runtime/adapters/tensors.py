"""Between torch's tensors and the arrays of the runtime: a view on the CPU, DLPack on the GPU."""

from collections.abc import Mapping
from typing import Any

import torch

from taylorseer.errors import InputError

__all__ = ["Watched", "one_number", "to_array", "to_tensor"]

_DTYPES = {"float32": torch.float32, "int64": torch.int64}


def to_array(name: str, tensor: torch.Tensor, dtype: str, *, on_device: bool) -> Any:
    """Return ``tensor`` as the runtime takes it, converted without loss of anything that float32 holds.

    Args:
        name: of the argument.
        tensor: of any floating or integer dtype.
        dtype: ``float32`` or ``int64``.
        on_device: the runtime takes CUDA memory; otherwise the array comes to the host.

    Raises:
        InputError: fractions where integers belong.
    """
    tensor = tensor.detach()
    converted = tensor.to(_DTYPES[dtype]).contiguous()
    if dtype == "int64" and tensor.is_floating_point() and not torch.equal(converted.to(tensor.dtype), tensor):
        raise InputError(f"The argument {name!r} has fractions, the model takes integers there: give ones and zeros.")
    return converted if on_device and converted.is_cuda else converted.cpu().numpy()


def to_tensor(array: Any, like: torch.Tensor) -> torch.Tensor:
    """Return what the runtime gave as a tensor of the dtype and on the device of ``like``."""
    return torch.from_dlpack(array).to(device=like.device, dtype=like.dtype)


def one_number(name: str, tensor: torch.Tensor) -> float:
    """Return the number that all elements of ``tensor`` are, rounded to float32.

    Raises:
        InputError: it has several, or none.
    """
    numbers = torch.unique(tensor.detach().to(torch.float32)).tolist()
    if len(numbers) != 1:
        raise InputError(
            f"The argument {name!r} has {len(numbers)} different numbers in one batch, and a request has one: run the "
            "pipeline once for each."
        )
    return float(numbers[0])


class Watched:
    """Tensors that stay as they were.

    The same object in the same version is the same tensor; everything else is compared by its values.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._first = {name: (tensor, _version(tensor)) for name, tensor in tensors.items()}
        self._values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def changed(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the names of ``tensors`` that are others than at first; their dtypes and devices count too."""
        return [name for name in {**self._first, **tensors} if not self._is_same(name, tensors.get(name))]

    def _is_same(self, name: str, tensor: torch.Tensor | None) -> bool:
        if tensor is None or name not in self._first:
            return False
        first, version = self._first[name]
        if tensor is first and version is not None and _version(tensor) == version:
            return True
        values = self._values[name]
        alike = (tensor.shape, tensor.dtype, tensor.device) == (values.shape, values.dtype, values.device)
        return alike and torch.equal(tensor, values)


def _version(tensor: torch.Tensor) -> int | None:
    """Return how often a tensor was written to; None: torch does not count for it, as in its inference mode."""
    return None if tensor.is_inference() else int(tensor._version)
