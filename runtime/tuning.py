"""The schedule of a number of full steps that comes closest to every step full, found on a few requests.

Recorded predictions say where full steps matter and what weights forecast best (:mod:`placement_search`,
:mod:`forecast_fit`), as if no forecast led a later one astray.  Whether that holds, real loops decide: the candidates
are run on the calibration requests, and the one with the best mean PSNR goes on to a local search.  The mean, for of a
few requests the median is a poor witness: it may rise where most of them fall.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.forecast_table import ForecastTable
from taylorseer.runtime.calibration import Recording, step_moves
from taylorseer.runtime.forecast_fit import ForecastFit
from taylorseer.runtime.generation import Generator, sampler_of
from taylorseer.runtime.placement_search import best_placement, check_budget
from taylorseer.runtime.served_schedules import is_served, longest_run, preset_at_budget
from taylorseer.runtime.step_plan import BuiltState
from taylorseer.runtime.trial import Candidate, Progress, Request, Trial

__all__ = ["Tuning", "tune"]

_RIDGES = (0.1, None)
"""How hard fitted weights are drawn to Taylor's; None: Taylor's own."""

_POWERS = (1.0, 0.5)
"""Of what an error moves the result by, in the search for placements.  1 is right if later predictions stay as they
are; where they amplify early errors, as under classifier-free guidance, the truth is flatter."""

_HIGHEST_ORDER = 2
"""Of a tuned schedule.  Higher ones multiply noise, and placements to try grow by a factor with each."""

_SPREAD = 2
"""No run of forecasts is longer than so many times the run of evenly spread full steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was found."""

    preset: Candidate
    """The bundle's preset at this budget."""
    best: Candidate
    """The best mean on the calibration requests, of those whose median is not below the preset's; the preset itself
    where nothing was better."""
    tried: tuple[Candidate, ...]
    """Everything before the local search."""
    moves: int
    """Placements that the local search tried."""
    longest_run: int
    """Forecasts in a row that the bundle serves, and the search allows, at order 1 or, if it serves that, 2."""

    @property
    def is_cramped(self) -> bool:
        """Whether the budget reaches the end of the loop with less than half a step to spare for each full step."""
        budget, steps = len(self.preset.cache.schedule().full_steps), self.preset.cache.steps
        return budget * (2 * self.longest_run + 1) < 2 * steps


def tune(
    generator: Generator,
    requests: Sequence[Request],
    budget: int,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    search_seconds: float = 120.0,
    on_progress: Progress = lambda what, fraction: None,
) -> Tuning:
    """Find the best schedule with ``budget`` full steps that the bundle serves as it was built.

    Args:
        generator: a loaded bundle.
        requests: to calibrate on, of two prompts or more.
        budget: number of full steps.
        steps: of the loop; None: the bundle's default.
        guidance: None: the bundle's default.
        search_seconds: the local search ends after so long.
        on_progress: told what is being done, and the share of it that is behind.

    Raises:
        InputError: fewer than two prompts.
        ScheduleError: a budget that the bundle cannot serve.
    """
    if len({prompt for prompt, _ in requests}) < 2:
        raise InputError("One prompt says nothing about others: calibrate on two or more.")
    default = CacheConfig.from_json(generator.manifest.cache)
    default = dataclasses.replace(default, steps=steps or default.steps)
    search = _Search(generator, budget, default)
    preset = preset_at_budget(default, budget, search.built)
    trial = Trial(generator, requests, default, guidance, on_progress)
    fits = {ridge: _fit(generator, trial.recordings, default.steps, ridge) for ridge in search.ridges}
    tried = [trial.run("preset", preset)]
    candidates = dict(search.candidates(preset, fits))
    for number, (name, found) in enumerate(candidates.items()):
        on_progress(f"trying {name}", number / len(candidates))
        tried.append(trial.run(name, found.cache))
    # The first of equals is the preset, which stays as well where nothing is better by the median too.
    best, moved = max((c for c in tried if c.median >= tried[0].median), key=lambda candidate: candidate.mean), 0
    if best.name in candidates:
        best, moved = _improved(best, candidates[best.name], fits, search, trial, search_seconds, on_progress)
    return Tuning(preset=tried[0], best=best, tried=tuple(tried), moves=moved, longest_run=search.longest_run)


@dataclasses.dataclass(frozen=True)
class _Found:
    """A placement, and how its weights were made."""

    full_steps: tuple[int, ...]
    order: int
    ridge: float | None
    cache: CacheConfig


class _Search:
    """Placements and weights within what the bundle serves."""

    def __init__(self, generator: Generator, budget: int, default: CacheConfig) -> None:
        self.built = BuiltState.of_bundle(generator.manifest)
        self.steps, self.budget = default.steps, budget
        # Derivatives are the paper's own, so there weights cannot be given one by one.
        self.ridges: tuple[float | None, ...] = (None,) if self.built.layout == "derivatives" else _RIDGES
        runs = {order: longest_run(self.built, self.steps, order) for order in range(generator.manifest.order + 1)}
        check_budget(self.steps, budget, max(runs.values()))
        spread = _SPREAD * -(-self.steps // budget)
        self.runs = {order: min(run, spread) for order, run in runs.items() if run and order <= _HIGHEST_ORDER}

    @property
    def longest_run(self) -> int:
        """Of the orders that extrapolate; 0 where none does."""
        return max((run for order, run in self.runs.items() if order), default=0)

    def candidates(self, preset: CacheConfig, fits: dict[float | None, ForecastFit]) -> Iterator[tuple[str, _Found]]:
        """Yield what is worth trying, by name."""
        even = tuple(i * self.steps // self.budget for i in range(self.budget))
        for order, run in self.runs.items():
            placements = {preset.schedule().full_steps: "preset's placement", even: "even placement"}
            for full_steps in self._searched(order, run, fits):
                placements.setdefault(full_steps, f"searched placement {len(placements) - 1}")
            weighed = fits if order else {None: fits[None]}  # order 0 has one weight, and that is 1
            for full_steps, name in placements.items():
                for ridge, fit in weighed.items():
                    found = self.found(full_steps, order, ridge, fit)
                    if is_served(found.cache, self.built):
                        yield f"{name}, {_weights_name(ridge)}, order {order}", found

    def _searched(self, order: int, run: int, fits: dict[float | None, ForecastFit]) -> Iterator[tuple[int, ...]]:
        """Yield the placements that are cheapest by what was recorded."""
        if self.budget * (run + 1) < self.steps:
            return
        for fit in fits.values():
            for power in _POWERS:
                cost = fit.flattened(power).error
                yield best_placement(self.steps, self.budget, order=order, longest_run=run, cost=cost)

    def found(self, full_steps: tuple[int, ...], order: int, ridge: float | None, fit: ForecastFit) -> _Found:
        """Return a placement with its weights."""
        cache = CacheConfig(steps=self.steps, order=order, full_steps=full_steps)
        if ridge is not None:
            table = ForecastTable.from_weights(fit.weights(full_steps, order))
            cache = dataclasses.replace(cache, predictor="table", table=table)
        return _Found(full_steps, order, ridge, cache)


def _fit(generator: Generator, recordings: Sequence[Recording], steps: int, ridge: float | None) -> ForecastFit:
    """Fit to all recordings, each with the same say however large its predictions are."""
    products = sum(recording.products / np.trace(recording.products) for recording in recordings)
    return ForecastFit(np.asarray(products), step_moves(sampler_of(generator.manifest, steps)), ridge)


def _improved(
    best: Candidate,
    found: _Found,
    fits: dict[float | None, ForecastFit],
    search: _Search,
    trial: Trial,
    seconds: float,
    on_progress: Progress,
) -> tuple[Candidate, int]:
    """Move one full step at a time by one or two, as long as that is clearly better and time is left."""
    start, tried, name = time.monotonic(), {found.full_steps}, best.name
    pending = list(_neighbors(found.full_steps, search.steps))
    while pending and (spent := time.monotonic() - start) < seconds:
        full_steps = pending.pop(0)
        if full_steps in tried:
            continue
        tried.add(full_steps)
        on_progress("moving full steps", spent / seconds)
        moved = search.found(full_steps, found.order, found.ridge, fits[found.ridge])
        if not is_served(moved.cache, search.built):
            continue
        candidate = trial.run(f"{name}, moved", moved.cache)
        if candidate.is_clearly_better_than(best) and candidate.median >= best.median:
            best, found = candidate, moved
            pending = list(_neighbors(found.full_steps, search.steps))
    return best, len(tried) - 1


def _neighbors(full_steps: tuple[int, ...], steps: int) -> Iterator[tuple[int, ...]]:
    """Yield the placements with one full step, not the first, moved by one or two steps."""
    for by in (-1, 1, -2, 2):
        for index in range(1, len(full_steps)):
            moved = (*full_steps[:index], full_steps[index] + by, *full_steps[index + 1 :])
            if all(a < b for a, b in zip(moved, (*moved[1:], steps), strict=True)):
                yield moved


def _weights_name(ridge: float | None) -> str:
    return "weights of taylor" if ridge is None else "fitted weights"
