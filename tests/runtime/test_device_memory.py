"""A session's memory on a GPU: one block, copies in the order of the stream, everything freed once."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from taylorseer.cuda import Cuda
from taylorseer.errors import DeviceError, MemoryPlanError
from taylorseer.runtime.device_memory import DeviceMemory
from taylorseer.runtime.device_tensor import DeviceTensor
from taylorseer.runtime.exchange import DeviceArray
from taylorseer.runtime.memory import MemoryPlan, PlannedTensor
from tests.runtime.null_device import INVALID, OUT_OF_MEMORY, NullDevice

FLOAT = np.dtype(np.float32)


def planned(name: str, shape: tuple[int, ...], use: Any, offset: int) -> PlannedTensor:
    return PlannedTensor(name=name, shape=shape, dtype="float32", use=use, offset=offset)


PLAN = MemoryPlan(
    tensors={
        "timestep": planned("timestep", (2,), "step", 0),
        "scales": planned("scales", (1, 3), "step", 256),
        "latent": planned("latent", (4, 3), "latent", 512),
        "probe": planned("probe", (1,), "probe", 768),
    },
    steps=5,
    row_bytes=512,
    forecast_row_bytes=256,
    row_offset=0,
    table_offset=1024,
    scratch_offset=1024 + 5 * 512,
    scratch_bytes=256,
)


@pytest.fixture(params=["eager", "lazy"])
def device(request: pytest.FixtureRequest) -> Iterator[NullDevice]:
    """One that works at once, and one that does nothing before it is waited for."""
    device = NullDevice(lazy=request.param == "lazy")
    yield device
    assert device.lost or (device.misuses, device.leaks()) == ([], {})


@pytest.fixture
def memory(device: NullDevice) -> Iterator[DeviceMemory]:
    memory = DeviceMemory(Cuda(device), PLAN)
    yield memory
    memory.close()


def test_tensors_lie_where_the_plan_says_and_are_zero(memory: DeviceMemory, device: NullDevice) -> None:
    assert memory.address % 256 == 0 and device.used_bytes == PLAN.total_bytes
    assert memory.scratch == memory.address + PLAN.scratch_offset
    for name, tensor in PLAN.tensors.items():
        buffer = memory[name]
        assert buffer.address == memory.address + tensor.offset
        assert (buffer.shape, buffer.dtype, buffer.nbytes) == (tensor.shape, FLOAT, tensor.nbytes)
        np.testing.assert_array_equal(buffer.read(), np.zeros(tensor.shape, np.float32))
    memory.synchronize()
    assert not device.content(memory.address, PLAN.total_bytes).any()


def test_what_was_written_is_read(memory: DeviceMemory) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = values.copy()
    memory["latent"].write(values)
    values[...] = -1  # the caller's again as soon as the call returns
    np.testing.assert_array_equal(memory["latent"].read(), expected)
    np.testing.assert_array_equal(memory["latent"].read(2), expected[:2])
    memory["latent"].clear()
    assert not memory["latent"].read().any() and not memory["probe"].read().any()


def test_arrays_that_are_not_contiguous_are_written_by_value(memory: DeviceMemory) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    memory["latent"].write(values)
    np.testing.assert_array_equal(memory["latent"].read(), values)


def test_repeats_stand_one_after_another(memory: DeviceMemory) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    memory["latent"].write(values, repeat=2)
    np.testing.assert_array_equal(memory["latent"].read(), np.concatenate([values, values]))


@pytest.mark.parametrize("stream", [None, 1])
def test_arrays_on_the_device_are_copied_there(memory: DeviceMemory, device: NullDevice, stream: int | None) -> None:
    """A stream in it: its content is ready there, and only later work of that stream may change it."""
    (_, address) = device.cudaMalloc(24)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    kind = device.cudaMemcpyKind.cudaMemcpyHostToDevice
    if stream is None:
        device.cudaMemcpy(address, values.ctypes.data, 24, kind)
    else:
        device.cudaMemcpyAsync(address, values.ctypes.data, 24, kind, stream)
    memory["latent"].write(DeviceArray(address, (2, 3), FLOAT, stream, None), repeat=2)
    device.cudaFree(address)  # the owner lets go of it as soon as the call has returned
    np.testing.assert_array_equal(memory["latent"].read(), np.concatenate([values, values]))


def test_an_export_outlives_the_memory(memory: DeviceMemory) -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    memory["latent"].write(values)
    tensor = memory["latent"].export(2)
    memory["latent"].clear()
    memory.close()
    assert isinstance(tensor, DeviceTensor)
    np.testing.assert_array_equal(tensor.numpy(), values[:2])


# Step inputs, probe and clock


def test_each_step_finds_its_own_row(memory: DeviceMemory) -> None:
    table = {
        "timestep": np.arange(8, dtype=np.float32).reshape(4, 2),
        "scales": np.arange(100, 112, dtype=np.float32).reshape(4, 1, 3),
    }
    memory["latent"].write(np.ones((4, 3), np.float32))
    inputs = memory.step_inputs()
    inputs.load(table)
    for step in (0, 3, 1):
        inputs.select(step, full=True)
        for name, values in table.items():
            np.testing.assert_array_equal(memory[name].read(), values[step])
    inputs.load({"timestep": table["timestep"] + 1})  # of one input alone
    inputs.select(2, full=True)
    np.testing.assert_array_equal(memory["timestep"].read(), table["timestep"][2] + 1)
    np.testing.assert_array_equal(memory["scales"].read(), table["scales"][2])
    assert (memory["latent"].read() == 1).all()


def test_a_forecast_step_copies_what_it_reads_alone(memory: DeviceMemory) -> None:
    inputs = memory.step_inputs()
    inputs.load({"timestep": np.ones((5, 2), np.float32), "scales": np.ones((5, 1, 3), np.float32)})
    inputs.select(1, full=False)
    assert (memory["timestep"].read() == 1).all() and not memory["scales"].read().any()


def test_what_lies_on_the_device_is_stored_from_a_step_on(memory: DeviceMemory) -> None:
    """As prepare leaves it: the rows of consecutive steps, one after another."""
    inputs = memory.step_inputs()
    inputs.load({"scales": np.zeros((5, 1, 3), np.float32)})
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    memory["latent"].write(values)
    inputs.store("scales", 1, memory["latent"].first(2))
    for step, expected in enumerate([np.zeros(3), values[0], values[1], np.zeros(3)]):
        inputs.select(step, full=True)
        np.testing.assert_array_equal(memory["scales"].read()[0], expected)


@pytest.mark.parametrize(
    ("steps", "copies"),
    [((1, 2, 3, 4), 1), ((0, 1, 3, 4), 2), ((2, 2, 2, 2), 4), ((4, 3, 2, 1), 4), ((0, 2, 3, 1), 3), ((3,), 1)],
)
def test_rows_of_steps_to_come_are_gathered_run_by_run(
    memory: DeviceMemory, device: NullDevice, steps: tuple[int, ...], copies: int
) -> None:
    inputs = memory.step_inputs()
    table = np.arange(15, dtype=np.float32).reshape(5, 1, 3)
    inputs.load({"scales": table, "timestep": np.ones((5, 2), np.float32)})
    memory["latent"].write(np.full((4, 3), -1, np.float32))
    with device.counting() as counter:
        inputs.look_ahead("latent", "scales", steps)
    assert dict(counter) == {"cudaMemcpy2DAsync": copies}
    expected = np.full((4, 3), -1, np.float32)
    expected[: len(steps)] = table[list(steps), 0]
    np.testing.assert_array_equal(memory["latent"].read(), expected)
    assert not memory["scales"].read().any() and not memory["probe"].read().any()


def test_the_first_rows_are_a_buffer_on_the_same_memory(memory: DeviceMemory) -> None:
    part = memory["latent"].first(2)
    assert (part.address, part.shape, part.nbytes) == (memory["latent"].address, (2, 3), 24)
    part.write(np.ones((2, 3), np.float32))
    assert memory["latent"].read().sum() == 6 and memory["latent"].shape == (4, 3)


def test_a_probe_tells_what_has_arrived(memory: DeviceMemory, device: NullDevice) -> None:
    probe = memory.probe("probe")
    assert probe.latest() == 0
    memory["probe"].write(np.array([2.5], np.float32))
    with device.counting() as counter:
        probe.send()
        assert probe.latest() == (0 if device.lazy else 2.5)
    assert dict(counter) == {"cudaMemcpyAsync": 1}
    memory.synchronize()
    assert probe.latest() == 2.5
    probe.reset()
    assert probe.latest() == 0


def test_a_reset_probe_forgets_what_is_still_on_its_way(memory: DeviceMemory) -> None:
    """Of a request that failed, for the next one would fail of it."""
    probe = memory.probe("probe")
    memory["probe"].write(np.array([np.nan], np.float32))
    probe.send()
    probe.reset()
    memory.synchronize()
    assert probe.latest() == 0


def test_a_clock_counts_the_time_between_marks(memory: DeviceMemory, device: NullDevice) -> None:
    clock = memory.clock(4)
    for marks in (3, 1):  # a second start forgets the first
        clock.start()
        with device.counting() as counter:
            for _ in range(marks):
                clock.mark()
        assert dict(counter) == {"cudaEventRecord": marks}
        seconds = clock.seconds()
        assert seconds.shape == (marks,) and (seconds >= 0).all()


def test_waiting_for_a_mark_waits_for_no_more(memory: DeviceMemory, device: NullDevice) -> None:
    clock = memory.clock(2)
    clock.start()
    memory["latent"].write(np.ones((4, 3), np.float32))
    clock.mark()
    memory["latent"].clear()
    clock.wait()
    expected = 1 if device.lazy else 0
    assert (device.content(memory["latent"].address, 48).view(np.float32) == expected).all()


# Failures


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("cudaMemcpyAsync", lambda memory: memory.step_inputs().select(0, full=True)),
        ("cudaMemcpy2DAsync", lambda memory: memory.step_inputs().look_ahead("latent", "scales", (1, 2))),
        ("cudaMemcpyAsync", lambda memory: memory.probe("probe").send()),
        ("cudaEventRecord", lambda memory: memory.clock(2).mark()),
    ],
)
def test_the_hot_path_notices_errors(memory: DeviceMemory, device: NullDevice, function: str, what: Any) -> None:
    device.fail(INVALID, function)
    with pytest.raises(DeviceError, match=rf"{function} failed with cudaErrorInvalidValue \(1\)"):
        what(memory)


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaStreamCreateWithFlags", "cudaMemsetAsync"])
def test_memory_that_cannot_be_made_keeps_nothing(device: NullDevice, function: str) -> None:
    device.fail(OUT_OF_MEMORY, function)
    with pytest.raises(MemoryPlanError, match=rf"GPU has no memory left \({function}\)"):
        DeviceMemory(Cuda(device), PLAN)
    assert device.used_bytes == 0


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_clock_that_cannot_be_made_keeps_nothing(device: NullDevice, nth: int) -> None:
    memory = DeviceMemory(Cuda(device), PLAN)
    device.fail(INVALID, "cudaEventCreate", nth=nth)
    with pytest.raises(DeviceError, match="cudaEventCreate failed"):
        memory.clock(3)
    memory.close()
    assert device.leaks() == {}


def test_waiting_for_an_array_that_fails_keeps_no_event(memory: DeviceMemory, device: NullDevice) -> None:
    device.fail(INVALID, "cudaStreamWaitEvent")
    with pytest.raises(DeviceError, match="cudaStreamWaitEvent failed"):
        memory["latent"].write(DeviceArray(memory["probe"].address, (1,), FLOAT, 1, None))


def test_memory_that_nobody_closed_is_freed_with_its_last_reference(device: NullDevice) -> None:
    memory = DeviceMemory(Cuda(device), PLAN)
    memory.probe("probe")
    memory.clock(2)
    del memory
    assert device.leaks() == {}


def test_a_lost_device_is_left_alone(device: NullDevice) -> None:
    memory = DeviceMemory(Cuda(device), PLAN)
    device.fail(719, "cudaMemcpyAsync")
    with pytest.raises(DeviceError, match="cudaErrorLaunchFailure"):
        memory["probe"].write(np.zeros(1, np.float32))
    with device.counting() as counter:
        memory.close()
        del memory
        assert "block" in device.leaks()
    assert not counter
