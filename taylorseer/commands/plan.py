"""``taylorseer plan``: what a cache schedule does and what a session keeps in memory, before anything runs."""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from taylorseer.bundle import open_bundle
from taylorseer.commands.options import add_cache_options, add_json_option, cache_config
from taylorseer.commands.session_memory import draw_memory, print_memory, readable_size, session_memory
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import InputError, MemoryPlanError, OutputError
from taylorseer.predictor import largest_weight_sum
from taylorseer.state_size import PUBLISHED, state_bytes, state_bytes_of_bundle

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
    if not options.bundle and (options.device_memory or options.memory_plot):
        raise InputError("--device-memory and --memory-plot are about the sessions of a bundle: give its folder.")
    if options.memory_plot and options.memory_plot.suffix.lower() != ".png":
        raise OutputError(f"{str(options.memory_plot)!r} is no picture: give --memory-plot FILE.png.")


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    bundle = open_bundle(options.bundle, check_digests=options.device_memory) if options.bundle else None
    default = CacheConfig.from_json(bundle.manifest.cache) if bundle else PRESETS["flux"]
    config = cache_config(options, default)
    schedule = config.schedule()
    weights = config.weights()
    step, amplification = largest_weight_sum(weights)
    forecasts = schedule.steps - len(schedule.full_steps)
    size: Mapping[str, int] | None
    where: str | None
    memory: dict[str, Any] = {}
    if bundle is not None:
        manifest = dataclasses.replace(bundle.manifest, order=config.order)
        size, where = state_bytes_of_bundle(manifest, batch=options.batch), str(bundle.folder)
        memory["memory"] = session_memory(
            bundle, batch=options.batch, steps=config.steps, load_engines=options.device_memory
        )
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
        **memory,
    }


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
            print(f"  {layout:12} {readable_size(size)}")
    if "memory" in plan:
        print_memory(plan["memory"])
    print("weights (forecast step: full step x weight)")
    for step, row in plan["weights"].items():
        print(f"  {step:>3}: " + "  ".join(f"{source} x {weight:+.4g}" for source, weight in row.items()))
