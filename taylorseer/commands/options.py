"""Options that several commands share."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ModelError, ScheduleError
from taylorseer.extrapolation import CONTRACTION, DECAY, NUMBERS
from taylorseer.guard import LARGEST_SUM, Guard
from taylorseer.predictor import PREDICTORS
from taylorseer.schedule_file import load_schedule

__all__ = ["ACCUMULATORS", "add_cache_options", "add_fold_options", "add_json_option", "cache_config", "check_fold"]

ACCUMULATORS = {"fp32": "float32", "bf16": "bfloat16"}
"""What ``--accumulators`` takes -> the dtype's name in the manifest."""

_FIELDS = (
    *("steps", "interval", "order", "warmup_steps", "cooldown_steps"),
    *("predictor", "contraction", "decay", "guard", "full_steps"),
)


def add_cache_options(parser: argparse.ArgumentParser, *, schedule_file: bool = False) -> None:
    """Add ``--preset`` and the fields of :class:`CacheConfig` that override it.

    Args:
        parser: of the command.
        schedule_file: add ``--schedule`` too, which stands for all of them.
    """
    group = parser.add_argument_group("cache schedule", "fields given here override those of the preset")
    if schedule_file:
        group.add_argument("--schedule", metavar="FILE", help="what `taylorseer tune` found, instead of all the others")
    group.add_argument("--preset", metavar="NAME", help=f"published settings: {', '.join(PRESETS)}")
    group.add_argument("--steps", type=int, help="number of denoising steps")
    group.add_argument("--interval", type=int, help="one step of every N is full")
    group.add_argument("--order", type=int, help="highest derivative of a forecast")
    group.add_argument("--warmup-steps", type=int, help="this many first steps are full")
    group.add_argument("--cooldown-steps", type=int, help="this many last steps are full")
    group.add_argument("--predictor", metavar="NAME", help=f"how features are forecast: {', '.join(PREDICTORS)}")
    group.add_argument(
        "--contraction", type=float, metavar="C", help=f"of hermite: above 0, below 1 (default {CONTRACTION})"
    )
    group.add_argument(
        "--decay", type=float, metavar="R", help=f"of exponential: a change beside the step before's (default {DECAY})"
    )
    group.add_argument(
        "--guard",
        metavar="NAME",
        help=f"what keeps the sum of |weights| at {LARGEST_SUM:g} or below, with as many full steps: "
        f"{', '.join(get_args(Guard))}",
    )
    group.add_argument("--full-steps", metavar="0,1,2,...", help="the full steps one by one, instead of the interval")


def add_fold_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--accumulators`` and ``--flush-group``, which say how a state is folded; see :func:`check_fold`."""
    parser.add_argument(
        "--accumulators",
        choices=tuple(ACCUMULATORS),
        help="dtype of a folded state (default fp32; bf16 takes half the memory and keeps fewer bits)",
    )
    parser.add_argument(
        "--flush-group",
        type=int,
        metavar="N",
        help="features that a folded state sums at once (default: as many as fit 2 GiB, 12 at the most)",
    )


def check_fold(options: argparse.Namespace) -> None:
    """Refuse values of :func:`add_fold_options` that fold nothing.

    Raises:
        ModelError: a flush group of less than one feature.
    """
    if options.flush_group is not None and options.flush_group < 1:
        raise ModelError(f"--flush-group {options.flush_group} sums no features: give 1 or more.")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``: the result as one JSON object on standard output and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def cache_config(options: argparse.Namespace, default: CacheConfig, *, model: str | None = None) -> CacheConfig:
    """Return the configuration that the options ask for.

    Args:
        options: parsed options of :func:`add_cache_options`.
        default: what holds where neither a preset nor a field was given.
        model: that a schedule file has to be of; None: of any.

    Raises:
        ScheduleError: an unknown preset, predictor or guard, values that make no schedule, a number of another
            predictor, or a schedule file that cannot be read, is of another model or has other options beside it.
    """
    if getattr(options, "schedule", None) is not None:
        return _of_file(options, model)
    given: dict[str, Any] = {name: getattr(options, name) for name in _FIELDS}
    if given["full_steps"] is not None:
        given["full_steps"] = _step_list(given["full_steps"])
        if given["interval"] is not None or given["warmup_steps"] is not None:
            raise ScheduleError("--full-steps names every full step: leave out --interval and --warmup-steps.")
    elif given["interval"] is not None or given["warmup_steps"] is not None:
        default = dataclasses.replace(default, full_steps=None)
    if options.preset is not None:
        config = CacheConfig.from_preset(options.preset, **given)
    else:
        config = CacheConfig.from_json(
            default.to_json() | {name: value for name, value in given.items() if value is not None}
        )
    _check_numbers(given, config)
    return config


def _of_file(options: argparse.Namespace, model: str | None) -> CacheConfig:
    """Return the configuration of ``--schedule``, which leaves nothing to choose."""
    file = load_schedule(options.schedule)
    if model is not None:
        file.check_model(model, options.schedule)
    if options.steps not in (None, file.cache.steps):
        raise ScheduleError(
            f"{options.schedule} was tuned for {file.cache.steps} steps, and --steps asks for {options.steps}: leave "
            f"out --steps, or run `taylorseer tune --steps {options.steps}`."
        )
    beside = [name for name in ("preset", *_FIELDS) if name != "steps" and getattr(options, name) is not None]
    if beside:
        raise ScheduleError(
            f"--schedule names every full step and weight: leave out --{beside[0].replace('_', '-')}, or --schedule."
        )
    return file.cache


def _check_numbers(given: Mapping[str, Any], config: CacheConfig) -> None:
    """Refuse a number that was given for another predictor, where it would have no effect."""
    for predictor, name in NUMBERS.items():
        if given[name] is not None and config.predictor != predictor:
            raise ScheduleError(
                f"--{name} is of the predictor {predictor}, and this one is {config.predictor}: leave it out, or give "
                f"--predictor {predictor}."
            )


def _step_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ScheduleError(f"--full-steps takes step numbers such as 0,1,2,8, not {text!r}.") from error
