"""``taylorseer doctor``: what each stage can do on this machine, and what to install where it cannot."""

import argparse
import importlib.metadata
import json
import platform
import sys
from typing import Any

import taylorseer
from taylorseer.commands.options import add_json_option

__all__ = ["add_options", "run"]

SUMMARY = "versions, and what each stage can do on this machine"

_STAGES = {
    "export": ("torch", "diffusers", "transformers", "accelerate", "onnx", "onnx-ir", "onnxscript", "safetensors"),
    "onnxruntime": ("onnxruntime", "safetensors", "pillow", "scikit-image"),
}
"""Extra of the distribution: the libraries it brings."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report; the exit code is 0 whatever is missing, because nothing was asked to work."""
    report = _report()
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        _print(report)
    return 0


def _report() -> dict[str, Any]:
    stages = {}
    for extra, libraries in _STAGES.items():
        versions = {name: _version(name) for name in libraries}
        missing = [name for name, version in versions.items() if version is None]
        if extra == "onnxruntime" and missing == ["onnxruntime"] and _version("onnxruntime-gpu"):
            missing = []
        stages[extra] = {
            "ready": not missing,
            "versions": versions,
            "missing": missing,
            "install": f"pip install 'taylorseer-trt[{extra}]'" if missing else None,
        }
    return {
        "taylorseer-trt": taylorseer.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": _version("numpy"),
        "stages": stages,
        "providers": _providers(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    """Return ONNX Runtime's execution providers here, empty without it."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _print(report: dict[str, Any]) -> None:
    print(f"taylorseer-trt {report['taylorseer-trt']}, Python {report['python']}, NumPy {report['numpy']}")
    print(report["platform"])
    for extra, stage in report["stages"].items():
        print(f"{extra}: {'ready' if stage['ready'] else 'not ready'}")
        for name, version in stage["versions"].items():
            print(f"  {name:14} {version or 'missing'}")
        if stage["install"]:
            print(f"  -> {stage['install']}")
    if report["providers"]:
        print(f"ONNX Runtime providers: {', '.join(report['providers'])}")
