"""The TensorRT backend: what a loop gives, what it costs, and which plans it refuses."""

import collections
import dataclasses
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.config import CacheConfig
from taylorseer.cuda import Device
from taylorseer.errors import BackendError, ShapeError
from taylorseer.manifest import PlanSpec
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.memory import plan_memory
from taylorseer.runtime.session import LoadedModel, Session
from taylorseer.runtime.shadow_backend import relative_error
from taylorseer.runtime.tensorrt_backend import TensorRTBackend, plan_for
from taylorseer.tensorrt_library import TensorRT
from tests.runtime.gpu import Gpu, NullGpu
from tests.runtime.null_device import NullDevice
from tests.runtime.null_tensorrt import null_plan, null_tensorrt

Load = Callable[..., LoadedModel]
MakeRequest = Callable[..., dict[str, Any]]

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]
LAYOUTS = ["history", "derivatives", "folded"]
SHORT = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cudaFree")
"""Functions in which the host waits for the device."""

MAKES = ("cudaMalloc", "cudaHostAlloc", "cudaEventCreate", "cudaStreamCreateWithFlags", "cudaGraphInstantiate")


# What a loop gives


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_loop_is_that_of_onnx_runtime(
    gpu: Gpu, load: Load, denoise_arguments: MakeRequest, name: str, layout: str, cuda_graphs: bool
) -> None:
    reference = load(name, layout).session()
    expected = reference.denoise(**denoise_arguments(reference))
    with gpu.load(name, layout, cuda_graphs=cuda_graphs).session() as session:
        result = session.denoise(**denoise_arguments(session))
    assert relative_error(result.latent, expected.latent) <= gpu.tolerance
    assert result.full_steps.tolist() == expected.full_steps.tolist()
    assert result.step_seconds.shape == (50,) and (result.step_seconds > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_request_leaves_nothing_for_the_next(
    gpu: Gpu, load: Load, denoise_arguments: MakeRequest, layout: str
) -> None:
    reference = load("flux-tiny", layout).session()
    with gpu.load("flux-tiny", layout).session() as session:
        for changes in ({"seed": 1}, {"seed": 2, "every_step_full": True}, {"seed": 3}):
            arguments = denoise_arguments(session, cache=SHORT, **changes)
            expected = reference.denoise(**denoise_arguments(reference, cache=SHORT, **changes))
            assert relative_error(session.denoise(**arguments).latent, expected.latent) <= gpu.tolerance


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_a_batch_of_two(gpu: Gpu, load: Load, denoise_arguments: MakeRequest, layout: str) -> None:
    latents = []
    for model in (load("dit-tiny", layout), gpu.load("dit-tiny", layout)):
        with model.session(2) as session:
            arguments = denoise_arguments(session, latent=initial_noise(session.latent_shape, 0))
            arguments["conditions"] = {"class_labels": np.array([1, 2, 10, 10], np.int64)}
            latents.append(session.denoise(**arguments).latent)
    assert latents[1].shape[0] == 2
    assert relative_error(latents[1], latents[0]) <= gpu.tolerance


def test_two_sessions_of_one_model_take_turns(gpu: Gpu, denoise_arguments: MakeRequest) -> None:
    model = gpu.load("flux-tiny")
    with model.session() as one, model.session() as other:
        first = one.denoise(**denoise_arguments(one, seed=1, cache=SHORT)).latent
        other.denoise(**denoise_arguments(other, seed=2, cache=SHORT))
        again = one.denoise(**denoise_arguments(one, seed=1, cache=SHORT)).latent
    np.testing.assert_array_equal(first, again)


def test_a_result_on_the_device_is_the_same(gpu: Gpu, denoise_arguments: MakeRequest) -> None:
    with gpu.load("flux-tiny").session() as session:
        on_host = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
        on_device = session.denoise(**denoise_arguments(session, cache=SHORT), on_device=True).latent
        session.denoise(**denoise_arguments(session, seed=1, cache=SHORT))
    np.testing.assert_array_equal(on_device.numpy(), on_host)  # it outlives later requests, and the session


def test_inputs_on_the_device_give_the_same(gpu: Gpu, denoise_arguments: MakeRequest) -> None:
    with gpu.load("dit-tiny").session() as session:
        expected = session.denoise(**denoise_arguments(session, cache=SHORT), on_device=True).latent
        arguments = denoise_arguments(session, cache=SHORT)
        arguments["latent"] = exported(session, arguments["latent"])
        np.testing.assert_array_equal(session.denoise(**arguments).latent, expected.numpy())


def exported(session: Session, latent: Any) -> Any:
    """Return a latent as a tensor on the session's device."""
    buffer = session.memory["latent.0"]
    buffer.write(latent, repeat=session.manifest.rows_per_image)
    return buffer.export(session.batch)


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_a_device_that_does_nothing_before_it_is_waited_for(
    null_gpu: NullGpu, load: Load, denoise_arguments: MakeRequest, layout: str
) -> None:
    reference = load("flux-tiny", layout).session()
    with null_gpu.load("flux-tiny", layout).session() as session:
        null_gpu.device.lazy = True
        for seed in range(2):
            expected = reference.denoise(**denoise_arguments(reference, seed=seed, cache=SHORT)).latent
            result = session.denoise(**denoise_arguments(session, seed=seed, cache=SHORT))
            np.testing.assert_array_equal(result.latent, expected)
        kept = session.denoise(**denoise_arguments(session, seed=1, cache=SHORT), on_device=True).latent
        np.testing.assert_array_equal(kept.numpy(), expected)


def test_on_step_finds_each_step_done(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    with null_gpu.load("flux-tiny").session() as session:
        null_gpu.device.lazy = True
        latents: list[bytes] = []

        def keep(step: int, full: bool) -> None:
            buffer = session.memory[f"latent.{(step + 1) % 2}"]
            latents.append(null_gpu.device.content(buffer.address, buffer.nbytes).tobytes())

        result = session.denoise(**denoise_arguments(session, cache=SHORT), on_step=keep)
    assert latents[-1] == result.latent.tobytes() and len(set(latents)) == 12


# What a loop costs


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_a_copy_and_a_launch(
    null_gpu: NullGpu, denoise_arguments: MakeRequest, layout: str, cuda_graphs: bool
) -> None:
    with null_gpu.load("flux-tiny", layout, cuda_graphs=cuda_graphs).session() as session:
        result = session.denoise(**denoise_arguments(session))
        calls = null_gpu.device.calls
        marks = [index for index, name in enumerate(calls) if name == "cudaEventRecord"]
        steps = [calls[start + 1 : end] for start, end in itertools.pairwise(marks)]
    launch = ["cudaGraphLaunch"] if cuda_graphs else ["execute_async_v3"] * 2
    for number, (step, full) in enumerate(zip(steps, result.full_steps, strict=True)):
        probe = ["cudaMemcpyAsync"] if full or number == 49 else []  # is the prediction finite?
        ahead = step.count("cudaMemcpy2DAsync")  # gates of forecasts to come, a copy for each run of them
        begun = ["cudaMemsetAsync"] * (10 if layout == "folded" and number == 0 else 0)  # of accumulators
        assert step == ["cudaMemcpyAsync", *begun, *["cudaMemcpy2DAsync"] * ahead, *launch, *probe]
        assert not ahead or (layout == "folded" and full)
        if 2 <= number <= 32:  # all accumulators are in use: of three windows, each a run of steps
            assert ahead == (3 if layout == "folded" and full else 0)


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_requests_allocate_nothing_and_wait_at_their_ends_alone(
    null_gpu: NullGpu, denoise_arguments: MakeRequest, layout: str
) -> None:
    with null_gpu.load("flux-tiny", layout).session() as session:
        counters: list[collections.Counter[str]] = []
        used = null_gpu.device.used_bytes
        for cache in (SHORT, CacheConfig.from_preset("flux", order=1)):
            with null_gpu.device.counting() as counter:
                session.denoise(**denoise_arguments(session, cache=cache))
            counters.append(counter)
        assert null_gpu.device.used_bytes == used == session.memory_plan.total_bytes
    for counter in counters:
        assert not any(counter[name] for name in MAKES)
    assert [[counter[name] for name in WAITS] for counter in counters] == [[2, 1, 0, 0]] * 2, "not more for more steps"


def test_a_session_is_one_allocation(null_gpu: NullGpu) -> None:
    model = null_gpu.load("dit-tiny")
    with null_gpu.device.counting() as counter, model.session(steps=20):
        pass
    assert counter["cudaMalloc"] == counter["cudaFree"] == 1
    assert counter["cudaHostAlloc"] == counter["cudaFreeHost"] == 1
    assert counter["cudaEventCreate"] == counter["cudaEventDestroy"] == 21
    assert counter["cudaGraphInstantiate"] == counter["cudaGraphDestroy"] == counter["cudaGraphExecDestroy"] > 0


def test_closing_frees_everything_once(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    session = null_gpu.load("dit-tiny").session()
    session.denoise(**denoise_arguments(session, cache=SHORT))
    session.close()
    assert null_gpu.device.leaks() == {}
    with null_gpu.device.counting() as counter:
        session.close()
    assert not counter


def test_an_engine_that_cannot_be_captured_is_enqueued(
    null_gpu: NullGpu, load: Load, denoise_arguments: MakeRequest
) -> None:
    null_gpu.device.capturable = False
    reference = load("dit-tiny").session()
    with pytest.warns(RuntimeWarning, match="cannot capture an engine"):
        session = null_gpu.load("dit-tiny").session()
    with session, null_gpu.device.counting() as counter:
        result = session.denoise(**denoise_arguments(session, cache=SHORT))
    np.testing.assert_array_equal(result.latent, reference.denoise(**denoise_arguments(reference, cache=SHORT)).latent)
    assert counter["cudaGraphLaunch"] == 0 and counter["execute_async_v3"] == 2 * 12 + 1  # prepare


@pytest.mark.parametrize(
    ("capturable", "cuda_graphs", "warned"),
    [(False, True, True), (True, True, False), (False, False, False)],
    ids=["an engine that cannot be captured", "one that can", "graphs were not asked for"],
)
def test_enqueueing_what_was_to_be_captured_is_warned_of(
    null_gpu: NullGpu, capturable: bool, cuda_graphs: bool, warned: bool
) -> None:
    null_gpu.device.capturable = capturable
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        null_gpu.load("dit-tiny", cuda_graphs=cuda_graphs).session().close()
    messages = {str(warning.message) for warning in caught if warning.category is RuntimeWarning}
    expected = (
        "tensorrt-rtx cannot capture an engine of this bundle as a CUDA graph: its layers are enqueued one by one, "
        "which costs host time at every step."
    )
    assert messages == ({expected} if warned else set())


def test_regular_tensorrt_has_no_runtime_config(null_gpu: NullGpu, load: Load, denoise_arguments: MakeRequest) -> None:
    null_gpu.install("tensorrt")
    bundle = null_gpu.bundle("dit-tiny", flavor="tensorrt")
    reference = load("dit-tiny").session()
    with LoadedModel(bundle.manifest, TensorRTBackend(bundle)).session() as session:
        result = session.denoise(**denoise_arguments(session, cache=SHORT))
    np.testing.assert_array_equal(result.latent, reference.denoise(**denoise_arguments(reference, cache=SHORT)).latent)


# Plans


def test_a_plan_for_another_gpu(null_gpu: NullGpu) -> None:
    bundle = null_gpu.bundle("dit-tiny", capability="8.6")
    with pytest.raises(
        BackendError,
        match=r"plan was built for compute capability 8\.6, and Null Device has 8\.9: build with "
        r"--compute-capability 8\.9, or on this machine",
    ):
        LoadedModel(bundle.manifest, TensorRTBackend(bundle))


def plans(*capabilities: str, kind: str = "full") -> list[PlanSpec]:
    return [PlanSpec(kind=kind, file=f"{c}.plan", compute_capability=c, fingerprint="") for c in capabilities]


def chosen(device: str, offered: list[PlanSpec], flavor: str = "tensorrt-rtx") -> str:
    library = TensorRT(flavor, null_tensorrt(NullDevice(), flavor))  # type: ignore[arg-type]
    return plan_for(offered, "full", Device(0, "A GPU", device, 0, "13.0"), library).compute_capability


@pytest.mark.parametrize(
    ("device", "offered", "expected"),
    [
        ("8.9", ("8.0", "8.9", "12.0"), "8.9"),
        ("9.0", ("8.0", "8.9", "12.0"), "8.9"),
        ("9.0", ("7.5", "8.0"), "8.0"),
        ("9.0", ("8.0", "9.0"), "9.0"),
        ("10.0", ("8.9", "7.5"), "8.9"),
    ],
)
def test_a_gpu_that_tensorrt_rtx_does_not_name_takes_the_newest_older_plan(
    device: str, offered: tuple[str, ...], expected: str
) -> None:
    assert chosen(device, plans(*offered)) == expected
    assert chosen(device, plans(*reversed(offered))) == expected


@pytest.mark.parametrize(
    ("device", "offered", "flavor"),
    [
        ("8.9", ("8.0", "8.6"), "tensorrt-rtx"),  # it names 8.9, so a plan for it can be built
        ("9.0", ("12.0",), "tensorrt-rtx"),
        ("9.0", ("8.9",), "tensorrt"),
    ],
)
def test_other_gpus_take_their_own_plan_alone(device: str, offered: tuple[str, ...], flavor: str) -> None:
    with pytest.raises(BackendError, match=f"built for compute capability {', '.join(sorted(offered))}, and A GPU has"):
        chosen(device, plans(*offered), flavor)


def test_no_plan_of_that_graph() -> None:
    with pytest.raises(BackendError, match=r"full plan was built for compute capability \(none\)"):
        chosen("8.9", plans("8.9", kind="update"))


def test_another_version_of_tensorrt(null_gpu: NullGpu) -> None:
    bundle = null_gpu.bundle("dit-tiny")
    engine = dataclasses.replace(bundle.manifest.engine, version="1.6.0.1")
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engine=engine))
    with pytest.raises(
        BackendError,
        match=r"built with tensorrt-rtx 1\.6\.0\.1, 1\.7\.1\.116 is installed.* install tensorrt-rtx 1\.6\.0\.1, or",
    ):
        TensorRTBackend(other)
    engine = dataclasses.replace(engine, options={"version_compatible": True})
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engine=engine))
    assert TensorRTBackend(other).load("full").kind == "full"


def test_a_bundle_of_another_backend(
    null_gpu: NullGpu, bundles: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(BackendError, match="no TensorRT called 'onnxruntime': use tensorrt or tensorrt-rtx"):
        TensorRTBackend(bundles("dit-tiny"))


def test_a_plan_that_tensorrt_refuses(null_gpu: NullGpu) -> None:
    bundle = null_gpu.bundle("dit-tiny")
    bundle.path(bundle.manifest.engine.plans[0].file).write_bytes(b"no plan")
    kind = bundle.manifest.engine.plans[0].kind
    with pytest.raises(
        BackendError,
        match=rf"tensorrt-rtx 1\.7\.1\.116 refuses the {kind} plan .*on Null Device \(compute capability 8\.9\): "
        r"Serialization assertion .* -- build the bundle again on this machine",
    ):
        TensorRTBackend(bundle).load(kind)


def test_a_plan_of_another_graph(null_gpu: NullGpu) -> None:
    bundle, other = null_gpu.bundle("dit-tiny"), null_gpu.bundle("flux-tiny")
    mine, its = (next(p.file for p in b.manifest.engine.plans if p.kind == "full") for b in (bundle, other))
    bundle.path(mine).write_bytes(other.path(its).read_bytes())
    with pytest.raises(
        BackendError,
        match=r"full plan does not belong to the bundle's full graph: '\S+' is float32 there and missing in the "
        r"manifest\. Build the bundle again",
    ):
        TensorRTBackend(bundle).load("full")


def test_a_batch_outside_the_profile(null_gpu: NullGpu) -> None:
    bundle = null_gpu.bundle("flux-tiny", rows=(1, 1, 1))
    with LoadedModel(bundle.manifest, TensorRTBackend(bundle)).session():
        pass
    bundle = null_gpu.bundle("dit-tiny", rows=(2, 2, 3))
    model = LoadedModel(bundle.manifest, TensorRTBackend(bundle))
    memory: Any = model.backend.reserve(plan_memory(bundle.manifest, rows=4, steps=9, scratch_bytes=8192))
    tensors = {spec.name: memory["probe"] for spec in bundle.manifest.graphs["full"].outputs}
    tensors |= {
        spec.name: memory["latent.0" if spec.role == "latent" else spec.name]
        for spec in bundle.manifest.graphs["full"].inputs
        if spec.role != "previous"
    }
    with pytest.raises(
        BackendError,
        match=r"full plan takes '\w+' from \[2.*\] to \[3.*\], not \[4.*\]: ask for fewer images at a time, or build "
        "with a larger --batch",
    ):
        model.engines["full"].bind(tensors)
    memory.close()


def test_a_batch_that_the_bundle_does_not_serve(null_gpu: NullGpu) -> None:
    model = null_gpu.load("dit-tiny")
    with pytest.raises(ShapeError, match="A batch of 99 needs 198 rows"):
        model.session(99)
    assert null_gpu.device.leaks() == {}


def test_the_null_plan_is_no_plan_of_the_real_library(null_gpu: NullGpu) -> None:
    """Nothing that was made for these tests could ever run elsewhere."""
    real = pytest.importorskip("tensorrt_rtx")
    library = TensorRT("tensorrt-rtx", real)
    messages = library.messages()
    bundle = null_gpu.bundle("dit-tiny")
    graph = bundle.manifest.graphs["update"]
    plan = null_plan(bundle.path(graph.file), graph, (1, 1, 1), ())
    assert real.Runtime(messages).deserialize_cuda_engine(plan) is None
    assert messages.errors
