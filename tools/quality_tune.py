"""What ``taylorseer tune`` finds for each system at 10 of 50 full steps, and what that gains on other requests."""

import dataclasses
import json
import pathlib

from taylorseer.runtime.generation import Generator
from taylorseer.runtime.held_out import Gain, measure_gain
from taylorseer.runtime.tuning import Tuning, tune
from taylorseer.runtime.whole_file import write_whole
from taylorseer.schedule_file import ScheduleFile
from tools.quality_grid import STEPS
from tools.quality_plan import Scope, Setting
from tools.quality_results import Record, key_of
from tools.quality_systems import Request, System, identity
from tools.quality_workers import Progress

__all__ = ["BUDGET", "measure_tune", "schedule_path", "tune_cost"]

BUDGET = 10
"""Full steps."""

_CANDIDATES = 25
"""About as many schedules ``tune`` tries before it moves full steps."""


def schedule_path(output: pathlib.Path, system: System) -> pathlib.Path:
    """Return where the schedule file of a system is written."""
    return output / "schedules" / f"{system.model}.json"


def tune_cost(system: System, scope: Scope) -> float:
    """Return about how many seconds it takes."""
    return sum(_phases(system, scope).values())


def _phases(system: System, scope: Scope) -> dict[str, float]:
    """Return about how many seconds each part takes, by the first word of what the progress is told, in their order."""
    calibrated, held_out = len(system.calibrated[: scope.calibrated]), len(system.held_out[: scope.held_out])
    step = system.step_ms / 1e3
    return {
        "recording": calibrated * STEPS * step,
        "trying": calibrated * _CANDIDATES * BUDGET * step,
        "moving": scope.search_seconds,
        "measuring": held_out * (STEPS + 2 * BUDGET) * step,
    }


def _spent(phases: dict[str, float], what: str, fraction: float) -> float:
    """Return the seconds, as estimated, that are behind at ``fraction`` of the phase that ``what`` begins with."""
    names = list(phases)
    place = names.index(what.split()[0])
    return sum(phases[name] for name in names[:place]) + fraction * phases[names[place]]


def measure_tune(setting: Setting, progress: Progress) -> None:
    """Tune, measure on what was held out, record the gain and write the schedule file; what was done is left.

    The bundle is the ``history`` one with the model's preset as its default: it serves placements of any kind, where a
    folded one serves runs of forecasts up to those that it was built for.
    """
    system, scope = setting.system, setting.scope
    calibrated, held_out = system.calibrated[: scope.calibrated], system.held_out[: scope.held_out]
    asked = {"budget": BUDGET, "calibrated": calibrated, "held_out": held_out, "seconds": scope.search_seconds}
    key = key_of(tune=1, bundle=identity(setting.wide), **asked)
    if setting.again or key not in setting.results:
        found, gain = _tuned(setting, calibrated, held_out, progress)
        file = ScheduleFile(
            model=system.model,
            cache=found.best.cache,
            calibration={"requests": [list(request) for request in calibrated], "chosen": found.best.name},
            measured={"requests": [list(request) for request in held_out], **gain.to_json()},
        )
        write_whole(schedule_path(setting.output, system), (json.dumps(file.to_json(), indent=1) + "\n").encode())
        setting.results.add({"kind": "tune", "key": key, **_summary(system, found, gain, len(calibrated))})
    progress.advance(tune_cost(system, scope), f"{system.model}, tune")


def _tuned(
    setting: Setting, calibrated: tuple[Request, ...], held_out: tuple[Request, ...], progress: Progress
) -> tuple[Tuning, Gain]:
    system, bundle = setting.system, setting.wide
    phases = _phases(system, setting.scope)

    def show(what: str, fraction: float) -> None:
        progress.show(f"{system.model}, tune: {what}", within=_spent(phases, what, fraction))

    preset = dataclasses.replace(system.preset, steps=STEPS)
    manifest = dataclasses.replace(bundle.manifest, cache=preset.to_json())
    with Generator(dataclasses.replace(bundle, manifest=manifest), threads=setting.threads) as generator:
        seconds = setting.scope.search_seconds
        found = tune(generator, calibrated, BUDGET, search_seconds=seconds, on_progress=show)
        gain = measure_gain(
            generator,
            held_out,
            preset=found.preset.cache,
            tuned=found.best.cache,
            on_request=lambda done: show("measuring on held-out requests", done / len(held_out)),
        )
    return found, gain


def _summary(system: System, found: Tuning, gain: Gain, calibrated: int) -> Record:
    return {
        "model": system.model,
        "budget": BUDGET,
        "calibrated": calibrated,
        "chosen": found.best.name,
        "tried": len(found.tried),
        "moves": found.moves,
        "preset": found.preset.cache.to_json(),
        "best": found.best.cache.to_json(),
        **gain.to_json(),
    }
