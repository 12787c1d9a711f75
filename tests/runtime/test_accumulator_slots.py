"""The slots of a ring of accumulators: what is cleared and what a forecast reads, wherever a slot lies."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from taylorseer.manifest import FoldForm, FoldingSpec
from taylorseer.runtime.accumulator_slots import AccumulatorSlots
from taylorseer.runtime.memory import ACCUMULATORS, ALIGNMENT, STAGED, MemoryPlan, PlannedTensor
from taylorseer.runtime.onnxruntime_memory import OnnxRuntimeMemory, host_memory

ROWS, WIDTH = 3, 2

CHANNELS = FoldingSpec(
    accumulators=4,
    carried=2,
    shape=("batch", ROWS, WIDTH),
    dtype="float32",
    flush_group=1,
    form="channels",
    gates=None,
    stream="h",
    terms=(),
)
"""Windows of two, order 1: a ring of six slots."""

FOLDINGS = {
    "chains": dataclasses.replace(CHANNELS, form="chains"),
    "windows": CHANNELS,
    "windows of one": dataclasses.replace(CHANNELS, accumulators=6, carried=5),
}


def memory_of(folding: FoldingSpec, batch: int) -> OnnxRuntimeMemory:
    """The tensors of the ring with numbers that all differ, and the staged one."""
    stacked = folding.accumulators - folding.carried if folding.form == "channels" else 1
    ring = folding.accumulators + folding.carried
    rows = stacked * ROWS
    shapes = {f"{ACCUMULATORS}{number}": (batch, rows, WIDTH) for number in range(ring // stacked)}
    shapes[STAGED] = (batch, ROWS, WIDTH)
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        tensors[name] = PlannedTensor(name=name, shape=shape, dtype="float32", use="state", offset=offset)
        offset += -(-tensors[name].nbytes // ALIGNMENT) * ALIGNMENT
    memory = host_memory(MemoryPlan(
        tensors=tensors, steps=1, row_bytes=0, forecast_row_bytes=0, row_offset=0, table_offset=offset,
        scratch_offset=offset, scratch_bytes=0,
    ))  # fmt: skip
    for number, name in enumerate(shapes):
        memory[name].write(1000 * number + np.arange(batch * shapes[name][1] * WIDTH).reshape(shapes[name]))
    return memory


def expected(folding: FoldingSpec, memory: OnnxRuntimeMemory, slot: int) -> Any:
    """The slot's own rows, by its place in the ring."""
    stacked = folding.accumulators - folding.carried if folding.form == "channels" else 1
    whole = memory[f"{ACCUMULATORS}{slot // stacked}"].read()
    start = slot % stacked * ROWS
    return whole[:, start : start + ROWS]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", FOLDINGS)
def test_a_forecast_reads_every_slot(name: str, batch: int) -> None:
    """The slots of later windows as well: a longer run of forecasts at a lower order is made of them."""
    folding = FOLDINGS[name]
    memory = memory_of(folding, batch)
    slots = AccumulatorSlots(folding, memory, batch)
    seen = []
    for slot in range(folding.accumulators + folding.carried):
        for call in slots.staging(slot):
            call.run()
        read = slots.readable(slot).read()
        assert read.shape == (batch, ROWS, WIDTH)
        np.testing.assert_array_equal(read, expected(folding, memory, slot))
        seen.append(read[0, 0, 0])
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", FOLDINGS)
def test_with_one_row_of_the_batch_nothing_is_copied(name: str) -> None:
    folding = FOLDINGS[name]
    memory = memory_of(folding, 1)
    slots = AccumulatorSlots(folding, memory, 1)
    for slot in range(folding.accumulators + folding.carried):
        buffer = slots.readable(slot)
        assert slots.staging(slot) == []
        np.testing.assert_array_equal(buffer.read(), expected(folding, memory, slot))
        buffer.write(np.full((1, ROWS, WIDTH), -1, np.float32))  # on the same memory
        assert (expected(folding, memory, slot) == -1).all()


@pytest.mark.parametrize(("name", "batch"), [("chains", 2), ("windows of one", 2)])
def test_a_slot_that_is_a_tensor_is_never_copied(name: str, batch: int) -> None:
    memory = memory_of(FOLDINGS[name], batch)
    slots = AccumulatorSlots(FOLDINGS[name], memory, batch)
    assert slots.staging(3) == [] and slots.readable(3).address == memory[f"{ACCUMULATORS}3"].address


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", FOLDINGS)
def test_a_slot_is_cleared_and_no_other(name: str, batch: int) -> None:
    folding = FOLDINGS[name]
    forms: dict[FoldForm, int] = {"chains": 1, "channels": folding.accumulators - folding.carried}
    stacked = forms[folding.form]
    for slot in range(folding.accumulators + folding.carried):
        memory = memory_of(folding, batch)
        before = {
            n: memory[f"{ACCUMULATORS}{n}"].read() for n in range((folding.accumulators + folding.carried) // stacked)
        }
        AccumulatorSlots(folding, memory, batch).clear(slot)
        before[slot // stacked][:, slot % stacked * ROWS : (slot % stacked + 1) * ROWS] = 0
        for number, values in before.items():
            np.testing.assert_array_equal(memory[f"{ACCUMULATORS}{number}"].read(), values)
