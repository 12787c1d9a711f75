"""The choice of a backend at build time: its options, what it refuses before the long work, and its builder."""

import argparse
import pathlib
from collections.abc import Callable
from typing import TypeAlias

from taylorseer.errors import BackendError
from taylorseer.manifest import EngineSpec, Manifest
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["BACKENDS", "BuildEngines", "add_backend_options", "choose_backend"]

BACKENDS = ("onnxruntime", *FLAVORS, "none")

BuildEngines: TypeAlias = Callable[[pathlib.Path, Manifest, Callable[[str, float], None]], EngineSpec]
"""(the bundle's folder, its manifest, progress) -> what was built there."""


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend`` and the options of each."""
    parser.add_argument(
        "--backend", default="onnxruntime", metavar="NAME", help=f"{', '.join(BACKENDS)} (default onnxruntime)"
    )
    parser.add_argument("--provider", default="cpu", choices=("cpu", "cuda"), help="of ONNX Runtime (default cpu)")
    group = parser.add_argument_group("TensorRT", "with TensorRT's own names")
    group.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="8.9",
        help="build for such GPUs without one (TensorRT-RTX); may be repeated; default: the GPU of this machine",
    )
    group.add_argument("--builder-optimization-level", type=int, metavar="N", help="0 (fast build) to 5")
    group.add_argument("--workspace", type=int, metavar="BYTES", help="most scratch memory of one layer")
    group.add_argument("--timing-cache", metavar="FILE", help="kernel times, kept for later builds")
    group.add_argument("--refit", action="store_true", help="the plan's weights can be replaced")
    group.add_argument("--weight-streaming", action="store_true", help="weights may stay in host memory")
    group.add_argument("--version-compatible", action="store_true", help="the plan runs on other TensorRT versions")
    group.add_argument("--verbosity", default="error", metavar="LEVEL", help="error, warning, info or verbose")
    group.add_argument("--store", metavar="DIR", help="where plans are kept (default: see `taylorseer store --help`)")


def choose_backend(options: argparse.Namespace, precision: str) -> BuildEngines | None:
    """Return the builder of the backend that was asked for, or None where no engines are wanted.

    Raises:
        BackendError: an unknown backend, or one that lacks the precision or an option.
        DependencyError: the backend's library is not installed.
        DeviceError: plans for the GPU of this machine, which has none.
    """
    if options.backend not in BACKENDS:
        raise BackendError(f"There is no backend {options.backend!r}; use one of {', '.join(BACKENDS)}.")
    if options.backend == "none" or options.graphs_only:
        return None
    return _onnxruntime(options, precision) if options.backend == "onnxruntime" else _tensorrt(options, precision)


def _onnxruntime(options: argparse.Namespace, precision: str) -> BuildEngines:
    from taylorseer.engines.onnxruntime_builder import build_onnxruntime, load_onnxruntime

    load_onnxruntime(options.provider)
    if precision == "bf16":
        raise BackendError(
            "ONNX Runtime does not run these models in bf16: use --precision fp32, a TensorRT --backend, or "
            "--graphs-only to inspect."
        )
    return lambda folder, manifest, progress: build_onnxruntime(folder, manifest, options.provider)


def _tensorrt(options: argparse.Namespace, precision: str) -> BuildEngines:
    from taylorseer.engines.options import TensorRTOptions
    from taylorseer.engines.store import EngineStore, default_store
    from taylorseer.engines.tensorrt_builder import build_tensorrt, target_capabilities
    from taylorseer.tensorrt_library import load_tensorrt

    library = load_tensorrt(options.backend)
    chosen = TensorRTOptions(
        compute_capability=tuple(options.compute_capability),
        builder_optimization_level=options.builder_optimization_level,
        workspace=options.workspace,
        refit=options.refit,
        weight_streaming=options.weight_streaming,
        version_compatible=options.version_compatible,
        timing_cache=options.timing_cache,
        verbosity=options.verbosity,
    )
    target_capabilities(library, chosen, precision)
    store = EngineStore(pathlib.Path(options.store) if options.store else default_store())
    return lambda folder, manifest, progress: build_tensorrt(folder, manifest, library, chosen, store, progress)
