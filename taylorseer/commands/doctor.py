"""``taylorseer doctor``: what each stage and backend can do on this machine, and what to install where it cannot."""

import argparse
import importlib.metadata
import json
import platform
import sys
from typing import Any

import taylorseer
from taylorseer.commands.options import add_json_option
from taylorseer.cuda import load_cuda
from taylorseer.errors import TaylorSeerError
from taylorseer.tensorrt_library import FLAVORS, load_tensorrt

__all__ = ["add_options", "run"]

SUMMARY = "versions, and what each stage and backend can do on this machine"

_TENSORRT = ("polygraphy", "cuda-python", "onnx-ir", "filelock", "safetensors", "pillow")

_STAGES = {
    "export": ("torch", "diffusers", "transformers", "accelerate", "onnx", "onnx-ir", "onnxscript", "safetensors"),
    "onnxruntime": ("onnxruntime", "safetensors", "pillow", "scikit-image"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", *_TENSORRT),
    "tensorrt": ("tensorrt", *_TENSORRT),
    "profile": ("matplotlib", "onnx-ir", "onnx"),
}
"""Extra of the distribution: the libraries it brings."""

_ALTERNATIVES = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt-rtx-cu13": ("tensorrt-rtx-cu12", "tensorrt-rtx"),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
}
"""Library: other distributions of the same module."""

_PROVIDERS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
"""ONNX Runtime's execution providers that ``--provider`` knows."""


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
    gpu, providers = _gpu(), _providers()
    return {
        "taylorseer-trt": taylorseer.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": _version("numpy"),
        "stages": {extra: _stage(extra, libraries) for extra, libraries in _STAGES.items()},
        "providers": providers,
        "gpu": gpu,
        "backends": {
            "onnxruntime": _onnxruntime(providers),
            **{flavor: _tensorrt(flavor, gpu) for flavor in reversed(FLAVORS)},
        },
        "trtexec": _trtexec(),
        "store": _store(),
    }


def _stage(extra: str, libraries: tuple[str, ...]) -> dict[str, Any]:
    installed = [
        next((other for other in (name, *_ALTERNATIVES.get(name, ())) if _version(other)), name) for name in libraries
    ]
    versions = {name: _version(name) for name in installed}
    missing = [name for name, version in versions.items() if version is None]
    return {
        "ready": not missing,
        "versions": versions,
        "missing": missing,
        "install": f"pip install 'taylorseer-trt[{extra}]'" if missing else None,
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


def _gpu() -> dict[str, Any]:
    """Return what is known of the first GPU; where it cannot be used, ``reason`` says why."""
    facts: dict[str, Any] = {"name": None, "reason": None}
    try:
        cuda = load_cuda()
        facts["driver_cuda"] = _cuda_version(cuda.call("cudaDriverGetVersion"))
        facts["runtime_cuda"] = _cuda_version(cuda.call("cudaRuntimeGetVersion"))
        device = cuda.device()
        facts |= {"compute_capability": device.compute_capability, "total_bytes": device.total_bytes}
        facts |= {"free_bytes": cuda.free_bytes(), "name": device.name}
    except TaylorSeerError as error:
        facts["reason"] = str(error)
    return facts


def _cuda_version(number: int) -> str | None:
    """Return ``13.4`` for 13040, and None for 0, by which the driver says that it is not there."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _onnxruntime(providers: list[str]) -> dict[str, Any]:
    version = _version("onnxruntime") or _version("onnxruntime-gpu")
    known = [_PROVIDERS[name] for name in providers if name in _PROVIDERS]
    reason = None if known else "ONNX Runtime is not installed: `pip install 'taylorseer-trt[onnxruntime]'`."
    return {"version": version, "builds_for": known, "runs": bool(known), "reason": reason}


def _tensorrt(flavor: str, gpu: dict[str, Any]) -> dict[str, Any]:
    """Return what this TensorRT builds for and whether it runs; plans run on a GPU alone."""
    try:
        library = load_tensorrt(flavor)
    except TaylorSeerError as error:
        return {"version": None, "builds_for": [], "runs": False, "reason": str(error)}
    builds_for = list(library.ahead_of_time)
    present = gpu.get("compute_capability") if gpu["name"] else None
    if present and present not in builds_for:
        builds_for.append(present)
    return {"version": library.version, "builds_for": builds_for, "runs": bool(present), "reason": gpu["reason"]}


def _trtexec() -> dict[str, Any]:
    """Return where NVIDIA's timing tool of each TensorRT is, or where to get it."""
    from taylorseer.engines.trtexec import require_trtexec

    found: dict[str, Any] = {}
    for flavor in FLAVORS:
        try:
            found[flavor] = {"path": str(require_trtexec(flavor)), "reason": None}
        except TaylorSeerError as error:
            found[flavor] = {"path": None, "reason": str(error)}
    return found


def _store() -> dict[str, Any]:
    """Return the engine store that builds use here, and what lies in it."""
    try:
        from taylorseer.engines.store import EngineStore

        store = EngineStore()
        entries = store.entries()
    except ImportError as error:
        return {"folder": None, "reason": f"It needs {error.name}: `pip install 'taylorseer-trt[tensorrt-rtx]'`."}
    except TaylorSeerError as error:
        return {"folder": None, "reason": str(error)}
    size = sum(entry.bytes for entry in entries)
    return {"folder": str(store.folder), "plans": len(entries), "bytes": size, "reason": None}


def _print(report: dict[str, Any]) -> None:
    print(f"taylorseer-trt {report['taylorseer-trt']}, Python {report['python']}, NumPy {report['numpy']}")
    print(report["platform"])
    for extra, stage in report["stages"].items():
        print(f"{extra}: {'ready' if stage['ready'] else 'not ready'}")
        for name, version in stage["versions"].items():
            print(f"  {name:18} {version or 'missing'}")
        if stage["install"]:
            print(f"  -> {stage['install']}")
    if report["providers"]:
        print(f"ONNX Runtime providers: {', '.join(report['providers'])}")
    print("\n".join(_gpu_lines(report["gpu"])))
    for name, backend in report["backends"].items():
        print(f"backend {' '.join(filter(None, (name, backend['version'])))}: {_abilities(backend)}")
    for flavor, tool in report["trtexec"].items():
        print(f"trtexec for {flavor}: {tool['path'] or tool['reason']}")
    store = report["store"]
    print(f"engine store: {store['reason'] or _store_content(store)}")


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    lines = [f"GPU: {gpu['reason']}"]
    if gpu["name"]:
        free, total = gpu["free_bytes"] / 1e9, gpu["total_bytes"] / 1e9
        lines = [
            f"GPU: {gpu['name']}, compute capability {gpu['compute_capability']}, {free:.1f} of {total:.1f} GB free"
        ]
    if "runtime_cuda" in gpu:
        lines.append(f"CUDA: the driver serves {gpu['driver_cuda'] or 'none'}, cuda-python is of {gpu['runtime_cuda']}")
    return lines


def _abilities(backend: dict[str, Any]) -> str:
    targets = ", ".join(backend["builds_for"])
    if backend["runs"]:
        return f"builds for {targets}; runs here"
    builds = f"builds for {targets}; does not run here" if targets else "neither builds nor runs here"
    return f"{builds}: {backend['reason']}"


def _store_content(store: dict[str, Any]) -> str:
    plans = "1 plan" if store["plans"] == 1 else f"{store['plans']} plans"
    return f"{store['folder']}, {plans}, {store['bytes'] / 1e6:.1f} MB"
