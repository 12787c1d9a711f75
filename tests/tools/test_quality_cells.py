"""Cells: what they record, what they keep, and what makes two of them one."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.fidelity import psnr_db
from tools.quality_cells import Bench, FidelityCell, SampleCell, load_pictures
from tools.quality_systems import identity

CACHE = CacheConfig(steps=10, interval=4, order=1, warmup_steps=2)
REQUEST = ("red heart", 5)


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    return Bench(model="flux-emoji", bundle=tmp_path, identity="abc", pictures=tmp_path)


@pytest.fixture
def real(bundles: Callable[..., Bundle], tmp_path: pathlib.Path) -> Bench:
    bundle = bundles("flux-emoji")
    return Bench(model="flux-emoji", bundle=bundle.folder, identity=identity(bundle), pictures=tmp_path)


def test_schedules_of_equal_weights_are_one_cell(bench: Bench) -> None:
    cell = FidelityCell(bench=bench, request=REQUEST, cache=CACHE)
    assert cell.key == dataclasses.replace(cell, cache=dataclasses.replace(CACHE, predictor="newton")).key
    assert cell.key != dataclasses.replace(cell, cache=dataclasses.replace(CACHE, predictor="reuse")).key


@pytest.mark.parametrize(
    "change",
    [{"request": ("rocket", 5)}, {"request": ("red heart", 6)}, {"cache": dataclasses.replace(CACHE, interval=3)}],
)
def test_what_determines_a_result_is_in_its_key(bench: Bench, change: dict[str, object]) -> None:
    cell = FidelityCell(bench=bench, request=REQUEST, cache=CACHE)
    assert cell.key != dataclasses.replace(cell, **change).key  # type: ignore[arg-type]


def test_another_bundle_has_other_results_but_threads_change_none(bench: Bench) -> None:
    cell = FidelityCell(bench=bench, request=REQUEST, cache=CACHE)
    assert cell.key != dataclasses.replace(cell, bench=dataclasses.replace(bench, identity="abd")).key
    assert cell.key == dataclasses.replace(cell, bench=dataclasses.replace(bench, threads=2)).key


def test_all_cells_of_a_request_share_its_reference(bench: Bench) -> None:
    cell = FidelityCell(bench=bench, request=REQUEST, cache=CACHE)
    other = dataclasses.replace(cell, cache=dataclasses.replace(CACHE, interval=3))
    assert cell.reference == other.reference and cell.key != other.key
    assert cell.full_steps == 4 and cell.reference.full_steps == 10


def test_a_cell_records_how_close_its_picture_comes(real: Bench) -> None:
    cell = FidelityCell(bench=real, request=REQUEST, cache=CACHE)
    record = cell.run()
    reference = load_pictures(cell.reference.path)
    sample = SampleCell(bench=real, name="taylor", requests=(REQUEST,), cache=CACHE, every_step_full=False)
    assert sample.run()["count"] == 1
    (made,) = load_pictures(sample.path)
    assert record["psnr_db"] == pytest.approx(psnr_db(reference, made)) and record["full_steps"] == 4
    assert record["temporal_difference"] is None
    full = dataclasses.replace(sample, every_step_full=True)
    full.run()
    np.testing.assert_array_equal(load_pictures(full.path)[0], reference)
