"""Writes the page of the study from its results alone; every number and every finding on it is made here."""

import pathlib
from collections.abc import Iterator, Sequence

from taylorseer.runtime.whole_file import write_whole
from tools import quality_prose as prose
from tools.quality_page_fidelity import best_choices, every_cell, reuse_against_taylor, shorter_loops
from tools.quality_page_gpu import gpu_speed
from tools.quality_page_guard import amplification, guard_effects
from tools.quality_page_samples import distribution, largest, speed, speed_machine, tuning
from tools.quality_plots import draw_compute, draw_predictors, draw_speed
from tools.quality_results import Record, Results
from tools.quality_sheets import sheet_path
from tools.quality_systems import System
from tools.quality_tables import Measured

__all__ = ["write_page"]


def write_page(results: Results, systems: Sequence[System], page: pathlib.Path, *, quick: bool) -> None:
    """Write the page and its plots beside it.

    Args:
        results: of the study.
        systems: in the order of the page; a section leaves out those that it has no results of.
        page: the Markdown file.
        quick: whether to say that this is the quick form.
    """
    measured, timed = Measured(results.of_kind("fidelity")), _timed(results)
    draw_compute(page.parent / "quality-compute.png", measured, systems)
    draw_predictors(page.parent / "quality-predictors.png", measured, systems)
    if timed:
        draw_speed(page.parent / "quality-speed.png", measured, systems, timed)
    sections = {
        "## Reuse against Taylor at the same full steps": _fidelity(measured, systems),
        "## Interval, order and predictor": _choices(measured, systems),
        "### Loops of 28 and 20 steps": shorter_loops(measured, systems),
        "## The first window after the warm-up": _guard(measured, systems),
        "## Distribution": _introduced(prose.DISTRIBUTION, distribution(results.of_kind("distribution"), systems)),
        "## Speed": _speed(timed, systems, page.parent),
        "## Tuned schedules": _introduced(prose.TUNED, tuning(results.of_kind("tune"), systems)),
        "## Pictures": _introduced(prose.PICTURES, _sheets(page.parent, systems)),
    }
    parts = [prose.TITLE, prose.QUICK if quick else ""]
    for title, content in sections.items():
        parts += _introduced(title, content)
    write_whole(page, ("\n\n".join(part.strip() for part in parts if part.strip()) + "\n").encode())


def _timed(results: Results) -> list[Record]:
    found = largest(
        results.of_kind("speed"),
        lambda record: (record["model"], record["interval"], record["order"]),
        lambda record: len(record["rounds"]),
    )
    return list(found.values())


def _introduced(words: str, parts: Iterator[str]) -> Iterator[str]:
    """Yield ``words`` and then ``parts``; nothing where there are none."""
    first = next(parts, None)
    if first is not None:
        yield words
        yield first
        yield from parts


def _fidelity(measured: Measured, systems: Sequence[System]) -> Iterator[str]:
    counts = ", ".join(f"{system.title} {measured.requests(system)}" for system in systems)
    yield f"{prose.FIDELITY.strip()} Requests: {counts}."
    for system in systems:
        yield from reuse_against_taylor(measured, system)


def _choices(measured: Measured, systems: Sequence[System]) -> Iterator[str]:
    yield "![PSNR against the share of full steps, reuse and Taylor at orders 1 to 4](quality-compute.png)"
    yield "![PSNR against the share of full steps, predictors at order 2](quality-predictors.png)"
    yield prose.BEST
    for system in systems:
        yield from best_choices(measured, system)
    for system in systems:
        yield from every_cell(measured, system)


def _guard(measured: Measured, systems: Sequence[System]) -> Iterator[str]:
    yield prose.GUARD
    yield from amplification(systems[0])
    effects = guard_effects(measured, systems)
    yield from _introduced("What they do to the pictures, all three models with these warm-up steps:", effects)


def _speed(timed: Sequence[Record], systems: Sequence[System], folder: pathlib.Path) -> Iterator[str]:
    if timed:
        yield prose.SPEED
        yield f"{speed_machine(timed)}."
        yield "![PSNR against the measured speed-up](quality-speed.png)"
        yield from speed(timed, systems)
        yield from gpu_speed(folder, systems)


def _sheets(pictures: pathlib.Path, systems: Sequence[System]) -> Iterator[str]:
    for system in systems:
        path = sheet_path(pictures, system)
        if path.exists():
            yield f"![{system.title}: every step full, {system.preset.predictor}, reuse]({path.name})"
