"""``doctor``: versions as installed, what each backend can do here, and what to install where something is missing."""

import importlib.metadata
import json
import pathlib
import re
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import taylorseer
from taylorseer.commands import doctor
from taylorseer.cuda import Cuda
from taylorseer.tensorrt_library import TensorRT
from tests.runtime.null_device import NullDevice
from tests.runtime.null_tensorrt import VERSION, null_tensorrt

Run = Callable[..., Any]

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

AHEAD = ["7.5", "8.0", "8.6", "8.9", "12.0"]
"""What the null TensorRT builds for without a GPU."""


@pytest.fixture(autouse=True)
def no_tools_and_an_empty_store(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    monkeypatch.setenv("TAYLORSEER_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("TRTEXEC", raising=False)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> NullDevice:
    """The GPU of this machine, with both TensorRTs installed; a test may break it."""
    device = NullDevice()
    monkeypatch.setattr(doctor, "load_cuda", lambda: Cuda(device))
    monkeypatch.setattr(doctor, "load_tensorrt", lambda flavor: TensorRT(flavor, null_tensorrt(device, flavor)))
    return device


def distributions(monkeypatch: pytest.MonkeyPatch, *missing: str, **installed: str) -> None:
    """Let some distributions be missing, and others be there; ``_`` in a name stands for ``-``."""
    true, there = importlib.metadata.version, {name.replace("_", "-"): version for name, version in installed.items()}

    def version(name: str) -> str:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return there.get(name) or true(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_is_installed_is_reported(run: Run) -> None:
    report = run("doctor", "--json").json
    assert report["taylorseer-trt"] == taylorseer.__version__ and report["numpy"] == np.__version__
    for extra in ("export", "onnxruntime"):
        stage = report["stages"][extra]
        assert stage["ready"] and stage["missing"] == [] and stage["install"] is None
    assert report["stages"]["export"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert "CPUExecutionProvider" in report["providers"]


def test_what_is_missing_is_named_with_its_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    distributions(monkeypatch, "onnxruntime", "onnxruntime-gpu", "diffusers")
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "onnxruntime", None)
    outcome = run("doctor", "--json")
    assert outcome.code == 0 and outcome.json["providers"] == []
    stages = outcome.json["stages"]
    assert stages["export"]["missing"] == ["diffusers"] and not stages["export"]["ready"]
    assert stages["onnxruntime"]["install"] == "pip install 'taylorseer-trt[onnxruntime]'"
    text = run("doctor").out
    assert "onnxruntime: not ready" in text and "-> pip install 'taylorseer-trt[export]'" in text


@pytest.mark.parametrize(
    ("extra", "library", "other"),
    [
        ("onnxruntime", "onnxruntime", "onnxruntime-gpu"),
        ("tensorrt", "tensorrt", "tensorrt-cu12"),
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx"),
    ],
)
def test_another_distribution_of_the_same_module_serves_as_well(
    monkeypatch: pytest.MonkeyPatch, extra: str, library: str, other: str
) -> None:
    distributions(monkeypatch, library, **{other.replace("-", "_"): "1.0"})
    stage = doctor._report()["stages"][extra]
    assert library not in stage["versions"] and stage["versions"][other] == "1.0" and library not in stage["missing"]


def test_a_stage_has_libraries_that_its_extra_installs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, libraries in doctor._STAGES.items():
        installed = {re.split(r"[<>=\[]", requirement)[0] for requirement in extras[extra]}
        assert set(libraries) <= installed, extra


# What each backend can do


def test_a_machine_with_a_gpu(run: Run, device: NullDevice) -> None:
    device.cudaMalloc(2**29)
    report = run("doctor", "--json").json
    assert report["gpu"] == {
        "name": "Null Device",
        "reason": None,
        "driver_cuda": "13.4",
        "runtime_cuda": "13.4",
        "compute_capability": "8.9",
        "total_bytes": 2**30,
        "free_bytes": 2**29,
    }
    backends = report["backends"]
    assert backends["tensorrt-rtx"] == {"version": VERSION, "builds_for": AHEAD, "runs": True, "reason": None}
    assert backends["tensorrt"] == {"version": VERSION, "builds_for": ["8.9"], "runs": True, "reason": None}
    text = run("doctor").out
    assert "GPU: Null Device, compute capability 8.9, 0.5 of 1.1 GB free\n" in text
    assert "CUDA: the driver serves 13.4, cuda-python is of 13.4\n" in text
    assert f"backend tensorrt-rtx {VERSION}: builds for 7.5, 8.0, 8.6, 8.9, 12.0; runs here\n" in text


def test_a_gpu_that_nothing_is_built_for_ahead_of_time_is_built_for_where_it_is(run: Run, device: NullDevice) -> None:
    device.capability = "9.0"
    backends = run("doctor", "--json").json["backends"]
    assert backends["tensorrt-rtx"]["builds_for"] == [*AHEAD, "9.0"]


@pytest.mark.parametrize(
    ("driver", "count", "reason", "serves"),
    [
        (0, 1, "There is no NVIDIA driver on this machine: install one that serves CUDA 13.4", "none"),
        (12080, 1, "The NVIDIA driver is too old: it serves CUDA 12.8, CUDA 13.4 is needed. Install a newer", "12.8"),
        (13040, 0, "There is no GPU on this machine, or none is visible (CUDA_VISIBLE_DEVICES)", "13.4"),
    ],
    ids=["no driver", "old driver", "no GPU"],
)
def test_a_machine_without_a_usable_gpu(
    run: Run, device: NullDevice, driver: int, count: int, reason: str, serves: str
) -> None:
    device.driver, device.count = driver, count
    outcome = run("doctor", "--json")
    report = outcome.json
    assert outcome.code == 0 and report["gpu"]["name"] is None and report["gpu"]["reason"].startswith(reason)
    assert report["backends"]["tensorrt-rtx"]["builds_for"] == AHEAD
    assert report["backends"]["tensorrt"]["builds_for"] == []
    assert not report["backends"]["tensorrt-rtx"]["runs"] and not report["backends"]["tensorrt"]["runs"]
    text = run("doctor").out
    assert f"GPU: {reason}" in text and f"CUDA: the driver serves {serves}, cuda-python is of 13.4\n" in text
    assert f"builds for 7.5, 8.0, 8.6, 8.9, 12.0; does not run here: {reason}" in text
    assert f"backend tensorrt {VERSION}: neither builds nor runs here: {reason}" in text


def test_a_gpu_that_fails_is_no_failure_of_the_report(run: Run, device: NullDevice) -> None:
    device.fail(46, "cudaSetDevice")
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    assert outcome.json["gpu"]["reason"].startswith("cudaSetDevice failed with cudaErrorDevicesUnavailable (46)")


def test_without_the_libraries_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real seams, to libraries that are not there."""
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    for name in ("tensorrt", "tensorrt_rtx", "cuda.bindings.runtime"):
        monkeypatch.setitem(modules, name, None)
    monkeypatch.setattr("taylorseer.cuda._loaded", None)
    outcome = run("doctor", "--json")
    report = outcome.json
    assert outcome.code == 0 and report["gpu"].keys() == {"name", "reason"}
    assert report["gpu"]["reason"].startswith("cuda-python cannot be imported")
    for flavor in ("tensorrt", "tensorrt-rtx"):
        backend = report["backends"][flavor]
        assert backend["version"] is None and backend["builds_for"] == [] and not backend["runs"]
        assert f"`pip install 'taylorseer-trt[{flavor}]'`" in backend["reason"]
    assert "backend tensorrt-rtx: neither builds nor runs here: tensorrt_rtx cannot be" in run("doctor").out


def test_the_installed_tensorrt_rtx_builds_ahead_of_time(run: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    report = run("doctor", "--json").json
    backend = report["backends"]["tensorrt-rtx"]
    assert backend["version"] == report["stages"]["tensorrt-rtx"]["versions"]["tensorrt-rtx-cu13"]
    assert {"7.5", "8.0", "8.9"} <= set(backend["builds_for"])


# Tools and the engine store


def test_trtexec_that_is_nowhere(run: Run) -> None:
    tools = run("doctor", "--json").json["trtexec"]
    for flavor, name in (("tensorrt", "trtexec"), ("tensorrt-rtx", "tensorrt_rtx")):
        assert tools[flavor]["path"] is None
        assert f"there is no '{name}' on the PATH. Get it from " in tools[flavor]["reason"]
    assert "trtexec for tensorrt: trtexec missing: there is no 'trtexec' on the PATH" in run("doctor").out


def test_trtexec_on_the_path(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = run("doctor", "--json").json["trtexec"]
    assert tools["tensorrt"] == {"path": str(tool), "reason": None} and tools["tensorrt-rtx"]["path"] is None


def test_trtexec_that_is_named_wrongly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTEXEC", "/no/where")
    outcome = run("doctor")
    assert outcome.code == 0 and "trtexec for tensorrt: $TRTEXEC is '/no/where', which is no program" in outcome.out


def test_the_engine_store(run: Run, tmp_path: pathlib.Path) -> None:
    empty = run("doctor", "--json").json["store"]
    assert empty == {"folder": str(tmp_path / "store"), "plans": 0, "bytes": 0, "reason": None}
    entry = tmp_path / "store" / ("0" * 64)
    entry.mkdir(parents=True)
    (entry / "plan").write_bytes(b"x" * 1_500_000)
    (entry / "recipe.json").write_text(json.dumps({}))
    filled = run("doctor", "--json").json["store"]
    assert (filled["plans"], filled["bytes"]) == (1, 1_500_000)
    assert f"engine store: {tmp_path / 'store'}, 1 plan, 1.5 MB\n" in run("doctor").out


def test_a_store_that_cannot_be_read(run: Run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "store").write_text("a file")
    outcome = run("doctor", "--json")
    assert outcome.code == 0 and outcome.json["store"]["folder"] is None and outcome.json["store"]["reason"]


def test_a_store_without_its_library(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.delitem(modules, "taylorseer.engines.store", raising=False)
    monkeypatch.setitem(modules, "filelock", None)
    reason = run("doctor", "--json").json["store"]["reason"]
    assert reason == "It needs filelock: `pip install 'taylorseer-trt[tensorrt-rtx]'`."
