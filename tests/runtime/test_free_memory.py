"""Free memory: the machine's, or what the container has left of it."""

import pathlib

import pytest

from taylorseer.errors import InputError
from taylorseer.runtime.free_memory import free_host_bytes

MEMINFO = "MemTotal:       25000000 kB\nMemFree:         1000000 kB\nMemAvailable:    2000000 kB\n"


def machine(folder: pathlib.Path, **files: str) -> pathlib.Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "ascii")
    return folder


def test_what_is_available_counts(tmp_path: pathlib.Path) -> None:
    assert free_host_bytes(machine(tmp_path)) == 2_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ],
)
def test_a_container_has_less(tmp_path: pathlib.Path, limit: str, used: str) -> None:
    assert free_host_bytes(machine(tmp_path, **{limit: "1000000\n", used: "400000\n"})) == 600_000
    assert free_host_bytes(machine(tmp_path, **{used: "1000001\n"})) == 0
    assert free_host_bytes(machine(tmp_path, **{limit: "max\n"})) == 2_000_000 * 1024
    assert free_host_bytes(machine(tmp_path, **{limit: f"{2**63 - 4096}\n"})) == 2_000_000 * 1024


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: many kB\n"])
def test_a_machine_that_does_not_tell(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(InputError, match=r"does not tell how much memory is free .*: give the memory budget in bytes"):
        free_host_bytes(machine(tmp_path, **{"proc/meminfo": text}))


def test_this_machine() -> None:
    assert free_host_bytes() > 0
