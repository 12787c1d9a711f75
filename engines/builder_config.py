"""TensorRT's builder config, made by Polygraphy of our options: profiles, memory pools, flags, the timing cache."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from taylorseer.engines.options import TensorRTOptions
from taylorseer.engines.profiles import ShapeRange
from taylorseer.errors import BackendError, DependencyError
from taylorseer.tensorrt_library import TensorRT

__all__ = ["builder_config", "check_timing_cache", "keep_timing_cache"]

_SILENT = 100
"""Above Polygraphy's highest severity: what it would print is in the exception that it raises."""


def builder_config(
    library: TensorRT,
    builder: Any,
    network: Any,
    profile: Sequence[ShapeRange],
    options: TensorRTOptions,
    capability: str,
) -> Any:
    """Return an ``IBuilderConfig``.

    Args:
        library: TensorRT; the first flavor that a process builds with is the one that Polygraphy works with.
        builder: of the library.
        network: the parsed graph.
        profile: the shapes to serve.
        options: build choices.
        capability: the compute capability to build for.

    Raises:
        DependencyError: Polygraphy is not installed.
        BackendError: an option that this TensorRT does not have.
    """
    try:
        import polygraphy.config

        polygraphy.config.USE_TENSORRT_RTX = library.flavor == "tensorrt-rtx"
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
        from polygraphy.backend.trt import CreateConfig
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise DependencyError(
            f"Building plans needs polygraphy ({error}): `pip install 'taylorseer-trt[{library.flavor}]'`."
        ) from error
    arguments = _arguments(library, profile, options)
    with G_LOGGER.verbosity(_SILENT):
        try:
            if not library.ahead_of_time:
                return CreateConfig(**arguments)(builder, network)
            return CreateConfigRTX(**arguments, **_target(options, capability))(builder, network)
        except PolygraphyException as error:
            raise BackendError(
                f"{library.flavor} {library.version} does not take the builder options: {error}. Leave out what it "
                "names."
            ) from error


def check_timing_cache(options: TensorRTOptions) -> None:
    """Refuse a timing cache that could not be written, before the builds that would be lost.

    Raises:
        BackendError: there is no such folder, it cannot be written, or the path is itself a folder.
    """
    if options.timing_cache is None:
        return
    path = pathlib.Path(options.timing_cache)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        found = "a folder" if path.is_dir() else "in a folder that is missing or cannot be written"
        raise BackendError(f"The timing cache {path} is {found}: give another --timing-cache.")


def keep_timing_cache(options: TensorRTOptions, config: Any) -> None:
    """Write the timing cache that a build left, where one is asked for.

    Raises:
        BackendError: the file cannot be written; an older one is still whole.
    """
    if options.timing_cache is None:
        return
    path = pathlib.Path(options.timing_cache)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
        partial.replace(path)
    except OSError as error:
        raise BackendError(
            f"The timing cache {path} cannot be written: {error}. Give another --timing-cache."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _arguments(library: TensorRT, profile: Sequence[ShapeRange], options: TensorRTOptions) -> dict[str, Any]:
    from polygraphy.backend.trt import Profile

    shapes, cache = Profile(), options.timing_cache
    for entry in profile:
        shapes.add(entry.name, entry.min, entry.opt, entry.max)
    pools = library.module.MemoryPoolType
    return {
        "profiles": [shapes],
        "load_timing_cache": cache if cache is not None and pathlib.Path(cache).is_file() else None,
        "memory_pool_limits": {} if options.workspace is None else {pools.WORKSPACE: options.workspace},
        "refittable": options.refit,
        "weight_streaming": options.weight_streaming,
        "version_compatible": options.version_compatible,
        "builder_optimization_level": options.builder_optimization_level,
    }


def _target(options: TensorRTOptions, capability: str) -> dict[str, Any]:
    """Return what TensorRT-RTX builds for: named capabilities, or the GPU that is here."""
    if options.compute_capability:
        major, minor = map(int, capability.split("."))
        return {"compute_capabilities": [(major, minor)]}
    return {"use_gpu": True}
