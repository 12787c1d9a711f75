"""Runs the sections of the study that measure, and records what they find."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from tools.quality_cells import SampleCell
from tools.quality_distribution import check_classifier, measure_distribution
from tools.quality_plan import Cell, Setting, bench_of, fidelity_cells, guard_cells, references, sample_cells
from tools.quality_results import Record, Results
from tools.quality_sheets import make_sheet, sheet_cost
from tools.quality_speed import measure_speed, speed_cost
from tools.quality_tune import measure_tune, tune_cost
from tools.quality_workers import Progress, run_all

__all__ = ["run_sections"]


@dataclasses.dataclass(frozen=True)
class _Job:
    cost: float
    """Seconds on a quiet machine, about."""
    run: Callable[[Progress], None]


def run_sections(sections: Sequence[str], settings: Sequence[Setting], *, workers: int, progress: Progress) -> None:
    """Run every section for every system, section by section; names of sections that measure nothing are left out."""
    jobs = [job for section in sections for setting in settings for job in _jobs(section, setting, workers)]
    progress.plan(sum(job.cost for job in jobs))
    for job in jobs:
        job.run(progress)


def _jobs(section: str, setting: Setting, workers: int) -> Iterator[_Job]:
    system, scope = setting.system, setting.scope
    if section == "fidelity":
        yield _cells_job(setting, section, fidelity_cells(system, bench_of(setting, setting.wide), scope), workers)
    elif section == "guard":
        yield _cells_job(setting, section, guard_cells(system, bench_of(setting, setting.wide), scope), workers)
    elif section == "distribution":
        check_classifier(system)
        samples = sample_cells(system, bench_of(setting, setting.folded), scope)
        yield _cells_job(setting, "samples", samples, workers)
        yield _Job(5.0, lambda progress: measure_distribution(system, samples, setting.results, progress))
    elif section == "tune":
        yield _Job(tune_cost(system, scope), lambda progress: measure_tune(setting, progress))
    elif section == "speed":
        yield _Job(speed_cost(system, setting.folded, scope), lambda progress: measure_speed(setting, progress))
    elif section == "sheets":
        yield _Job(sheet_cost(system), lambda progress: make_sheet(setting, progress))


def _cells_job(setting: Setting, title: str, cells: Sequence[Cell], workers: int) -> _Job:
    """Return the job of the cells that have no result yet."""
    each, results = setting.system.step_ms / 1e3, setting.results

    def run(progress: Progress) -> None:
        work = _pending(cells, results)  # a section before this one may have left fewer

        def done(place: int, record: Record | None) -> None:
            if record is not None:
                results.add(record)
            progress.advance(work[place].full_steps * each, f"{setting.system.model}, {title}")

        run_all(work, workers=workers, on_done=done)

    return _Job(sum(cell.full_steps * each for cell in _pending(cells, results)), run)


def _pending(cells: Iterable[Cell], results: Results) -> list[Cell]:
    """Return the cells without a result, after the references that they need and that are not there."""
    pending = [cell for cell in cells if not _is_there(cell, results)]
    return [*references(pending), *pending]


def _is_there(cell: Cell, results: Results) -> bool:
    return cell.key in results and (not isinstance(cell, SampleCell) or cell.path.exists())
