"""``taylorseer plan``: what a cache schedule does and what a session keeps in memory, before anything runs."""

import argparse
import dataclasses
import io
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.commands.options import add_cache_options, add_json_option, cache_config
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.cuda import load_cuda
from taylorseer.errors import BackendError, DependencyError, InputError, MemoryPlanError, OutputError
from taylorseer.predictor import largest_weight_sum
from taylorseer.state_size import PUBLISHED, state_bytes, state_bytes_of_bundle
from taylorseer.tensorrt_library import FLAVORS

__all__ = ["add_options", "run"]

SUMMARY = "full steps, weights and expected speed-up of a cache schedule, and the memory of a session"

_LOUD = 4.5
"""Above this sum of |weights| a forecast amplifies rounding noise visibly; steady windows stay below (dit: 4.4)."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", nargs="?", help="a bundle: its own defaults and state")
    parser.add_argument("--batch", type=int, default=1, help="rows of the model's batch, for the state bytes")
    parser.add_argument(
        "--forecast-cost",
        type=float,
        default=0.05,
        metavar="R",
        help="a forecast step's time as a share of a full step's, for the expected speed-up (default 0.05)",
    )
    parser.add_argument(
        "--device-memory",
        action="store_true",
        help="load the bundle's engines on the GPU of this machine: their working memory counts, and what does not fit "
        "is refused",
    )
    parser.add_argument(
        "--memory-plot", type=pathlib.Path, metavar="FILE.png", help="draw the session's memory by its use"
    )
    add_cache_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan, and draw the session's memory where that is asked for.

    Raises:
        MemoryPlanError: ``--device-memory``, and the session does not fit; the plan was printed.
    """
    _check(options)
    plan = _plan(options)
    if options.memory_plot:
        _draw(plan["memory"], options.memory_plot, f"session of {plan['state_of']}")
    if options.json:
        json.dump(plan, sys.stdout, indent=1)
        print()
    else:
        _print(plan)
    if options.device_memory and plan["memory"]["refusal"]:
        raise MemoryPlanError(plan["memory"]["refusal"])
    return 0


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.forecast_cost < math.inf:  # NaN too
        raise InputError(f"--forecast-cost {options.forecast_cost} is no share of a full step: give 0 or more.")
    if not options.bundle and (options.device_memory or options.memory_plot):
        raise InputError("--device-memory and --memory-plot are about the sessions of a bundle: give its folder.")
    if options.memory_plot and options.memory_plot.suffix.lower() != ".png":
        raise OutputError(f"{str(options.memory_plot)!r} is no picture: give --memory-plot FILE.png.")


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    bundle = open_bundle(options.bundle, check_digests=False) if options.bundle else None
    default = CacheConfig.from_json(bundle.manifest.cache) if bundle else PRESETS["flux"]
    config = cache_config(options, default)
    schedule = config.schedule()
    weights = config.weights()
    step, amplification = largest_weight_sum(weights)
    forecasts = schedule.steps - len(schedule.full_steps)
    size: Mapping[str, int] | None
    where: str | None
    if bundle is not None:
        manifest = dataclasses.replace(bundle.manifest, order=config.order)
        size, where = state_bytes_of_bundle(manifest, batch=options.batch), str(bundle.folder)
    else:
        size, where = _published_state(options.preset or "flux", config.order, options.batch)
    return {
        "cache": config.to_json(),
        "full_steps": list(schedule.full_steps),
        "weights": {str(s): {str(j): w for j, w in sorted(row.items())} for s, row in sorted(weights.items())},
        "ideal_speedup": schedule.ideal_speedup,
        "expected_speedup": schedule.steps / (len(schedule.full_steps) + options.forecast_cost * forecasts),
        "forecast_cost": options.forecast_cost,
        "largest_weight_sum": amplification,
        "largest_weight_sum_step": step,
        "state_bytes": size,
        "state_of": where,
        **({"memory": _memory(bundle, options, config.steps)} if bundle else {}),
    }


def _memory(bundle: Bundle, options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Return what a session for so many whole images keeps, and whether that fits the GPU, if one is here."""
    from taylorseer.runtime.memory import plan_memory
    from taylorseer.runtime.what_fits import what_fits

    manifest = bundle.manifest
    images = -(-options.batch // manifest.rows_per_image)
    rows, largest = images * manifest.rows_per_image, manifest.sizes["max_batch"]
    if rows > largest:
        raise InputError(
            f"A session for --batch {options.batch} needs {rows} rows of the model, this bundle serves up to "
            f"{largest}: give less, or build with --batch {rows}."
        )
    # ONNX Runtime keeps its working memory to itself, TensorRT tells it of loaded engines.
    unloaded = 0 if manifest.engine.backend == "onnxruntime" else None
    scratch, free = _device_memory(bundle) if options.device_memory else (unloaded, _free(bundle))
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


def _published_state(preset: str, order: int, batch: int) -> tuple[Mapping[str, int] | None, str | None]:
    """State of the published model that a preset is named after; None for presets without one here."""
    geometry = PUBLISHED.get(preset)
    if geometry is None:
        return None, None
    return state_bytes(geometry, order=order, batch=batch), f"{geometry.size}, bf16"


def _print(plan: Mapping[str, Any]) -> None:
    cache = plan["cache"]
    full = plan["full_steps"]
    print(f"{cache['steps']} steps, {len(full)} full: {', '.join(map(str, full))}")
    print(f"predictor {cache['predictor']}, order {cache['order']}")
    print(
        f"speed-up {plan['ideal_speedup']:.2f}x if forecasts were free, {plan['expected_speedup']:.2f}x with forecasts "
        f"at {plan['forecast_cost']:.0%} of a full step"
    )
    amplification = plan["largest_weight_sum"]
    print(f"largest sum of |weights| {amplification:.2f}, at step {plan['largest_weight_sum_step']}")
    if amplification > _LOUD:
        print(
            f"  warning: rounding noise grows {amplification:.0f}-fold there; more warm-up steps, full steps spaced "
            "apart (--full-steps) or --order 0 avoid it"
        )
    if plan["state_bytes"] is not None:
        print(f"state ({plan['state_of']}):")
        for layout, size in plan["state_bytes"].items():
            print(f"  {layout:12} {_readable(size)}")
    if "memory" in plan:
        _print_memory(plan["memory"])
    print("weights (forecast step: full step x weight)")
    for step, row in plan["weights"].items():
        print(f"  {step:>3}: " + "  ".join(f"{source} x {weight:+.4g}" for source, weight in row.items()))


def _print_memory(memory: Mapping[str, Any]) -> None:
    images = "1 image" if memory["images"] == 1 else f"{memory['images']} images"
    rows = "1 row" if memory["rows"] == 1 else f"{memory['rows']} rows"
    print(f"memory of a session ({images} at a time, {rows} of the model, {memory['steps']} steps):")
    for use, size in memory["bytes_by_use"].items():
        print(f"  {use:12} {'known once the engines are loaded on a GPU' if size is None else _readable(size)}")
    print(f"  {'total':12} {_total(memory)}")
    if memory["free_bytes"] is not None:
        print(f"  {'free':12} {_readable(memory['free_bytes'])} on the GPU of this machine")
    if memory["refusal"]:
        print(f"  warning: {memory['refusal']}")


def _total(memory: Mapping[str, Any]) -> str:
    unknown = [use for use, size in memory["bytes_by_use"].items() if size is None]
    return _readable(memory["total_bytes"]) + "".join(f", without {use}" for use in unknown)


def _draw(memory: Mapping[str, Any], path: pathlib.Path, title: str) -> None:
    """Draw one bar of the session's bytes, one part for each use, the largest first."""
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
        label = f"{use} {_readable(size)}"
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


def _readable(size: int) -> str:
    return f"{size / 1000 ** _power(size):.2f} {_UNITS[_power(size)]}"
