"""``taylorseer plan``: what a cache schedule does, what each state layout costs and what a session keeps in memory."""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from taylorseer.accumulators import accumulators_of
from taylorseer.bundle import open_bundle
from taylorseer.commands.options import (
    ACCUMULATORS,
    add_cache_options,
    add_fold_options,
    add_json_option,
    cache_config,
    check_fold,
)
from taylorseer.commands.session_memory import draw_memory, print_memory, readable_size, session_memory
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import InputError, MemoryPlanError, OutputError
from taylorseer.extrapolation import NUMBERS
from taylorseer.manifest import Manifest
from taylorseer.predictor import largest_weight_sum
from taylorseer.schedule import CacheSchedule
from taylorseer.state_size import PUBLISHED, Fold, LayoutSize, layout_sizes, layout_sizes_of_bundle

__all__ = ["add_options", "run"]

SUMMARY = "full steps, weights and expected speed-up of a cache schedule, and the memory of a session"

_LOUD = 4.5
"""Above this sum of |weights| a forecast amplifies rounding noise visibly; steady windows stay below (dit: 4.4)."""


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
        "--bandwidth",
        type=float,
        default=3000.0,
        metavar="GB/s",
        help="bytes read plus bytes written in a second, for the times of the layouts (default 3000, as measured on "
        "one H100)",
    )
    add_fold_options(parser)
    parser.add_argument(
        "--device-memory",
        action="store_true",
        help="load the bundle's engines on the GPU of this machine: their working memory counts, and what does not fit "
        "is refused",
    )
    parser.add_argument(
        "--memory-plot", type=pathlib.Path, metavar="FILE.png", help="draw the session's memory by its use"
    )
    add_cache_options(parser, schedule_file=True)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan, and draw the session's memory where that is asked for.

    Raises:
        MemoryPlanError: ``--device-memory``, and the session does not fit; the plan was printed.
    """
    _check(options)
    plan = _plan(options)
    if options.memory_plot:
        draw_memory(plan["memory"], options.memory_plot, f"session of {plan['state_of']}")
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
    if not 0 < options.bandwidth < math.inf:
        raise InputError(f"--bandwidth {options.bandwidth} moves nothing: give GB/s above 0.")
    check_fold(options)
    if not options.bundle and (options.device_memory or options.memory_plot):
        raise InputError("--device-memory and --memory-plot are about the sessions of a bundle: give its folder.")
    if options.memory_plot and options.memory_plot.suffix.lower() != ".png":
        raise OutputError(f"{str(options.memory_plot)!r} is no picture: give --memory-plot FILE.png.")


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    bundle = open_bundle(options.bundle, check_digests=options.device_memory) if options.bundle else None
    default = CacheConfig.from_json(bundle.manifest.cache) if bundle else PRESETS["flux"]
    config = cache_config(options, default, model=bundle.manifest.model if bundle else None)
    schedule = config.schedule()
    weights = config.weights()
    step, amplification = largest_weight_sum(weights)
    forecasts = schedule.steps - len(schedule.full_steps)
    sizes: Sizes | None
    where: str | None
    memory: dict[str, Any] = {}
    if bundle is not None:
        sizes, where = _bundle_sizes(bundle.manifest, config, options), str(bundle.folder)
        memory["memory"] = session_memory(
            bundle, batch=options.batch, steps=config.steps, load_engines=options.device_memory
        )
    elif options.schedule:
        sizes, where = None, None  # a schedule file is of one model, whose sizes its bundle knows
    else:
        sizes, where = _published_sizes(options.preset or "flux", config, options)
    return {
        "cache": config.to_json(),
        "full_steps": list(schedule.full_steps),
        "weights": {str(s): {str(j): w for j, w in sorted(row.items())} for s, row in sorted(weights.items())},
        "ideal_speedup": schedule.ideal_speedup,
        "expected_speedup": schedule.steps / (len(schedule.full_steps) + options.forecast_cost * forecasts),
        "forecast_cost": options.forecast_cost,
        "largest_weight_sum": amplification,
        "largest_weight_sum_step": step,
        "state_bytes": sizes and {layout: size.state for layout, size in sizes.items()},
        "state_of": where,
        "bandwidth_gb_s": options.bandwidth,
        "layouts": sizes and {layout: _layout(size, options.bandwidth, schedule) for layout, size in sizes.items()},
        **memory,
    }


Sizes = Mapping[str, LayoutSize]


def _bundle_sizes(manifest: Manifest, config: CacheConfig, options: argparse.Namespace) -> Sizes:
    """The layouts of a bundle on this schedule; a folded one is as it was built."""
    manifest = dataclasses.replace(manifest, order=config.order, cache=config.to_json())
    dtype = ACCUMULATORS.get(options.accumulators)
    return layout_sizes_of_bundle(manifest, batch=options.batch, dtype=dtype, flush_group=options.flush_group)


def _published_sizes(preset: str, config: CacheConfig, options: argparse.Namespace) -> tuple[Sizes | None, str | None]:
    """The layouts of the published model that a preset is named after; None for presets without one here."""
    geometry = PUBLISHED.get(preset)
    if geometry is None:
        return None, None
    dtype = ACCUMULATORS[options.accumulators or "fp32"]
    built = accumulators_of(config.schedule(), config.order)
    fold = Fold(accumulators=built, dtype=dtype, flush_group=options.flush_group)
    return layout_sizes(geometry, order=config.order, fold=fold, batch=options.batch), f"{geometry.size}, bf16"


def _layout(size: LayoutSize, bandwidth: float, schedule: CacheSchedule) -> dict[str, Any]:
    """Bytes of one layout, and how long moving them takes at so many GB/s, in a step and in a whole loop."""
    forecast_ms, full_ms = size.forecast_moves / bandwidth / 1e6, size.full_moves / bandwidth / 1e6
    full = len(schedule.full_steps)
    return {
        "state_bytes": size.state,
        "carry_bytes": size.carry,
        "flush_bytes": size.flush,
        "forecast_bytes_moved": size.forecast_moves,
        "forecast_ms": forecast_ms,
        "full_bytes_moved": size.full_moves,
        "full_ms": full_ms,
        "loop_ms": full * full_ms + (schedule.steps - full) * forecast_ms,
    }


def _print(plan: Mapping[str, Any]) -> None:
    cache = plan["cache"]
    full = plan["full_steps"]
    print(f"{cache['steps']} steps, {len(full)} full: {', '.join(map(str, full))}")
    guard = "" if cache["guard"] == "none" else f", guard {cache['guard']}"
    print(f"predictor {cache['predictor']}{_number(cache)}, order {cache['order']}{guard}")
    print(
        f"speed-up {plan['ideal_speedup']:.2f}x if forecasts were free, {plan['expected_speedup']:.2f}x with forecasts "
        f"at {plan['forecast_cost']:.0%} of a full step"
    )
    amplification = plan["largest_weight_sum"]
    print(f"largest sum of |weights| {amplification:.2f}, at step {plan['largest_weight_sum_step']}")
    if amplification > _LOUD:
        print(
            f"  warning: rounding noise grows {amplification:.0f}-fold there; --guard lower-order avoids it, and at "
            "order 1 --guard spread-warmup as well"
        )
    if plan["state_bytes"] is not None:
        _print_layouts(plan)
    if "memory" in plan:
        print_memory(plan["memory"])
    print("weights (forecast step: full step x weight)")
    for step, row in plan["weights"].items():
        print(f"  {step:>3}: " + "  ".join(f"{source} x {weight:+.4g}" for source, weight in row.items()))


def _number(cache: Mapping[str, Any]) -> str:
    """Return the number that belongs to the predictor, in words."""
    name = NUMBERS.get(cache["predictor"])
    return f" ({name} {cache[name]:g})" if name else ""


def _print_layouts(plan: Mapping[str, Any]) -> None:
    """Print a line for each layout: what it keeps, and the times that follow from bytes alone."""
    print(f"state ({plan['state_of']}); times from bytes alone, at {plan['bandwidth_gb_s']:g} GB/s:")
    print(
        f"  {'':12} {'kept':10} {'beside it':>10}  {'a forecast reads':>21}  {'a full step moves':>21}  {'a loop':>8}"
    )
    for layout, size in plan["layouts"].items():
        beside = size["carry_bytes"] + size["flush_bytes"]
        print(
            f"  {layout:12} {readable_size(size['state_bytes']):10} {readable_size(beside) if beside else '-':>10}"
            f"  {readable_size(size['forecast_bytes_moved']):>10} {_readable_time(size['forecast_ms']):>10}"
            f"  {readable_size(size['full_bytes_moved']):>10} {_readable_time(size['full_ms']):>10}"
            f"  {_readable_time(size['loop_ms']):>8}"
        )
    folded = plan["layouts"].get("folded")
    if folded:
        carry, flush = readable_size(folded["carry_bytes"]), readable_size(folded["flush_bytes"])
        print(f"  beside a folded state, within a full step alone: {carry} that it reads, {flush} of features to sum")


def _readable_time(ms: float) -> str:
    """Return a time with three figures and its unit."""
    unit, figures = ("us", ms * 1e3) if ms < 0.9995 else ("ms", ms) if ms < 999.5 else ("s", ms / 1e3)
    return f"{figures:.{max(0, 2 - int(math.log10(max(figures, 1))))}f} {unit}"
