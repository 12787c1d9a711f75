"""How much memory is free: on the backend's GPU, or on this machine within the limit of its container."""

import os
import pathlib

from taylorseer.cuda import Cuda
from taylorseer.errors import InputError
from taylorseer.runtime.backend import Backend

__all__ = ["free_bytes", "free_host_bytes", "is_lost"]

_CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Limit and use of this container, in the files of control groups of version 2 and of version 1."""


def free_bytes(backend: Backend) -> int:
    """Return the bytes that are free where the backend keeps its sessions.

    Raises:
        DeviceError: the GPU was lost.
        InputError: this machine does not tell.
    """
    cuda = getattr(backend, "cuda", None)
    if isinstance(cuda, Cuda):
        cuda.call("cudaSetDevice", getattr(backend, "device").index)  # noqa: B009  # a TensorRT backend has one
        return cuda.free_bytes()
    return free_host_bytes()


def is_lost(backend: Backend) -> bool:
    """Whether a sticky error has made the backend's GPU useless to this process."""
    cuda = getattr(backend, "cuda", None)
    return isinstance(cuda, Cuda) and cuda.poisoned


def free_host_bytes(root: str | os.PathLike[str] = "/") -> int:
    """Return the bytes that a process may still take: of the machine's, and of its container's limit if it has one.

    Args:
        root: where ``proc`` and ``sys`` are.

    Raises:
        InputError: the machine does not tell, as those without /proc.
    """
    try:
        text = (pathlib.Path(root) / "proc/meminfo").read_text("ascii")
        lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            "This machine does not tell how much memory is free (/proc/meminfo): give the memory budget in bytes."
        ) from error
    return min([available, *_left_in_container(pathlib.Path(root) / "sys/fs/cgroup")])


def _left_in_container(folder: pathlib.Path) -> list[int]:
    """What a container's files say is left; cached files count as used, though they would be given up."""
    left = []
    for limit, used in _CGROUPS:
        try:
            numbers = [int((folder / name).read_text("ascii")) for name in (limit, used)]
        except (OSError, ValueError):  # no such version, or the limit is the word max
            continue
        left.append(max(0, numbers[0] - numbers[1]))
    return left
