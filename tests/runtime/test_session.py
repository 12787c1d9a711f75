"""The session: memory made once, requests that know nothing of each other, and every refusal."""

import dataclasses
import math
import pathlib
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.engines.onnxruntime_builder import build_onnxruntime
from taylorseer.errors import InputError, NonFiniteError, ScheduleError, ShapeError
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
from taylorseer.runtime.backend import Buffer, Call, Engine, Memory
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.memory import MemoryPlan
from taylorseer.runtime.onnxruntime_backend import OnnxRuntimeBackend
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.session import LoadedModel, Session
from taylorseer.runtime.shadow_backend import relative_error

Arguments = dict[str, Any]
Load = Callable[..., LoadedModel]
MakeRequest = Callable[..., Arguments]

MODELS = ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"]
ALL_FULL = CacheConfig(steps=12, interval=4, order=1, warmup_steps=2)
SHORT = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)

LAYOUTS = ["history", "derivatives", "folded"]

LAYOUTS_AGREE = 1e-5
"""Differences are divided and multiplied again in float32, and fed back through 50 steps."""

ENOUGH = 64 * 1024
"""Bytes of Python's own bookkeeping in 47 steps."""


# What a loop gives


@pytest.mark.parametrize("layout", ["history", "folded"])
@pytest.mark.parametrize("name", MODELS)
def test_a_request_leaves_nothing_for_the_next(
    load: Load, denoise_arguments: MakeRequest, name: str, layout: str
) -> None:
    session = load(name, layout).session()
    first = session.denoise(**denoise_arguments(session, seed=1, cache=SHORT))
    second = session.denoise(**denoise_arguments(session, seed=2, cache=SHORT))
    for seed, result in ((1, first), (2, second)):
        fresh = load(name, layout).session()
        alone = fresh.denoise(**denoise_arguments(fresh, seed=seed, cache=SHORT))
        np.testing.assert_array_equal(result.latent, alone.latent)
    assert relative_error(first.latent, second.latent) > 0.1


def poisoned(sampler: Sampler, step: int) -> Sampler:
    """Return a sampler whose latents are NaN from denoising step ``step`` on, as of a model that diverges."""
    updates = sampler.updates.copy()
    updates[step:] = np.nan
    return dataclasses.replace(sampler, updates=updates)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_failed_request_leaves_nothing_either(
    load: Load, denoise_arguments: MakeRequest, layout: str, step: int
) -> None:
    """It fails at the second or third full step, so that NaN is left where the next request writes late or never."""
    session, fresh = load("flux-tiny", layout).session(), load("flux-tiny", layout).session()
    failing = denoise_arguments(session)
    failing["sampler"] = poisoned(failing["sampler"], step - 1)
    with pytest.raises(NonFiniteError, match=f"The prediction of denoising step {step} holds NaN or infinity"):
        session.denoise(**failing)
    sparse = CacheConfig(steps=12, full_steps=(0, 5, 9), order=2)
    clean, alone = (s.denoise(**denoise_arguments(s, cache=sparse)).latent for s in (session, fresh))
    np.testing.assert_array_equal(clean, alone)


def test_a_cancelled_request_leaves_nothing_either(load: Load, denoise_arguments: MakeRequest) -> None:
    class Cancelled(Exception):
        pass

    def cancel(step: int, full: bool) -> None:
        if step == 5:
            raise Cancelled

    session, fresh = load("flux-tiny").session(), load("flux-tiny").session()
    with pytest.raises(Cancelled):
        session.denoise(**denoise_arguments(session, seed=1), on_step=cancel)
    clean = session.denoise(**denoise_arguments(session))
    np.testing.assert_array_equal(clean.latent, fresh.denoise(**denoise_arguments(fresh)).latent)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("flux-tiny", "derivatives"), ("dit-tiny", "derivatives"), *((name, "folded") for name in MODELS)],
)
def test_the_layouts_agree_over_a_loop(load: Load, denoise_arguments: MakeRequest, name: str, layout: str) -> None:
    latents = {}
    for one in ("history", layout):
        session = load(name, one).session()
        latents[one] = session.denoise(**denoise_arguments(session)).latent
    assert relative_error(latents[layout], latents["history"]) <= LAYOUTS_AGREE


@pytest.mark.parametrize(
    "changes",
    [
        {"order": 0},
        {"order": 1},
        {"predictor": "newton"},
        {"predictor": "reuse"},
        {"interval": 2},
        {"warmup_steps": 1},
        {"full_steps": (0, 1, 6, 7, 9)},
        {"derivatives_from": 4},
    ],
    ids=str,
)
def test_a_folded_bundle_serves_other_schedules_than_its_own(
    load: Load, denoise_arguments: MakeRequest, changes: dict[str, Any]
) -> None:
    cache = dataclasses.replace(SHORT, **changes)
    latents = []
    for layout in ("folded", "history"):
        session = load("flux-tiny", layout).session()
        latents.append(session.denoise(**denoise_arguments(session, cache=cache)).latent)
    assert relative_error(*latents) <= LAYOUTS_AGREE


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("flux-tiny", "history"),
        ("flux-tiny", "derivatives"),
        ("dit-tiny", "history"),
        ("dit-tiny", "derivatives"),
        ("hunyuan-video-tiny", "history"),
        ("flux-tiny", "folded"),
        ("dit-tiny", "folded"),
    ],
)
def test_every_step_full_is_a_loop_of_the_plain_graph(
    load: Load, bundles: Callable[..., Bundle], denoise_arguments: MakeRequest, name: str, layout: str
) -> None:
    session = load(name, layout).session()
    arguments = denoise_arguments(session, cache=ALL_FULL)
    result = session.denoise(**arguments, every_step_full=True)
    assert result.full_steps.all() and result.step_seconds.shape == (12,) and (result.step_seconds > 0).all()
    plain = plain_loop(bundles(name, "history"), denoise_arguments(session, cache=ALL_FULL))
    assert relative_error(result.latent, plain) <= LAYOUTS_AGREE
    forecast = session.denoise(**denoise_arguments(session, cache=ALL_FULL))
    assert relative_error(forecast.latent, plain) > 100 * LAYOUTS_AGREE


def plain_loop(bundle: Bundle, arguments: Arguments) -> NDArray[np.float32]:
    """Denoise with ONNX Runtime alone: prepare and the full graph at every step, guidance written out."""
    pipeline, sampler, rows = bundle.manifest.pipeline, arguments["sampler"], bundle.manifest.rows_per_image
    graphs = {kind: bundle.manifest.graphs[kind] for kind in ("prepare", "full")}
    prepare, engine = (
        onnxruntime.InferenceSession(bundle.path(graph.file), providers=["CPUExecutionProvider"])
        for graph in graphs.values()
    )
    made = [spec.name for spec in graphs["prepare"].outputs]
    (hidden,) = (spec.name for spec in graphs["full"].inputs if spec.role == "latent")
    latent: NDArray[np.float32] = arguments["latent"].copy()
    for step, timestep in enumerate(sampler.timesteps):
        inputs = dict(arguments["conditions"])
        for spec in graphs["prepare"].inputs:
            if spec.role == "timestep":
                inputs[spec.name] = np.full(rows, timestep * pipeline.timestep_scale, np.float32)
            elif spec.role == "guidance":
                inputs[spec.name] = np.full(rows, arguments["guidance"] * pipeline.guidance_factor, np.float32)
        prepared = dict(zip(made, prepare.run(made, inputs), strict=True))
        (prediction,) = engine.run(["prediction"], {**prepared, hidden: np.concatenate([latent] * rows)})
        if rows == 2:
            conditional, unconditional = prediction[:1, : latent.shape[1]], prediction[1:, : latent.shape[1]]
            prediction = unconditional + np.float32(arguments["guidance"]) * (conditional - unconditional)
        latent = sampler.step(latent, prediction, step)
    return latent


def test_the_order_of_the_request_counts_not_the_bundles(
    load: Load, denoise_arguments: MakeRequest, tmp_path: pathlib.Path
) -> None:
    """Order 1 on a bundle of order 2 is what a bundle of order 1 gives."""
    model = load_model("flux-tiny")
    low = CacheConfig.from_preset("flux", order=1, steps=20)
    request = ExportRequest(model=model, sizes=model.sizes, cache=low)
    with draft_bundle(tmp_path / "low") as draft:
        manifest = export(request, draft)
        bundle = draft.commit(
            dataclasses.replace(manifest, engine=build_onnxruntime(draft.folder, manifest)),
        )
    small = LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session()
    large = load("flux-tiny").session()
    assert large.state_bytes == small.state_bytes * 3 // 2
    expected = small.denoise(**denoise_arguments(small)).latent
    assert relative_error(large.denoise(**denoise_arguments(large, cache=low)).latent, expected) <= 1e-6
    higher = large.denoise(**denoise_arguments(large, cache=dataclasses.replace(low, order=2)))
    assert relative_error(higher.latent, expected) > 1e-4


def test_predictors_on_history(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()

    def latent(**changes: Any) -> NDArray[np.float32]:
        config = dataclasses.replace(SHORT, **changes)
        result: NDArray[np.float32] = session.denoise(**denoise_arguments(session, cache=config)).latent
        return result

    np.testing.assert_array_equal(latent(predictor="reuse"), latent(order=0))
    # A line through two points is the same line, a parabola through three is not the Taylor one.
    assert relative_error(latent(predictor="newton", order=1), latent(order=1)) <= LAYOUTS_AGREE
    assert relative_error(latent(predictor="newton"), latent()) > 100 * LAYOUTS_AGREE
    assert relative_error(latent(predictor="reuse"), latent()) > 100 * LAYOUTS_AGREE


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_a_batch_is_its_images_one_by_one(load: Load, denoise_arguments: MakeRequest, layout: str) -> None:
    model = load("dit-tiny", layout)  # its batch of 2 images is 4 rows: conditional ones first
    pair, single = model.session(2), model.session()
    labels = np.array([1, 2, 10, 10], np.int64)
    together = pair.denoise(
        **denoise_arguments(pair, latent=initial_noise(pair.latent_shape, 0), conditions={"class_labels": labels})
    )
    for image in range(2):
        alone = denoise_arguments(single, seed=image, conditions={"class_labels": labels[[image, image + 2]]})
        assert relative_error(together.latent[image], single.denoise(**alone).latent[0]) <= LAYOUTS_AGREE


def test_on_step_is_told_every_step(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    seen: list[tuple[int, bool]] = []
    result = session.denoise(**denoise_arguments(session), on_step=lambda step, full: seen.append((step, full)))
    schedule = CacheConfig.from_preset("flux").schedule()
    assert seen == [(step, schedule.is_full(step)) for step in range(50)]
    assert result.full_steps.tolist() == [full for _, full in seen]


# Memory


class WatchedBackend:
    """ONNX Runtime, with a record of what was reserved and bound, and of the memory that each call works on."""

    def __init__(self, bundle: Bundle) -> None:
        self.inner = OnnxRuntimeBackend(bundle, threads=1)
        self.reserved: list[tuple[MemoryPlan, Memory]] = []
        self.bound = 0
        self.calls: list[WatchedCall] = []
        self.sequences: list[tuple[str, ...]] = []

    def load(self, kind: str) -> Engine:
        return WatchedEngine(self, kind, self.inner.load(kind))

    def reserve(self, plan: MemoryPlan) -> Memory:
        self.reserved.append((plan, self.inner.reserve(plan)))
        return self.reserved[-1][1]

    def sequence(self, calls: Sequence[Any]) -> Call:
        return WatchedSequence(self, tuple(call.kind for call in calls), self.inner.sequence(calls))

    def scratch_bytes(self) -> int:
        return self.inner.scratch_bytes()


@dataclasses.dataclass(frozen=True)
class WatchedEngine:
    watched: WatchedBackend
    kind: str
    engine: Engine

    def bind(self, tensors: Mapping[str, Buffer]) -> Call:
        self.watched.bound += 1
        addresses = {name: buffer.address for name, buffer in tensors.items()}
        return WatchedCall(self.watched, self.kind, addresses, self.engine.bind(tensors))


@dataclasses.dataclass(frozen=True)
class WatchedCall:
    watched: WatchedBackend = dataclasses.field(repr=False, compare=False)
    kind: str
    addresses: Mapping[str, int]
    call: Call = dataclasses.field(compare=False)

    def run(self) -> None:
        self.watched.calls.append(self)
        self.call.run()


@dataclasses.dataclass(frozen=True)
class WatchedSequence:
    watched: WatchedBackend
    kinds: tuple[str, ...]
    call: Call

    def run(self) -> None:
        self.watched.sequences.append(self.kinds)
        self.call.run()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_memory_is_made_with_the_session(
    bundles: Callable[..., Bundle], denoise_arguments: MakeRequest, layout: str
) -> None:
    bundle = bundles("flux-tiny", layout)
    backend = WatchedBackend(bundle)
    session = LoadedModel(bundle.manifest, backend).session()
    ((plan, memory),) = backend.reserved
    assert plan == session.memory_plan
    owned, bound = {memory[name].address for name in plan.tensors}, backend.bound
    assert len(owned) == len(plan.tensors)
    assert [call.kind for call in backend.calls] == ["prepare"], "it runs once before the first request"
    backend.calls.clear()
    runs, bounds = [], []
    for seed in range(2):
        result = session.denoise(**denoise_arguments(session, seed=seed))
        runs.append(backend.calls[:])
        bounds.append(backend.bound)
        kinds = ["full" if full else "forecast" for full in result.full_steps]
        assert backend.sequences == [(kind, "update") for kind in kinds]
        backend.calls.clear()
        backend.sequences.clear()
    assert len(backend.reserved) == 1 and bounds == [bound] * 2
    assert runs[0] == runs[1] and len(runs[0]) == 1 + 2 * 50
    # A slot of a window of accumulators is a part of its tensor.
    within = [range(memory[name].address, memory[name].address + memory[name].nbytes) for name in plan.tensors]
    used = {address for call in runs[0] for address in call.addresses.values()}
    assert all(any(address in place for place in within) for address in used)
    assert (used <= owned) == (layout != "folded")
    assert {memory[name].address for name in plan.tensors} == owned


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_engine_reads_the_memory_that_it_writes(
    bundles: Callable[..., Bundle], denoise_arguments: MakeRequest, layout: str
) -> None:
    bundle = bundles("flux-tiny", layout)
    backend = WatchedBackend(bundle)
    session = LoadedModel(bundle.manifest, backend).session()
    backend.calls.clear()
    result = session.denoise(**denoise_arguments(session))
    kinds = [kind for full in result.full_steps for kind in ("full" if full else "forecast", "update")]
    for kind, call in zip(["prepare", *kinds], backend.calls, strict=True):
        graph = bundle.manifest.graphs[kind]
        read, written = ({call.addresses[spec.name] for spec in specs} for specs in (graph.inputs, graph.outputs))
        assert call.kind == kind and not read & written


def test_each_step_reads_the_latent_that_the_update_before_wrote(
    bundles: Callable[..., Bundle], denoise_arguments: MakeRequest
) -> None:
    bundle = bundles("flux-tiny")
    backend = WatchedBackend(bundle)
    session = LoadedModel(bundle.manifest, backend).session()
    backend.calls.clear()
    session.denoise(**denoise_arguments(session))
    current = backend.reserved[0][1]["latent.0"].address
    assert backend.calls.pop(0).kind == "prepare"
    for model, update in zip(backend.calls[::2], backend.calls[1::2], strict=True):
        assert model.addresses["hidden_states"] == update.addresses["latent"] == current
        assert model.addresses["prediction"] == update.addresses["prediction"]
        current = update.addresses["next_latent"]


def test_leaving_the_block_frees_the_memory(bundles: Callable[..., Bundle], denoise_arguments: MakeRequest) -> None:
    bundle = bundles("flux-tiny")
    backend = WatchedBackend(bundle)
    model = LoadedModel(bundle.manifest, backend)
    with model.session() as session:
        buffer: Any = backend.reserved[0][1]["latent.0"]
        block = weakref.ref(buffer.host.base)
        result = session.denoise(**denoise_arguments(session, cache=SHORT))
        del buffer
        backend.calls.clear()
        assert block() is not None
    assert block() is None  # although the session, the memory and the result are kept
    assert np.isfinite(result.latent).all()
    session.close()  # a second time does no harm


def test_a_failing_block_frees_the_memory_too(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("flux-tiny")
    backend = WatchedBackend(bundle)
    with pytest.raises(ZeroDivisionError), LoadedModel(bundle.manifest, backend).session():
        buffer: Any = backend.reserved[0][1]["latent.0"]
        block = weakref.ref(buffer.host.base)
        del buffer
        backend.calls.clear()
        raise ZeroDivisionError
    assert block() is None


def test_a_session_is_not_closed_under_a_request(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    refusals: list[str] = []

    def close(step: int, full: bool) -> None:
        if step == 3:
            with pytest.raises(InputError) as caught:
                session.close()
            refusals.append(str(caught.value))

    disturbed = session.denoise(**denoise_arguments(session), on_step=close)
    assert refusals == ["This session is running a request, so it is not closed: wait for it, or stop it first."]
    np.testing.assert_array_equal(disturbed.latent, session.denoise(**denoise_arguments(session)).latent)
    session.close()


def test_a_session_of_no_steps_is_refused(load: Load) -> None:
    with pytest.raises(InputError, match="A session for requests of 0 steps serves none: give 1 or more"):
        load("flux-tiny").session(steps=0)


def test_a_closed_session_runs_no_request(load: Load, denoise_arguments: MakeRequest) -> None:
    with load("flux-tiny").session() as session:
        arguments = denoise_arguments(session)
    with pytest.raises(InputError, match="session was closed: open another"):
        session.denoise(**arguments)


@pytest.mark.parametrize(
    ("name", "layout"), [("flux-emoji", "history"), ("flux-tiny", "derivatives"), ("flux-tiny", "folded")]
)
def test_steps_allocate_nothing(load: Load, denoise_arguments: MakeRequest, name: str, layout: str) -> None:
    session = load(name, layout).session()
    smallest = min(math.prod(shape) * 4 for shape in feature_shapes(session))
    assert 47 * smallest > ENOUGH  # a copy of one feature a step would show
    session.denoise(**denoise_arguments(session))
    before, peaks = 0, []

    def watch(step: int, full: bool) -> None:
        nonlocal before
        if step == 2:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
        elif step > 2:
            peaks.append(tracemalloc.get_traced_memory()[1] - before)

    try:
        session.denoise(**denoise_arguments(session), on_step=watch)
    finally:
        tracemalloc.stop()
    assert len(peaks) == 47 and max(peaks) < ENOUGH


def feature_shapes(session: Session) -> list[list[int]]:
    return [[int(n) for n in feature.shape if n != "batch"] for feature in session.manifest.features]


def test_state_bytes_are_those_of_the_layout(load: Load) -> None:
    one_slot = sum(math.prod(shape) for shape in feature_shapes(load("flux-tiny").session())) * 4
    assert load("flux-tiny").session().state_bytes == 3 * one_slot
    assert load("flux-tiny", "derivatives").session().state_bytes == 6 * one_slot
    assert load("flux-tiny").session(2).state_bytes == 6 * one_slot
    model = load("flux-tiny", "folded")
    folding = model.manifest.folding
    assert folding is not None
    one = math.prod(int(size) for size in folding.shape[1:]) * 4
    assert model.session().state_bytes == folding.accumulators * one == 3 * 5 * one
    assert model.session(2).state_bytes == 6 * 5 * one


def test_the_result_is_the_callers_and_the_noise_is_kept(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    arguments = denoise_arguments(session, cache=SHORT)
    noise = arguments["latent"].copy()
    result = session.denoise(**arguments)
    kept = result.latent.copy()
    np.testing.assert_array_equal(arguments["latent"], noise)
    session.denoise(**denoise_arguments(session, seed=9, cache=SHORT))
    np.testing.assert_array_equal(result.latent, kept)


# Arrays of other libraries


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny"])
def test_tensors_of_torch_give_the_same_image(load: Load, denoise_arguments: MakeRequest, name: str) -> None:
    session = load(name).session()
    arguments = denoise_arguments(session, cache=SHORT)
    expected = session.denoise(**arguments).latent
    session.denoise(**denoise_arguments(session, seed=1, cache=SHORT))
    tensors = {
        "latent": torch.from_numpy(arguments["latent"].copy()),
        "conditions": {key: torch.from_numpy(value.copy()) for key, value in arguments["conditions"].items()},
    }
    np.testing.assert_array_equal(session.denoise(**arguments | tensors).latent, expected)


def test_numbers_of_torch_are_looked_at_as_well(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    latent = torch.full(session.latent_shape, math.nan)
    with pytest.raises(NonFiniteError, match="The input 'latent' holds NaN"):
        session.denoise(**denoise_arguments(session, latent=latent))
    with pytest.raises(ShapeError, match=r"'latent' is torch.float64 \[1, 48, 12\], this bundle was built for float32"):
        session.denoise(**denoise_arguments(session, latent=latent.double()))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_latent_on_the_device_is_given_to_dlpack(load: Load, denoise_arguments: MakeRequest, batch: int) -> None:
    model = load("dit-tiny")  # of its rows only those of the conditional half are the images
    session = model.session(batch)
    labels = np.arange(2 * batch, dtype=np.int64)
    arguments = denoise_arguments(session, cache=SHORT, conditions={"class_labels": labels})
    expected = session.denoise(**arguments).latent
    given = session.denoise(**arguments, on_device=True).latent
    latent = np.from_dlpack(given)
    assert latent.shape == session.latent_shape and latent.dtype == np.float32
    session.denoise(**denoise_arguments(session, seed=1, cache=SHORT, conditions={"class_labels": labels}))
    np.testing.assert_array_equal(latent, expected)  # the caller's own: the next request leaves it alone


# The steps that a session is planned for


def test_a_session_is_planned_for_the_steps_that_it_is_told(load: Load, denoise_arguments: MakeRequest) -> None:
    model = load("flux-tiny")
    short, default = model.session(steps=12), model.session()
    assert (short.memory_plan.steps, default.memory_plan.steps) == (12, 50)
    latents = [s.denoise(**denoise_arguments(s, cache=SHORT)).latent for s in (short, default)]
    np.testing.assert_array_equal(*latents)
    long = CacheConfig(steps=13, interval=3, order=2)
    with pytest.raises(InputError, match=r"has 13 steps, this session was planned for up to 12: .* steps=13"):
        short.denoise(**denoise_arguments(short, cache=long))


@pytest.mark.parametrize("steps", [0, -1])
def test_a_session_for_no_steps_is_refused(load: Load, steps: int) -> None:
    with pytest.raises(InputError, match=f"A session for requests of {steps} steps serves none: give 1 or more"):
        load("flux-tiny").session(steps=steps)


def test_a_bundle_with_more_steps_by_default_is_served_by_default(
    load: Load, bundles: Callable[..., Bundle], denoise_arguments: MakeRequest
) -> None:
    manifest = bundles("flux-tiny").manifest
    cache = CacheConfig(steps=103, interval=9, order=1)
    longer = dataclasses.replace(manifest, cache=cache.to_json())
    session = LoadedModel(longer, load("flux-tiny").backend).session()
    assert session.memory_plan.steps == 103
    assert session.denoise(**denoise_arguments(session)).step_seconds.shape == (103,)


# Refusals


def test_a_busy_session_refuses_a_second_thread(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    errors: list[Exception] = []

    def other() -> None:
        try:
            session.denoise(**denoise_arguments(session, seed=1))
        except InputError as error:
            errors.append(error)

    def interfere(step: int, full: bool) -> None:
        if step in (0, 30):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    disturbed = session.denoise(**denoise_arguments(session), on_step=interfere)
    assert [str(error) for error in errors] == [
        "This session is running a request already: use one session per concurrent request."
    ] * 2
    np.testing.assert_array_equal(disturbed.latent, session.denoise(**denoise_arguments(session)).latent)


@pytest.mark.parametrize(("name", "batch", "rows"), [("flux-tiny", 9, 9), ("dit-tiny", 5, 10), ("flux-tiny", 0, 0)])
def test_a_batch_above_the_bundles_is_refused(load: Load, name: str, batch: int, rows: int) -> None:
    message = rf"batch of {batch} needs {rows} rows of the model, this bundle serves up to 8: .*--batch {rows}"
    with pytest.raises(ShapeError, match=message):
        load(name).session(batch)


def changed(arguments: Arguments, name: str, value: Any) -> Arguments:
    """Replace a condition input, or leave it out when ``value`` is None."""
    conditions = {key: kept for key, kept in arguments["conditions"].items() if key != name}
    return arguments | {"conditions": conditions if value is None else conditions | {name: value}}


@pytest.mark.parametrize(
    ("latent", "found"),
    [
        (np.zeros((1, 47, 12), np.float32), r"float32 \[1, 47, 12\]"),
        (np.zeros((2, 48, 12), np.float32), r"float32 \[2, 48, 12\]"),
        (np.zeros((1, 48, 12), np.float64), r"float64 \[1, 48, 12\]"),
        (np.zeros((1, 48, 12), np.float16), r"float16 \[1, 48, 12\]"),
        ([[1.0]], r"list \[1, 1\]"),
        (None, r"NoneType \[\]"),
    ],
)
def test_a_latent_of_another_shape_or_dtype(
    load: Load, denoise_arguments: MakeRequest, latent: Any, found: str
) -> None:
    session = load("flux-tiny").session()
    assert session.latent_shape == (1, 48, 12)
    message = rf"'latent' is {found}, this bundle was built for float32 \[1, 48, 12\]: resize the request, or build"
    with pytest.raises(ShapeError, match=message):
        session.denoise(**denoise_arguments(session, latent=latent))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pooled_projections", np.zeros((1, 21), np.float32), r"is float32 \[1, 21\], .* for float32 \[1, 20\]"),
        ("pooled_projections", np.zeros((1, 20)), r"is float64 \[1, 20\], .* for float32 \[1, 20\]"),
        ("encoder_hidden_states", np.zeros((1, 6, 24), np.float32), r"\[1, 6, 24\], .* for float32 \[1, 5, 24\]"),
        ("pooled_projections", None, r"'pooled_projections' is missing: give an array of shape \[1, 20\]"),
        ("class_labels", np.ones(1, np.int64), "no input 'class_labels'; it takes encoder_hidden_states, pooled_proj"),
    ],
)
def test_conditions_that_do_not_fit(
    load: Load, denoise_arguments: MakeRequest, name: str, value: Any, message: str
) -> None:
    session = load("flux-tiny").session()
    with pytest.raises(ShapeError, match=message):
        session.denoise(**changed(denoise_arguments(session), name, value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(load: Load, denoise_arguments: MakeRequest, value: float) -> None:
    session = load("flux-tiny").session()
    arguments = denoise_arguments(session)
    latent, pooled = arguments["latent"].copy(), arguments["conditions"]["pooled_projections"].copy()
    latent[0, 3, 4] = pooled[0, 7] = value
    for damaged, message in (
        (arguments | {"latent": latent}, "The input 'latent' holds NaN or infinity"),
        (changed(arguments, "pooled_projections", pooled), "The input 'pooled_projections' holds NaN or infinity"),
        (arguments | {"guidance": value}, f"The guidance is {value}: give a finite number"),
    ):
        with pytest.raises(NonFiniteError, match=message):
            session.denoise(**damaged)


def test_opposite_infinities_do_not_cancel(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    latent = np.zeros(session.latent_shape, np.float32)
    latent[0, 0, :2] = math.inf, -math.inf
    with pytest.raises(NonFiniteError, match="The input 'latent' holds NaN"):
        session.denoise(**denoise_arguments(session, latent=latent))


def test_large_numbers_are_no_infinity(load: Load, denoise_arguments: MakeRequest) -> None:
    """Their float32 sum would overflow, which is not to be mistaken for an infinity among them."""
    session = load("flux-tiny").session()
    latent = np.full(session.latent_shape, 1e37, np.float32)
    assert latent.sum(dtype=np.float64) > np.finfo(np.float32).max
    assert np.isfinite(session.denoise(**denoise_arguments(session, latent=latent)).latent).all()


def test_weights_with_nan_stop_the_first_step(
    copied: Callable[[str], pathlib.Path],
    digest_again: Callable[[pathlib.Path], None],
    denoise_arguments: MakeRequest,
) -> None:
    folder = copied("flux-tiny")
    weights = np.fromfile(folder / "graphs/weights.data", np.float32)
    weights[:] = np.nan
    weights.tofile(folder / "graphs/weights.data")
    digest_again(folder)
    bundle = open_bundle(folder)
    session = LoadedModel(bundle.manifest, OnnxRuntimeBackend(bundle, threads=1)).session()
    with pytest.raises(NonFiniteError, match=r"prediction of denoising step 0 holds NaN or infinity.*nothing was ret"):
        session.denoise(**denoise_arguments(session))


@pytest.mark.parametrize(
    ("layout", "cache", "message"),
    [
        ("history", CacheConfig(steps=12, order=3), "Order 3 needs 4 remembered tensors .*: use order 2, or build"),
        ("derivatives", CacheConfig(steps=12, order=3), "Order 3 needs 4 remembered tensors"),
        ("folded", CacheConfig(steps=30, interval=3, order=3), "more than the 15 accumulators .* 5 forecasts in a row"),
        ("folded", CacheConfig(steps=30, interval=20), "more than the 15 accumulators of this bundle"),
        ("derivatives", CacheConfig(steps=12, predictor="newton"), "'newton' was asked of the state layout"),
        ("history", CacheConfig(steps=8), "with 8 steps or fewer there is too little to forecast from"),
        ("history", CacheConfig(steps=12, interval=1), "Interval 1 makes every step full, so nothing is forecast"),
        ("history", CacheConfig(steps=12, warmup_steps=12), "cover all 12 steps, so nothing is forecast"),
    ],
)
def test_schedules_that_cannot_be_served(
    load: Load, denoise_arguments: MakeRequest, layout: str, cache: CacheConfig, message: str
) -> None:
    session = load("flux-tiny", layout).session()
    with pytest.raises(ScheduleError, match=message):
        session.denoise(**denoise_arguments(session, cache=cache))


def test_a_sampler_for_other_steps(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    sampler = denoise_arguments(session, cache=SHORT)["sampler"]
    with pytest.raises(InputError, match="The sampler has 12 steps, the schedule 50: give both the same"):
        session.denoise(**denoise_arguments(session, sampler=sampler))
