"""What a session of a bundle keeps in memory: counted by its use, printed and drawn."""

import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from taylorseer.bundle import Bundle
from taylorseer.cuda import load_cuda
from taylorseer.errors import BackendError, DependencyError, InputError, MemoryPlanError
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["draw_memory", "print_memory", "readable_size", "session_memory"]

_UNITS = ("B", "kB", "MB", "GB", "TB")


def session_memory(bundle: Bundle, *, batch: int, steps: int, load_engines: bool) -> dict[str, Any]:
    """Return what a session for so many whole images keeps, and whether that fits the GPU, if one is here.

    Args:
        bundle: built for any backend.
        batch: rows of the model's batch; the rows of an image that is begun count.
        steps: of the session's schedule.
        load_engines: load the engines on this machine's GPU, for the working memory that they need.

    Raises:
        InputError: more rows than the bundle serves.
        BackendError: ``load_engines``, and the bundle's engines are not TensorRT's, or do not run here.
        DependencyError: ``load_engines``, and TensorRT or cuda-python is not installed.
        DeviceError: ``load_engines``, and there is no GPU.
    """
    from taylorseer.runtime.footprint import footprint
    from taylorseer.runtime.memory import plan_memory
    from taylorseer.runtime.what_fits import what_fits

    manifest = bundle.manifest
    images = -(-batch // manifest.rows_per_image)
    rows, largest = images * manifest.rows_per_image, manifest.sizes["max_batch"]
    if rows > largest:
        raise InputError(
            f"A session for --batch {batch} needs {rows} rows of the model, this bundle serves up to "
            f"{largest}: give less, or build with --batch {rows}."
        )
    # ONNX Runtime keeps its working memory to itself, TensorRT tells it of loaded engines.
    unloaded = 0 if manifest.engine.backend == "onnxruntime" else None
    scratch, free = _device_memory(bundle) if load_engines else (unloaded, _free(bundle))
    plan = plan_memory(manifest, rows=rows, steps=steps, scratch_bytes=scratch or 0)
    refusal = None
    if free is not None:
        try:
            plan.require_fits(free, what_fits(manifest, plan, free))
        except MemoryPlanError as error:
            refusal = str(error)
    uses: dict[str, int | None] = {**plan.bytes_by_use()}
    return {
        "images": images,
        "rows": rows,
        "steps": steps,
        "bytes_by_use": uses if scratch is not None else uses | {"scratch": None},
        "total_bytes": plan.total_bytes,
        "beside_bytes": footprint(plan.total_bytes) - plan.total_bytes if manifest.engine.backend in FLAVORS else 0,
        "free_bytes": free,
        "refusal": refusal,
    }


def _device_memory(bundle: Bundle) -> tuple[int, int]:
    """Load the engines; return the bytes of working memory that they share, and those that are free beside them."""
    from taylorseer.runtime.open_backend import open_backend
    from taylorseer.runtime.session import LoadedModel

    if bundle.manifest.engine.backend not in FLAVORS:
        raise BackendError(
            f"--device-memory loads TensorRT engines, and the bundle was built for {bundle.manifest.engine.backend}: "
            "leave it out."
        )
    model = LoadedModel(bundle.manifest, open_backend(bundle))
    return model.backend.scratch_bytes(), load_cuda().free_bytes()


def _free(bundle: Bundle) -> int | None:
    """Return the bytes that are free on the GPU that the bundle's engines would run on, or None where there is none."""
    if bundle.manifest.engine.backend not in FLAVORS:
        return None
    try:
        load_cuda().device()
        return load_cuda().free_bytes()
    except (BackendError, DependencyError):
        return None


def print_memory(memory: Mapping[str, Any]) -> None:
    """Print what :func:`session_memory` returned, a line for each use."""
    images = "1 image" if memory["images"] == 1 else f"{memory['images']} images"
    rows = "1 row" if memory["rows"] == 1 else f"{memory['rows']} rows"
    print(f"memory of a session ({images} at a time, {rows} of the model, {memory['steps']} steps):")
    for use, size in memory["bytes_by_use"].items():
        print(f"  {use:12} {'known once the engines are loaded on a GPU' if size is None else readable_size(size)}")
    print(f"  {'total':12} {_total(memory)}")
    if memory["beside_bytes"]:
        print(f"  {'beside it':12} about {readable_size(memory['beside_bytes'])} by TensorRT and the driver themselves")
    if memory["free_bytes"] is not None:
        print(f"  {'free':12} {readable_size(memory['free_bytes'])} on the GPU of this machine")
    if memory["refusal"]:
        print(f"  warning: {memory['refusal']}")


def _total(memory: Mapping[str, Any]) -> str:
    unknown = [use for use, size in memory["bytes_by_use"].items() if size is None]
    return readable_size(memory["total_bytes"]) + "".join(f", without {use}" for use in unknown)


def draw_memory(memory: Mapping[str, Any], path: pathlib.Path, title: str) -> None:
    """Draw one bar of the session's bytes as a PNG, one part for each use, the largest first.

    Raises:
        DependencyError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    from taylorseer.runtime.whole_file import write_whole

    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("--memory-plot needs matplotlib: `pip install 'taylorseer-trt[profile]'`.") from error
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    axes, left = figure.subplots(), 0.0
    parts = sorted(((size, use) for use, size in memory["bytes_by_use"].items() if size), reverse=True)
    power = _power(memory["total_bytes"])
    for number, (size, use) in enumerate(parts):
        width = size / 1000**power
        label = f"{use} {readable_size(size)}"
        axes.barh(0, width, left=left, height=0.6, color=colormaps["tab10"](number % 10), label=label)
        left += width
    axes.set_title(f"{title}: {_total(memory)}", fontsize=10)
    axes.set_xlabel(_UNITS[power])
    axes.set_yticks([])
    axes.set_xlim(0, left)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(path, picture.getvalue())


def _power(size: int) -> int:
    """Return the power of 1000 that ``size`` is best read in."""
    return min(int(math.log(max(size, 1), 1000)), len(_UNITS) - 1)


def readable_size(size: int) -> str:
    """Return bytes with two decimals and the unit that they are best read in."""
    return f"{size / 1000 ** _power(size):.2f} {_UNITS[_power(size)]}"
