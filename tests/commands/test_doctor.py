"""``doctor``: versions as installed, and what to install where something is missing."""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import taylorseer
from taylorseer.commands import doctor

Run = Callable[..., Any]


def test_what_is_installed_is_reported(run: Run) -> None:
    report = run("doctor", "--json").json
    assert report["taylorseer-trt"] == taylorseer.__version__ and report["numpy"] == np.__version__
    for extra in ("export", "onnxruntime"):
        stage = report["stages"][extra]
        assert stage["ready"] and stage["missing"] == [] and stage["install"] is None
    assert report["stages"]["export"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert "CPUExecutionProvider" in report["providers"]


def test_what_is_missing_is_named_with_its_remedy(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    true = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("onnxruntime", "onnxruntime-gpu", "diffusers"):
            raise importlib.metadata.PackageNotFoundError(name)
        return true(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    modules: dict[str, Any] = sys.modules  # type: ignore[assignment]
    monkeypatch.setitem(modules, "onnxruntime", None)
    outcome = run("doctor", "--json")
    assert outcome.code == 0 and outcome.json["providers"] == []
    stages = outcome.json["stages"]
    assert stages["export"]["missing"] == ["diffusers"] and not stages["export"]["ready"]
    assert stages["onnxruntime"]["install"] == "pip install 'taylorseer-trt[onnxruntime]'"
    text = run("doctor").out
    assert "onnxruntime: not ready" in text and "-> pip install 'taylorseer-trt[export]'" in text


def test_the_gpu_build_of_onnx_runtime_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor._report()["stages"]["onnxruntime"]["ready"]
