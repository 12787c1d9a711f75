"""ONNX Runtime's memory: one aligned block on the CPU, tensors that stay where they are, and what watches them."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from taylorseer.bundle import Bundle
from taylorseer.runtime.memory import ALIGNMENT, MemoryPlan, PlannedTensor, plan_memory
from taylorseer.runtime.onnxruntime_memory import (
    ArrayBuffer,
    DeviceBuffer,
    OnnxRuntimeMemory,
    host_memory,
)

MakeBuffer = Callable[[tuple[int, ...], str], Any]


def tensor(shape: tuple[int, ...], dtype: str = "float32") -> PlannedTensor:
    return PlannedTensor(name="a", shape=shape, dtype=dtype, use="latent", offset=0)


def array_buffer(shape: tuple[int, ...], dtype: str = "float32") -> ArrayBuffer:
    return ArrayBuffer(np.zeros(shape, dtype))


def device_buffer(shape: tuple[int, ...], dtype: str = "float32") -> DeviceBuffer:
    """An OrtValue, whose device is the CPU here: the code asks ONNX Runtime for everything."""
    return DeviceBuffer(onnxruntime, tensor(shape, dtype), "cpu")


both = pytest.mark.parametrize("make", [array_buffer, device_buffer])


@pytest.fixture
def plan(bundles: Callable[..., Bundle]) -> MemoryPlan:
    return plan_memory(bundles("dit-tiny").manifest, rows=4, steps=3)


# The block


def test_buffers_lie_where_the_plan_says(plan: MemoryPlan) -> None:
    memory = host_memory(plan)
    base = {memory[name].address - planned.offset for name, planned in plan.tensors.items()}
    assert len(base) == 1 and base.pop() % ALIGNMENT == 0
    for name, planned in plan.tensors.items():
        buffer: Any = memory[name]
        assert (buffer.shape, buffer.dtype, buffer.nbytes) == (planned.shape, planned.numpy_dtype, planned.nbytes)
        assert buffer.address % ALIGNMENT == 0 and buffer.host.flags.c_contiguous
        assert buffer.address == buffer.host.ctypes.data


def test_every_block_is_aligned_and_zeroed(plan: MemoryPlan) -> None:
    memories = [host_memory(plan) for _ in range(5)]
    for memory in memories:
        for name in plan.tensors:
            assert memory[name].address % ALIGNMENT == 0 and not memory[name].read().any()
    assert len({memory["probe"].address for memory in memories}) == 5


def test_buffers_do_not_write_into_each_other(plan: MemoryPlan) -> None:
    memory = host_memory(plan)
    for number, name in enumerate(plan.tensors):
        buffer: Any = memory[name]
        buffer.host.fill(number + 1)
    for number, name in enumerate(plan.tensors):
        assert (memory[name].read() == number + 1).all(), name


def test_bfloat16_is_held_as_its_bits() -> None:
    planned = tensor((2, 3), "bfloat16")
    plan = MemoryPlan(
        tensors={"a": planned},
        steps=1,
        row_bytes=0,
        forecast_row_bytes=0,
        row_offset=0,
        table_offset=256,
        scratch_offset=256,
        scratch_bytes=0,
    )
    buffer = host_memory(plan)["a"]
    assert (buffer.shape, buffer.dtype, buffer.nbytes) == ((2, 3), np.dtype("uint16"), 12)


# One buffer


@both
def test_a_buffer_is_zeroed_and_knows_its_size(make: MakeBuffer) -> None:
    buffer = make((2, 3), "float16")
    assert (buffer.shape, str(buffer.dtype), buffer.nbytes) == ((2, 3), "float16", 12)
    assert not buffer.read().any()
    device, number, dtype, shape, address = buffer.placement()
    assert (device, number, np.dtype(dtype), tuple(shape), address) == ("cpu", 0, "float16", (2, 3), buffer.address)


@both
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_what_is_written_is_read_and_stays_in_place(make: MakeBuffer, dtype: str) -> None:
    buffer = make((4, 3), dtype)
    address, values = buffer.address, np.arange(12).reshape(4, 3).astype(dtype)
    buffer.write(values)
    np.testing.assert_array_equal(buffer.read(), values)
    buffer.write(np.asfortranarray(values + 1))
    np.testing.assert_array_equal(buffer.read(), values + 1)
    buffer.clear()
    assert not buffer.read().any()
    assert buffer.address == address == buffer.placement()[4]


@both
@pytest.mark.parametrize("repeat", [1, 2, 3])
def test_repeated_values_follow_one_another(make: MakeBuffer, repeat: int) -> None:
    """Both images first conditional, then unconditional: 1 2 1 2, and not 1 1 2 2."""
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    buffer = make((2 * repeat, 3), "float32")
    buffer.write(values, repeat=repeat)
    np.testing.assert_array_equal(buffer.read(), np.concatenate([values] * repeat))


@both
def test_the_first_rows_are_read_and_exported(make: MakeBuffer) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    buffer = make((4, 3), "float32")
    buffer.write(values)
    for rows in (1, 2, 4):
        np.testing.assert_array_equal(buffer.read(rows), values[:rows])
        np.testing.assert_array_equal(np.from_dlpack(buffer.export(rows)), values[:rows])
    np.testing.assert_array_equal(buffer.read(), values)


@pytest.mark.parametrize(
    "make",
    [
        array_buffer,
        device_buffer,
    ],
)
def test_the_first_rows_are_a_buffer_on_the_same_memory(make: MakeBuffer) -> None:
    """As prepare's tables need them for the last chunk, which may have steps to spare."""
    buffer = make((4, 3), "float32")
    part = buffer.first(2)
    for values in (np.arange(12, dtype=np.float32).reshape(4, 3), np.ones((4, 3), np.float32)):
        buffer.write(values)
        assert (part.shape, part.nbytes, part.address) == ((2, 3), 24, buffer.address)
        np.testing.assert_array_equal(part.read(), values[:2])


def test_what_was_read_or_exported_is_a_copy() -> None:
    buffer = array_buffer((4, 3))
    buffer.write(np.ones((4, 3)))
    taken = [buffer.read(), buffer.read(2), np.from_dlpack(buffer.export(2))]
    buffer.clear()
    assert all((array == 1).all() for array in taken)


# Step inputs, probe, clock


def step_names(plan: MemoryPlan) -> list[str]:
    return [planned.name for planned in plan.tensors.values() if planned.use == "step"]


def test_step_inputs_hold_the_selected_step(plan: MemoryPlan) -> None:
    memory, random = host_memory(plan), np.random.default_rng(0)
    table = {name: random.standard_normal((3, *plan.tensors[name].shape), np.float32) for name in step_names(plan)}
    assert table.keys() == {"prepared.forecast.float32", "prepared.full.float32", "coefficients", "update_numbers"}
    inputs, addresses = memory.step_inputs(), {name: memory[name].address for name in plan.tensors}
    inputs.load(table)
    for step in (0, 1, 2, 1):
        inputs.select(step, full=True)
        for name, values in table.items():
            np.testing.assert_array_equal(memory[name].read(), values[step])
    assert addresses == {name: memory[name].address for name in plan.tensors}
    assert not any(memory[name].read().any() for name in plan.tensors if name not in table)


def test_another_table_replaces_the_first(plan: MemoryPlan) -> None:
    memory = host_memory(plan)
    inputs = memory.step_inputs()
    for value in (1, 2):
        inputs.load({name: np.full((3, *plan.tensors[name].shape), value, np.float32) for name in step_names(plan)})
        inputs.select(2, full=True)
        assert all((memory[name].read() == value).all() for name in step_names(plan))


def test_a_forecast_gets_what_it_reads_alone(plan: MemoryPlan) -> None:
    memory = host_memory(plan)
    inputs = memory.step_inputs()
    names = step_names(plan)
    inputs.load({name: np.arange(3).reshape(3, *[1] * len(plan.tensors[name].shape)) for name in names})
    inputs.select(1, full=True)
    inputs.select(2, full=False)
    assert {name for name in names if (memory[name].read() == 2).all()} == {*names} - {"prepared.full.float32"}
    assert (memory["prepared.full.float32"].read() == 1).all()


def test_rows_that_prepare_made_are_kept_from_their_step_on(plan: MemoryPlan) -> None:
    memory, name = host_memory(plan), "prepared.full.float32"
    inputs, shape = memory.step_inputs(), plan.tensors[name].shape
    made = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2 * shape[0], *shape[1:])
    inputs.store(name, 1, ArrayBuffer(made))
    made_by_step = made.reshape(2, *shape).copy()
    made.fill(-1)  # the next chunk is made in the same place
    for step, wanted in ((0, np.zeros(shape)), (1, made_by_step[0]), (2, made_by_step[1])):
        inputs.select(step, full=True)
        np.testing.assert_array_equal(memory[name].read(), wanted)


def test_gates_of_steps_to_come_are_gathered(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("dit-tiny", "folded").manifest
    plan = plan_memory(manifest, rows=4, steps=12)
    name, shape = "prepared.gates.float32", plan.tensors["prepared.gates.float32"].shape
    table = np.random.default_rng(0).standard_normal((12, *shape), np.float32)
    for memory in (host_memory(plan), OnnxRuntimeMemory(plan, lambda t: DeviceBuffer(onnxruntime, t, "cpu"))):
        inputs = memory.step_inputs()
        inputs.load({name: table})
        for steps in ((3, 4, 5, 7, 8, 9, 1, 1, 1), (1,) * 9):
            inputs.look_ahead("gates_ahead", name, steps)
            np.testing.assert_array_equal(memory["gates_ahead"].read(), table[list(steps)])
        assert not memory[name].read().any(), "a full step's own gates are selected, not gathered"


def test_the_probe_reads_what_the_call_left(plan: MemoryPlan) -> None:
    memory = host_memory(plan)
    probe = memory.probe("probe")
    assert probe.latest() == 0
    memory["probe"].write(np.array([np.nan], np.float32))
    probe.send()
    assert np.isnan(probe.latest()) and isinstance(probe.latest(), float)
    probe.reset()
    assert probe.latest() == 0


def test_a_closed_memory_has_no_buffers(plan: MemoryPlan) -> None:
    memory = OnnxRuntimeMemory(plan, lambda planned: DeviceBuffer(onnxruntime, planned, "cpu"))
    assert all(memory[name].shape == planned.shape for name, planned in plan.tensors.items())
    memory.close()
    for name in plan.tensors:
        with pytest.raises(KeyError):
            memory[name]


def test_the_clock_gives_the_time_between_marks_since_its_start(plan: MemoryPlan) -> None:
    clock = host_memory(plan).clock(3)
    for _ in range(2):  # the second start forgets the marks of the first loop
        before = time.perf_counter()
        clock.start()
        for _ in range(2):
            time.sleep(0.001)
            clock.mark()
        clock.wait()
        elapsed = time.perf_counter() - before
        for _ in range(2):  # asking twice gives the same
            seconds = clock.seconds()
            assert seconds.shape == (2,) and (seconds >= 0.001).all() and seconds.sum() <= elapsed
