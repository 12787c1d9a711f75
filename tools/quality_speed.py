"""How much faster forecasting is: whole requests on the bundle that the preset builds, beside every step full.

Two baselines, for the folded bundle's full engine folds at every step, also where no forecast follows: that bundle
with every step full, and the ``history`` bundle with every step full, which folds nothing.  Each round runs the two and
every forecasting request one after another, so that they meet the machine as it is then.
"""

import dataclasses
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Sequence

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.fidelity import psnr_db
from taylorseer.runtime.generation import Generated, Generator
from taylorseer.runtime.served_schedules import is_served
from taylorseer.runtime.step_plan import BuiltState
from tools.quality_cells import EQUAL_DB
from tools.quality_grid import INTERVALS, STEPS, Forecast
from tools.quality_plan import Scope, Setting
from tools.quality_results import Record, key_of
from tools.quality_systems import Request, System, identity
from tools.quality_workers import Progress

__all__ = ["machine", "measure_speed", "speed_cost", "timed_forecasts"]


def timed_forecasts(system: System, folded: Bundle, scope: Scope) -> list[Forecast]:
    """Return what is timed: ``taylor`` at the preset's order and at order 1, as far as the bundle serves it.

    The preset itself is the first.
    """
    preset = system.preset
    orders = dict.fromkeys((preset.order, 1))
    pairs = [(preset.interval, preset.order), *((interval, order) for order in orders for interval in INTERVALS)]
    forecasts = [
        Forecast(steps=STEPS, interval=interval, order=order, predictor="taylor")
        for interval, order in dict.fromkeys(pairs)
    ]
    built = BuiltState.of_bundle(folded.manifest)
    served = [forecast for forecast in forecasts if is_served(forecast.cache(system), built)]
    return served if scope.speed_intervals is None else served[: 1 + scope.speed_intervals]


def speed_cost(system: System, folded: Bundle, scope: Scope) -> float:
    """Return about how many seconds it takes."""
    schedules = [forecast.cache(system).schedule() for forecast in timed_forecasts(system, folded, scope)]
    steps = 2 * STEPS + sum(len(schedule.full_steps) for schedule in schedules)
    return (scope.rounds + 1) * steps * system.step_ms / 1e3


def measure_speed(setting: Setting, progress: Progress) -> None:
    """Time the schedules that have no result yet, or are to be timed again, and record their requests one by one."""
    system, folded, scope = setting.system, setting.folded, setting.scope
    keys = {forecast: _key(folded, forecast, scope.rounds) for forecast in timed_forecasts(system, folded, scope)}
    wanted = [forecast for forecast, key in keys.items() if setting.again or key not in setting.results]
    total, rounds = speed_cost(system, folded, scope), []
    if wanted:
        with (
            Generator(setting.wide, threads=setting.threads) as unfolded,
            Generator(folded, threads=setting.threads) as generator,
        ):
            for number in range(scope.rounds + 1):
                request = system.grid[number % len(system.grid)]
                rounds.append(_round(unfolded, generator, [f.cache(system) for f in wanted], request))
                progress.show(f"{system.model}, speed", within=total * number / (scope.rounds + 1))
    for place, forecast in enumerate(wanted):
        timed = [each[place] for each in rounds[1:]]  # the first one to warm up
        record = _record(system, forecast, timed) | {"key": keys[forecast], "threads": setting.threads}
        setting.results.add(record)
    progress.advance(total, f"{system.model}, speed")


def _record(system: System, forecast: Forecast, rounds: list[dict[str, float]]) -> Record:
    cache = forecast.cache(system)
    return {
        "kind": "speed",
        "model": system.model,
        "interval": forecast.interval,
        "order": forecast.order,
        "steps": cache.steps,
        "full_steps": len(cache.schedule().full_steps),
        "rounds": rounds,
        "machine": machine(),
    }


def _round(
    unfolded: Generator, folded: Generator, caches: Sequence[CacheConfig], request: Request
) -> list[dict[str, float]]:
    """Return, for each schedule, the milliseconds of one request each way, and how close the forecast one comes."""
    history_ms, _ = _timed(unfolded, request, caches[0], full=True)
    full_ms, full = _timed(folded, request, caches[0], full=True)
    found = []
    for cache in caches:
        forecast_ms, made = _timed(folded, request, cache, full=False)
        assert full.image is not None and made.image is not None  # the demo models all have pictures
        seconds, is_full = made.result.step_seconds, made.result.full_steps
        found.append(
            {
                "history_ms": history_ms,
                "full_ms": full_ms,
                "forecast_ms": forecast_ms,
                "forecast_step_ms": 1e3 * statistics.median(seconds[~is_full]),
                "full_step_ms": 1e3 * statistics.median(seconds[is_full]),
                "psnr_db": min(psnr_db(full.image, made.image), EQUAL_DB),
            }
        )
    return found


def _timed(generator: Generator, request: Request, cache: CacheConfig, *, full: bool) -> tuple[float, Generated]:
    """Run a whole request, prepare included; return its milliseconds and what it made."""
    prompt, seed = request
    start = time.perf_counter()
    made = generator.generate(prompt, seed=seed, cache=cache, every_step_full=full)
    return (time.perf_counter() - start) * 1e3, made


def _key(folded: Bundle, forecast: Forecast, rounds: int) -> str:
    return key_of(speed=1, bundle=identity(folded), forecast=dataclasses.asdict(forecast), rounds=rounds)


def machine() -> dict[str, str | int | float]:
    """Return what ran this: times mean nothing without it."""
    import onnxruntime

    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "onnxruntime": onnxruntime.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
