"""How much the study does: the cells of every section, in full or in a quick form.

The cells of the quick form are among those of the full one, so what it has measured is not measured again.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from taylorseer.bundle import Bundle
from tools.quality_cells import Bench, FidelityCell, ReferenceCell, SampleCell
from tools.quality_grid import (
    GUARD_INTERVALS,
    INTERVALS,
    SAMPLE_STEPS,
    SHORT_LOOPS,
    Forecast,
    grid,
    guard_grid,
    sample_forecasts,
    short_grid,
)
from tools.quality_results import Results
from tools.quality_systems import HIGHEST_ORDER, Request, System, identity

__all__ = [
    "FULL",
    "QUICK",
    "Cell",
    "Scope",
    "Setting",
    "bench_of",
    "fidelity_cells",
    "guard_cells",
    "references",
    "sample_cells",
]

Cell = FidelityCell | ReferenceCell | SampleCell

_FIRST_SAMPLE_SEED = 20_000
_CHUNK = {False: 16, True: 4}
"""Samples of one cell, of images and of clips: a few seconds of work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope:
    """How much is done."""

    intervals: tuple[int, ...] = INTERVALS
    highest_order: int = HIGHEST_ORDER
    """Of the grid; the preset's order is in it anyway."""
    short_loops: tuple[int, ...] = SHORT_LOOPS
    guard_intervals: tuple[int, ...] = GUARD_INTERVALS
    requests: int | None = None
    """Of each system's grid; None: all."""
    guard_requests: int | None = None
    sampled: float = 1.0
    """Share of each system's samples."""
    rounds: int = 10
    """Of the timed requests."""
    speed_intervals: int | None = None
    """Most intervals that are timed beside the preset's own; None: all that the preset's bundle serves."""
    calibrated: int | None = None
    """Requests that ``tune`` looks at; None: all."""
    held_out: int | None = None
    search_seconds: float = 45.0
    """Of ``tune``'s local search."""


FULL = Scope()

QUICK = Scope(
    intervals=(2, 4, 6, 8, 10),
    highest_order=2,
    short_loops=(20,),
    guard_intervals=(6, 10),
    requests=2,
    guard_requests=4,
    sampled=5 / 64,
    rounds=2,
    speed_intervals=0,
    calibrated=2,
    held_out=3,
    search_seconds=0.0,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a section works with: one system, built, and where its results go."""

    system: System
    wide: Bundle
    """``history``, for order 4: serves the whole grid."""
    folded: Bundle
    """As the preset builds it."""
    scope: Scope
    results: Results
    output: pathlib.Path
    """Folder of bundles, references, samples and schedules."""
    pictures: pathlib.Path
    """Folder of the pictures that the page shows."""
    threads: int
    """Of ONNX Runtime in what runs alone."""
    again: bool
    """Whether speed and tune are measured again though there are results."""


def bench_of(setting: Setting, bundle: Bundle) -> Bench:
    """Return where the cells of a bundle are computed."""
    return Bench(
        model=setting.system.model,
        bundle=bundle.folder.resolve(),
        identity=identity(bundle),
        pictures=setting.output.resolve(),
    )


def fidelity_cells(system: System, bench: Bench, scope: Scope) -> list[FidelityCell]:
    """Return the wide grid and the reduced grids, request by request."""
    orders = sorted({*range(scope.highest_order + 1), system.preset.order})
    forecasts = grid(scope.intervals, orders)
    for steps in scope.short_loops:
        forecasts += short_grid(steps, scope.intervals)
    return _cells(system, bench, system.grid[: scope.requests], forecasts)


def guard_cells(system: System, bench: Bench, scope: Scope) -> list[FidelityCell]:
    """Return the guards' comparison, request by request."""
    return _cells(system, bench, system.guard[: scope.guard_requests], guard_grid(scope.guard_intervals))


def references(cells: Sequence[Cell]) -> list[ReferenceCell]:
    """Return the references of ``cells`` that are not there yet, each once; samples have none."""
    wanted = dict.fromkeys(cell.reference for cell in cells if isinstance(cell, FidelityCell))
    return [cell for cell in wanted if not cell.path.exists()]


def sample_cells(system: System, bench: Bench, scope: Scope) -> list[SampleCell]:
    """Return the samples of every way to forecast, few at a time; all ways get the same prompts and seeds."""
    cells = []
    for requests in _chunks(system, round(scope.sampled * system.samples)):
        for name, forecast in sample_forecasts(system).items():
            any_schedule = dataclasses.replace(system.preset, steps=SAMPLE_STEPS)
            cells.append(
                SampleCell(
                    bench=bench,
                    name=name,
                    requests=requests,
                    cache=forecast.cache(system) if forecast else any_schedule,
                    every_step_full=forecast is None,
                )
            )
    return cells


def _cells(
    system: System, bench: Bench, requests: tuple[Request, ...], forecasts: list[Forecast]
) -> list[FidelityCell]:
    cells = [
        FidelityCell(bench=bench, request=request, cache=forecast.cache(system))
        for request in requests
        for forecast in forecasts
    ]
    return list({cell.key: cell for cell in cells}.values())  # equal weights are computed once


def _chunks(system: System, count: int) -> Iterator[tuple[Request, ...]]:
    size = _CHUNK[system.is_video]
    requests = [(system.sampled[i % len(system.sampled)], _FIRST_SAMPLE_SEED + i) for i in range(count)]
    for first in range(0, count, size):
        yield tuple(requests[first : first + size])
