"""The bytes of the state: the paper's models at their published sizes, a bundle's own, and every layout's traffic."""

import dataclasses
import itertools
import math

import pytest

from taylorseer.accumulators import Accumulators, accumulators_of, place_accumulators
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import ModelError
from taylorseer.manifest import FeatureSpec, FoldingSpec, Manifest
from taylorseer.state_size import (
    PUBLISHED,
    Fold,
    Geometry,
    layout_sizes,
    layout_sizes_of_bundle,
    state_bytes,
    state_bytes_of_bundle,
)

SMALL = Geometry(features=7, rows=5, width=3, size="small")

FOLD = Fold(accumulators=Accumulators(count=10, carried=5))


def test_flux_at_order_1_remembers_3_8_gb() -> None:
    # 76 features of 4096 x 3072 bf16 numbers, two of each.
    assert state_bytes(PUBLISHED["flux"], order=1) == {"history": 3_825_205_248, "derivatives": 7_650_410_496}


def test_hunyuan_video_at_order_1_remembers_117_gb() -> None:
    assert round(state_bytes(PUBLISHED["hunyuan-video"], order=1)["history"] / 1e9) == 117


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 6.0e9), ("float32", 12.0e9)])
def test_hunyuan_video_folded_fits_a_gpu(dtype: str, most: float) -> None:
    """Interval 5 at order 1: 2 * 4 accumulators of 118800 x 3072 numbers."""
    fold = Fold(accumulators=accumulators_of(PRESETS["hunyuan-video"].schedule(), 1), dtype=dtype)
    size = state_bytes(PUBLISHED["hunyuan-video"], order=1, fold=fold)["folded"]
    assert size == 8 * 118800 * 3072 * (2 if dtype == "bfloat16" else 4) <= most


def test_each_order_row_and_byte_counts() -> None:
    geometry = Geometry(features=3, rows=5, width=7, size="small")
    assert state_bytes(geometry, order=0, itemsize=1)["history"] == 3 * 5 * 7
    assert state_bytes(geometry, order=4, itemsize=4, batch=2)["history"] == 5 * 3 * 5 * 7 * 4 * 2
    assert state_bytes(geometry, order=4, itemsize=4, batch=2)["derivatives"] == 2 * 5 * 3 * 5 * 7 * 4 * 2


CONFIGURATIONS = [
    (CacheConfig(steps=31, interval=interval, order=order, warmup_steps=warmup), dtype, batch, features)
    for interval, order, warmup, dtype, batch, features in itertools.product(
        (2, 3, 4, 5, 6, 8), (0, 1, 2, 3), (1, 3), ("float32", "bfloat16"), (1, 2), (1, 13)
    )
]


@pytest.mark.parametrize("number", range(0, len(CONFIGURATIONS), 32))
def test_folded_bytes_are_those_of_the_accumulators_that_a_loop_has_alive(number: int) -> None:
    """Counted by walking the loop: those written at once outlive a step, those read beside them are carried."""
    for cache, dtype, batch, features in CONFIGURATIONS[number : number + 32]:
        built = accumulators_of(cache.schedule(), cache.order)
        geometry = dataclasses.replace(SMALL, features=features)
        size = layout_sizes(
            geometry, order=cache.order, fold=Fold(accumulators=built, dtype=dtype), batch=batch
        )["folded"]  # fmt: skip
        one = SMALL.rows * SMALL.width * batch * (4 if dtype == "float32" else 2)
        placements = place_accumulators(cache.schedule(), cache.weights(), built)
        written = {(p.base + built.carried + i) % built.ring for p in placements.values() for i in range(built.count)}
        at_once = {len(placement.steps) for placement in placements.values()}
        assert {size.state} == {count * one for count in at_once}
        assert size.state == (cache.order + 1) * (cache.interval - 1) * one
        assert size.carry == cache.order * (cache.interval - 1) * one
        assert len(written) * one <= size.state + size.carry
        assert size.flush == min(features, 12) * SMALL.rows * SMALL.width * 2 * batch


def test_there_are_enough_configurations() -> None:
    assert len(CONFIGURATIONS) >= 200


def test_a_flush_group_is_what_fits_2_gib_and_12_features_at_most() -> None:
    one = 118800 * 3072 * 2
    assert layout_sizes(PUBLISHED["hunyuan-video"], order=1, fold=FOLD)["folded"].flush == 2 * one <= 2 * 2**30
    assert layout_sizes(PUBLISHED["flux"], order=1, fold=FOLD)["folded"].flush == 12 * 4096 * 3072 * 2
    chosen = dataclasses.replace(FOLD, flush_group=3)
    assert layout_sizes(PUBLISHED["flux"], order=1, fold=chosen)["folded"].flush == 3 * 4096 * 3072 * 2


@pytest.mark.parametrize("group", [0, -1])
def test_no_flush_group_of_nothing(group: int) -> None:
    with pytest.raises(ModelError, match=f"A flush group of {group} features adds nothing: give 1 or more"):
        layout_sizes(SMALL, order=1, fold=dataclasses.replace(FOLD, flush_group=group))


def test_bytes_that_move_by_hand() -> None:
    """7 features of 5 x 3 numbers in bf16, 30 bytes each; accumulators of 60 bytes, 10 written and 5 carried."""
    sizes = layout_sizes(SMALL, order=1, fold=dataclasses.replace(FOLD, flush_group=3))
    assert (sizes["history"].forecast_moves, sizes["history"].full_moves) == (2 * 7 * 30, 7 * 30)
    assert (sizes["derivatives"].forecast_moves, sizes["derivatives"].full_moves) == (2 * 7 * 30, 3 * 7 * 30)
    assert sizes["folded"].forecast_moves == 60
    assert sizes["folded"].full_moves == 7 * 30 + 15 * 60 + 2 * (10 + 10) * 60  # two groups after the first


def test_a_bundle_counts_its_own_rows_and_dtypes(manifest: Manifest) -> None:
    one_slot = 4 * 8 * 2 + 3 * 8 * 4  # a in float16, b in float32: nothing that one accumulator could sum
    assert state_bytes_of_bundle(manifest) == {"history": 2 * one_slot, "derivatives": 4 * one_slot}
    assert state_bytes_of_bundle(manifest, batch=3)["history"] == 6 * one_slot
    assert state_bytes_of_bundle(dataclasses.replace(manifest, order=4))["history"] == 5 * one_slot


def alike(manifest: Manifest) -> Manifest:
    """The manifest with two features of one shape."""
    features = tuple(FeatureSpec(name=name, shape=("batch", 4, 8), dtype="float16") for name in "ab")
    return dataclasses.replace(manifest, features=features)


def test_a_bundle_of_another_layout_predicts_the_folded_one(manifest: Manifest) -> None:
    """Preset flux: five forecasts in a row at most."""
    assert state_bytes_of_bundle(alike(manifest))["folded"] == 2 * 5 * 4 * 8 * 4
    assert state_bytes_of_bundle(alike(manifest), batch=3)["folded"] == 3 * 2 * 5 * 4 * 8 * 4
    halves = layout_sizes_of_bundle(alike(manifest), dtype="bfloat16", flush_group=1)["folded"]
    assert (halves.state, halves.carry, halves.flush) == (2 * 5 * 4 * 8 * 2, 5 * 4 * 8 * 2, 4 * 8 * 2)


def test_a_folded_bundle_is_as_it_was_built(manifest: Manifest) -> None:
    folding = FoldingSpec(
        accumulators=6, carried=4, shape=("batch", 4, 8), dtype="bfloat16", flush_group=2, form="chains", gates=None,
        stream="stream", terms=(),
    )  # fmt: skip
    size = layout_sizes_of_bundle(dataclasses.replace(alike(manifest), layout="folded", folding=folding))["folded"]
    one = math.prod((4, 8, 2))
    assert (size.state, size.carry, size.flush, size.forecast_moves) == (6 * one, 4 * one, 2 * one, one)


@pytest.mark.parametrize(("order", "batch"), [(-1, 1), (1, 0), (0, -2)])
def test_no_state_of_less_than_nothing(order: int, batch: int) -> None:
    with pytest.raises(ModelError, match=f"Order {order} and batch {batch} have no state: give an order >= 0"):
        state_bytes(PUBLISHED["dit"], order=order, batch=batch)


def test_no_batch_of_nothing_for_a_bundle_either(manifest: Manifest) -> None:
    with pytest.raises(ModelError, match="batch of 0 has no state: give 1 or more"):
        state_bytes_of_bundle(manifest, batch=0)
