"""How much the study does: all cells in an order, none twice, the quick ones among them."""

import pathlib

import pytest

from tools.quality_cells import Bench
from tools.quality_plan import FULL, QUICK, fidelity_cells, guard_cells, references, sample_cells
from tools.quality_systems import SYSTEMS, System

ALL = pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))


def bench_of(system: System, tmp_path: pathlib.Path) -> Bench:
    return Bench(model=system.model, bundle=tmp_path, identity="abc", pictures=tmp_path)


@ALL
def test_the_quick_cells_are_among_the_full_ones(system: System, tmp_path: pathlib.Path) -> None:
    bench = bench_of(system, tmp_path)
    for cells in (fidelity_cells, guard_cells):
        full, quick = ({cell.key for cell in cells(system, bench, scope)} for scope in (FULL, QUICK))
        assert quick < full
    many, few = ({cell.key for cell in sample_cells(system, bench, scope)} for scope in (FULL, QUICK))
    assert len(few) < len(many) and len(few - many) <= 3  # the last few samples may be cut off otherwise


@ALL
def test_no_cell_is_there_twice(system: System, tmp_path: pathlib.Path) -> None:
    bench = bench_of(system, tmp_path)
    for cells in (fidelity_cells(system, bench, FULL), sample_cells(system, bench, FULL)):
        assert len({cell.key for cell in cells}) == len(cells)


@ALL
def test_the_presets_order_is_in_the_quick_grid(system: System, tmp_path: pathlib.Path) -> None:
    cells = fidelity_cells(system, bench_of(system, tmp_path), QUICK)
    assert system.preset.order in {cell.cache.order for cell in cells}


@ALL
def test_every_way_to_forecast_gets_the_same_samples(system: System, tmp_path: pathlib.Path) -> None:
    cells = sample_cells(system, bench_of(system, tmp_path), FULL)
    requests = {name: [r for c in cells if c.name == name for r in c.requests] for name in {c.name for c in cells}}
    assert len(requests) == 3 and len({tuple(each) for each in requests.values()}) == 1
    assert len(requests["taylor"]) == len({seed for _, seed in requests["taylor"]}) == system.samples


def test_references_are_those_that_are_missing(tmp_path: pathlib.Path) -> None:
    system = SYSTEMS["flux-emoji"]
    bench = bench_of(system, tmp_path)
    cells = fidelity_cells(system, bench, QUICK)
    wanted = references(cells)
    assert len(wanted) == len(set(wanted)) == 4  # two requests, loops of 50 and of 20 steps
    wanted[0].path.parent.mkdir(parents=True)
    wanted[0].path.touch()
    assert references(cells) == wanted[1:]
    assert references(sample_cells(system, bench, QUICK)) == []
