"""The bytes of the state: the paper's models at their published sizes, and a bundle's own."""

import dataclasses

import pytest

from taylorseer.errors import ModelError
from taylorseer.manifest import Manifest
from taylorseer.state_size import PUBLISHED, Geometry, state_bytes, state_bytes_of_bundle


def test_flux_at_order_1_remembers_3_8_gb() -> None:
    # 76 features of 4096 x 3072 bf16 numbers, two of each.
    assert state_bytes(PUBLISHED["flux"], order=1) == {"history": 3_825_205_248, "derivatives": 7_650_410_496}


def test_hunyuan_video_at_order_1_remembers_117_gb() -> None:
    assert round(state_bytes(PUBLISHED["hunyuan-video"], order=1)["history"] / 1e9) == 117


def test_each_order_row_and_byte_counts() -> None:
    geometry = Geometry(features=3, rows=5, width=7, size="small")
    assert state_bytes(geometry, order=0, itemsize=1)["history"] == 3 * 5 * 7
    assert state_bytes(geometry, order=4, itemsize=4, batch=2)["history"] == 5 * 3 * 5 * 7 * 4 * 2
    assert state_bytes(geometry, order=4, itemsize=4, batch=2)["derivatives"] == 2 * 5 * 3 * 5 * 7 * 4 * 2


def test_a_bundle_counts_its_own_rows_and_dtypes(manifest: Manifest) -> None:
    one_slot = 4 * 8 * 2 + 3 * 8 * 4  # a in float16, b in float32
    assert state_bytes_of_bundle(manifest) == {"history": 2 * one_slot, "derivatives": 4 * one_slot}
    assert state_bytes_of_bundle(manifest, batch=3)["history"] == 6 * one_slot
    assert state_bytes_of_bundle(dataclasses.replace(manifest, order=4))["history"] == 5 * one_slot


@pytest.mark.parametrize(("order", "batch"), [(-1, 1), (1, 0), (0, -2)])
def test_no_state_of_less_than_nothing(order: int, batch: int) -> None:
    with pytest.raises(ModelError, match=f"Order {order} and batch {batch} have no state: give an order >= 0"):
        state_bytes(PUBLISHED["dit"], order=order, batch=batch)


def test_no_batch_of_nothing_for_a_bundle_either(manifest: Manifest) -> None:
    with pytest.raises(ModelError, match="batch of 0 has no state: give 1 or more"):
        state_bytes_of_bundle(manifest, batch=0)
