"""``taylorseer plan``: what a cache schedule does, before anything runs."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from taylorseer.bundle import open_bundle
from taylorseer.commands.options import add_cache_options, add_json_option, cache_config
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import InputError
from taylorseer.predictor import largest_weight_sum
from taylorseer.state_size import PUBLISHED, state_bytes, state_bytes_of_bundle

__all__ = ["add_options", "run"]

SUMMARY = "full steps, weights, expected speed-up and state bytes of a cache schedule"

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
    add_cache_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    plan = _plan(options)
    if options.json:
        json.dump(plan, sys.stdout, indent=1)
        print()
    else:
        _print(plan)
    return 0


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= options.forecast_cost < math.inf:  # NaN too
        raise InputError(f"--forecast-cost {options.forecast_cost} is no share of a full step: give 0 or more.")
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
            print(f"  {layout:12} {_readable(size)}")
    print("weights (forecast step: full step x weight)")
    for step, row in plan["weights"].items():
        print(f"  {step:>3}: " + "  ".join(f"{source} x {weight:+.4g}" for source, weight in row.items()))


def _readable(size: int) -> str:
    power = min(int(math.log(max(size, 1), 1000)), 4)
    return f"{size / 1000**power:.2f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
