"""A GPU that fails: the error is typed, nothing leaks, and what can go on goes on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.config import CacheConfig
from taylorseer.errors import BackendError, DeviceError, MemoryPlanError, NonFiniteError
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.tensorrt_backend import TensorRTBackend
from tests.runtime.gpu import NullGpu
from tests.runtime.null_device import INVALID, LOST, OUT_OF_MEMORY

MakeRequest = Callable[..., dict[str, Any]]

SHORT = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)


# Without a GPU


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"driver": 0}, r"There is no NVIDIA driver on this machine: install one that serves CUDA 13\.4, or use"),
        ({"driver": 12020}, r"The NVIDIA driver is too old: it serves CUDA 12\.2, CUDA 13\.4 is needed"),
        ({"count": 0}, r"There is no GPU on this machine, or none is visible \(CUDA_VISIBLE_DEVICES\)"),
    ],
)
def test_no_usable_gpu(null_gpu: NullGpu, change: dict[str, int], message: str) -> None:
    vars(null_gpu.device).update(change)
    with pytest.raises(DeviceError, match=message):
        TensorRTBackend(null_gpu.bundle("dit-tiny"))


def test_no_gpu_of_that_number(null_gpu: NullGpu) -> None:
    with pytest.raises(DeviceError, match="There is no GPU number 3 here: give one from 0 to 0"):
        TensorRTBackend(null_gpu.bundle("dit-tiny"), device=3)


# Memory


@pytest.mark.parametrize("layout", ["history", "derivatives"])
def test_a_session_that_does_not_fit_is_refused_before_it_is_allocated(null_gpu: NullGpu, layout: str) -> None:
    model = null_gpu.load("flux-tiny", layout)
    rows, scratch = model.manifest.rows_per_image, model.backend.scratch_bytes()

    def total(**changes: Any) -> int:
        manifest = dataclasses.replace(model.manifest, **changes)
        return plan_memory(manifest, rows=rows, steps=50, scratch_bytes=scratch).total_bytes

    null_gpu.device.total_bytes = total() - 1
    history = "--state history at order 2; or --state folded where the build can prove it; or "
    advice = f"{history if layout == 'derivatives' else ''}--order 1"
    with (
        null_gpu.device.counting() as counter,
        pytest.raises(MemoryPlanError, match=rf"session needs .* are free on the device\. What fits: {advice}"),
    ):
        model.session()
    assert counter["cudaMalloc"] == 0
    null_gpu.device.total_bytes = total()
    model.session().close()


def test_memory_that_another_process_took_meanwhile(null_gpu: NullGpu) -> None:
    model = null_gpu.load("dit-tiny")
    null_gpu.device.fail(OUT_OF_MEMORY, "cudaMalloc")
    with pytest.raises(
        MemoryPlanError, match=r"GPU has no memory left \(cudaMalloc\): another process took it since the session was"
    ):
        model.session()
    model.session().close()


@pytest.mark.parametrize("code", [INVALID, OUT_OF_MEMORY])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_wherever_making_a_session_fails_nothing_leaks(null_gpu: NullGpu, code: int, cuda_graphs: bool) -> None:
    model = null_gpu.load("dit-tiny", cuda_graphs=cuda_graphs)
    with null_gpu.device.counting() as counter:
        model.session(steps=2).close()
    closing = ("cudaFree", "cudaFreeHost", "cudaEventDestroy", "cudaStreamDestroy", "cudaGraphExecDestroy")
    # The 2 choose the device and wait for the stream before they begin.
    made = counter.total() - 2 - sum(counter[name] for name in closing)
    assert made >= (50 if cuda_graphs else 8)
    for nth in range(1, made + 1):
        null_gpu.device.fail(code, nth=nth)
        with pytest.raises((DeviceError, MemoryPlanError)):
            model.session(steps=2)
        assert (nth, null_gpu.device.misuses, null_gpu.device.leaks()) == (nth, [], {})
    model.session(steps=2).close()


@pytest.mark.parametrize("function", ["cudaFree", "cudaEventDestroy", "cudaGraphExecDestroy", "cudaStreamSynchronize"])
def test_a_failing_close_frees_the_rest(null_gpu: NullGpu, function: str) -> None:
    session = null_gpu.load("dit-tiny").session(steps=3)
    null_gpu.device.fail(INVALID, function)
    with pytest.raises(DeviceError, match=rf"{function} failed with cudaErrorInvalidValue \(1\)"):
        session.close()
    session.close()
    assert null_gpu.device.leaks() == {}


@pytest.mark.parametrize("kind", ["prepare", "full", "forecast", "update"])
def test_a_plan_larger_than_the_free_memory_is_refused_before_it_is_loaded(null_gpu: NullGpu, kind: str) -> None:
    backend = null_gpu.load("dit-tiny").backend
    null_gpu.device.total_bytes = null_gpu.device.used_bytes + 8
    message = rf"The {kind} plan has 0\.00 GB and 0\.00 GB are free on .*: free memory there, .* --weight-streaming"
    with pytest.raises(MemoryPlanError, match=message):
        backend.load(kind)


def test_a_failure_is_explained_by_its_own_messages(null_gpu: NullGpu) -> None:
    backend = null_gpu.load("dit-tiny").backend
    assert isinstance(backend, TensorRTBackend)
    backend._messages.errors.append("something of yesterday")
    graph = backend._bundle.manifest.graphs["update"]
    with pytest.raises(BackendError) as caught:
        backend.engine_of("update", b"no plan", graph)
    assert "yesterday" not in str(caught.value)


# Requests


def test_a_nan_of_the_last_step_is_refused_on_the_device_too(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    """The last step forecasts, so that no full step looks at what it predicts."""
    with null_gpu.load("flux-tiny").session() as session:
        arguments = denoise_arguments(session, cache=SHORT)
        assert not SHORT.schedule().is_full(11)
        updates = arguments["sampler"].updates.copy()
        updates[10] = np.nan  # the latent that the last step reads
        arguments["sampler"] = dataclasses.replace(arguments["sampler"], updates=updates)
        with pytest.raises(NonFiniteError, match="holds NaN or infinity"):
            session.denoise(**arguments, on_device=True)


def test_nan_in_the_weights_is_refused(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    with null_gpu.load("flux-tiny").session() as session:
        expected = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
        failing = denoise_arguments(session, cache=SHORT)
        updates = failing["sampler"].updates.copy()
        updates[1] = np.nan  # what NaN in a weight does to the prediction of the step
        failing["sampler"] = dataclasses.replace(failing["sampler"], updates=updates)
        with pytest.raises(NonFiniteError, match=r"prediction of .*denoising step.* holds NaN or infinity"):
            session.denoise(**failing)
        np.testing.assert_array_equal(session.denoise(**denoise_arguments(session, cache=SHORT)).latent, expected)
    assert null_gpu.device.leaks() == {}


def test_an_error_that_passes_ends_the_request_alone(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    with null_gpu.load("dit-tiny").session() as session:
        expected = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
        for function in ("cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventRecord"):
            null_gpu.device.fail(INVALID, function, nth=5)
            with pytest.raises(DeviceError, match=rf"{function} failed with cudaErrorInvalidValue \(1\)"):
                session.denoise(**denoise_arguments(session, seed=1, cache=SHORT))
            latent = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
            np.testing.assert_array_equal(latent, expected)


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventRecord", "cudaEventSynchronize"])
def test_a_lost_gpu_is_not_touched_again(null_gpu: NullGpu, denoise_arguments: MakeRequest, function: str) -> None:
    model = null_gpu.load("dit-tiny")
    session = model.session()
    arguments = denoise_arguments(session, cache=SHORT)
    null_gpu.device.fail(LOST, function, nth=1 if function == "cudaEventSynchronize" else 6)
    with pytest.raises(
        DeviceError, match=rf"{function} failed with cudaErrorIllegalAddress \(700\)\. The GPU is lost to this process"
    ):
        session.denoise(**arguments)
    refusal = rf"not used any more in this process: {function} failed with cudaErrorIllegalAddress .*Start a new"
    with null_gpu.device.counting() as counter:
        with pytest.raises(DeviceError, match=refusal):
            session.denoise(**arguments)
        with pytest.raises(DeviceError, match=refusal):
            model.session()
        with pytest.raises(DeviceError, match=refusal):
            TensorRTBackend(null_gpu.bundle("dit-tiny"))
        session.close()
    assert not counter, "nothing is freed: the driver does so when the process ends"


def test_a_gpu_lost_in_an_engine_is_noticed_at_the_end(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    """A class that the model does not have: the gather reads elsewhere, and only later calls tell."""
    session = null_gpu.load("dit-tiny").session()
    null_gpu.device.lazy = True
    arguments = denoise_arguments(session, cache=SHORT, conditions={"class_labels": np.array([5000, 10], np.int64)})
    with pytest.raises(DeviceError, match="The GPU is lost to this process: nothing was returned"):
        session.denoise(**arguments)
    assert null_gpu.cuda.poisoned
    session.close()


def test_tensorrt_refusing_a_call_says_why(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    with null_gpu.load("dit-tiny", cuda_graphs=False).session() as session:
        latent: Any = session.memory["latent.0"]
        address, latent.address = latent.address, 4
        call = session.model.engines["full"].bind(session.tensors("full"))
        with pytest.raises(BackendError, match=r"refuses to enqueue an engine: IExecutionContext::enqueueV3: .*'\w+'"):
            call.run()
        latent.address = address
        session.denoise(**denoise_arguments(session, cache=SHORT))


def test_no_execution_context(null_gpu: NullGpu) -> None:
    model: Any = null_gpu.load("dit-tiny")
    engine = model.engines["full"].engine
    engine.create_execution_context = lambda config: None
    with pytest.raises(BackendError, match="makes no execution context of the full plan: TensorRT gave no reason"):
        model.session()
