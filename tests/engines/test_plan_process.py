"""The child process that builds one plan: its plan, its refusals under their own types, and its sudden end."""

import ctypes
import os
import pathlib
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.plan_process import build_plan_apart
from taylorseer.engines.profiles import ShapeRange
from taylorseer.engines.tensorrt_builder import build_plan
from taylorseer.errors import BackendError, DependencyError
from taylorseer.tensorrt_library import TensorRT

MakeGraph = Callable[..., pathlib.Path]

OPTIONS = TensorRTOptions(compute_capability=("8.9",))
PROFILE = (ShapeRange("a", (1, 4), (1, 4), (2, 4)),)


@pytest.fixture
def graph(one_node: MakeGraph) -> pathlib.Path:
    return one_node("Relu", {"a": ["batch", 4]}, {"b": ["batch", 4]})


def script(path: pathlib.Path, text: str) -> str:
    """Write a program to be run in Python's place."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_plan(library: TensorRT, graph: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(graph.parent.iterdir())
    plan = build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")
    assert len(plan) == len(bytes(build_plan(library, graph, PROFILE, OPTIONS, "8.9"))) > 10_000
    assert sorted(graph.parent.iterdir()) == before
    assert capfd.readouterr().out == ""


def test_a_refusal_arrives_as_what_it_was(library: TensorRT, one_node: MakeGraph) -> None:
    unknown = one_node("Unique", {"a": [4]}, {"b": ["n"]})
    with pytest.raises(BackendError, match=r"cannot parse Unique\.onnx: node 'the\.node' \(Unique\)"):
        build_plan_apart(library, unknown, (), OPTIONS, "8.9")


def test_a_missing_dependency_of_the_child(
    library: TensorRT, graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "broken" / "polygraphy").mkdir(parents=True)
    (tmp_path / "broken" / "polygraphy" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(DependencyError, match=r"needs polygraphy \(broken on purpose\)"):
        build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")


def test_a_child_that_is_killed(
    library: TensorRT, graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path / "killed", f"kill -{int(signal.SIGSEGV)} $$"))
    with pytest.raises(BackendError) as refused:
        build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")
    assert str(refused.value) == (
        f"tensorrt-rtx {library.version} was killed by SIGSEGV while it built Relu.onnx for compute capability 8.9; "
        "what it printed is above. Try again with --verbosity verbose."
    )


def test_a_child_that_fails(
    library: TensorRT, graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path / "failed", "exit 1"))
    with pytest.raises(BackendError, match=r"ended with exit code 1 while it built Relu\.onnx"):
        build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")


def test_what_the_child_inherits(
    library: TensorRT, graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """CUDA's settings; nothing else of the environment, whose length would move its memory."""
    child = script(tmp_path / "child", f"/usr/bin/env > {tmp_path}/environment; exit 1")
    monkeypatch.setattr(sys, "executable", child)
    for name in ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "FILLER"):
        monkeypatch.setenv(name, "of-the-test")
    with pytest.raises(BackendError):
        build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")
    found = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    assert found["CUDA_VISIBLE_DEVICES"] == found["LD_LIBRARY_PATH"] == "of-the-test"
    assert found["PYTHONHASHSEED"] == "0" and "FILLER" not in found and "HOME" not in found


def test_a_relative_timing_cache_is_that_of_the_caller(
    library: TensorRT, graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = TensorRTOptions(compute_capability=("8.9",), timing_cache="times")
    build_plan_apart(library, graph, PROFILE, options, "8.9")
    assert (tmp_path / "times").stat().st_size > 0


def test_this_process_keeps_its_own_addresses(library: TensorRT, graph: pathlib.Path) -> None:
    def personality() -> int:
        return int(ctypes.CDLL(None).personality(ctypes.c_ulong(0xFFFFFFFF)))

    before, folder = personality(), set(os.listdir("/proc/self/fd"))
    plan = build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")
    assert len(plan) > 10_000 and personality() == before
    del plan
    assert len(os.listdir("/proc/self/fd")) <= len(folder)


def test_a_system_that_forbids_fixed_addresses_still_builds(
    library: TensorRT, graph: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Libc:
        def __init__(self, name: None) -> None: ...

        def personality(self, value: Any) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Libc)
    assert len(build_plan_apart(library, graph, PROFILE, OPTIONS, "8.9")) > 10_000
