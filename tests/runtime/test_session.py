"""The session: memory made once, requests that know nothing of each other, and every refusal."""

import dataclasses
import math
import pathlib
import threading
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.engines.onnxruntime_builder import build_onnxruntime
from taylorseer.errors import InputError, NonFiniteError, ScheduleError, ShapeError
from taylorseer.exporter.families import load_model
from taylorseer.exporter.workflow import ExportRequest, export
from taylorseer.runtime.backend import Buffer, Call, Engine, HostBuffer
from taylorseer.runtime.latents import initial_noise
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

LAYOUTS_AGREE = 1e-5
"""Differences are divided and multiplied again in float32, and fed back through 50 steps."""

ENOUGH = 64 * 1024
"""Bytes of Python's own bookkeeping in 47 steps."""


# What a loop gives


@pytest.mark.parametrize("name", MODELS)
def test_a_request_leaves_nothing_for_the_next(load: Load, denoise_arguments: MakeRequest, name: str) -> None:
    session = load(name).session()
    first = session.denoise(**denoise_arguments(session, seed=1, cache=SHORT))
    second = session.denoise(**denoise_arguments(session, seed=2, cache=SHORT))
    for seed, result in ((1, first), (2, second)):
        fresh = load(name).session()
        alone = fresh.denoise(**denoise_arguments(fresh, seed=seed, cache=SHORT))
        np.testing.assert_array_equal(result.latent, alone.latent)
    assert relative_error(first.latent, second.latent) > 0.1


class Poison:
    """A sampler that leaves a latent of NaN after one step, as a model that diverges would."""

    def __init__(self, sampler: Sampler, step: int) -> None:
        self.steps, self.timesteps, self.initial_noise_scale = sampler.steps, sampler.timesteps, 1.0
        self._sampler, self._step = sampler, step

    def prepare(self, shape: Sequence[int]) -> None:
        self._sampler.prepare(shape)

    def step(self, latent: NDArray[np.float32], prediction: NDArray[np.float32], step: int) -> None:
        self._sampler.step(latent, prediction, step)
        if step == self._step:
            latent.fill(np.nan)


@pytest.mark.parametrize(("layout", "step"), [("history", 1), ("history", 2), ("derivatives", 1), ("derivatives", 2)])
def test_a_failed_request_leaves_nothing_either(
    load: Load, denoise_arguments: MakeRequest, layout: str, step: int
) -> None:
    """It fails at the second or third full step, so that NaN is left where the next request writes late or never."""
    session, fresh = load("flux-tiny", layout).session(), load("flux-tiny", layout).session()
    failing = denoise_arguments(session)
    failing["sampler"] = Poison(failing["sampler"], step - 1)
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


@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny"])
def test_both_layouts_agree_over_a_loop(load: Load, denoise_arguments: MakeRequest, name: str) -> None:
    latents = {}
    for layout in ("history", "derivatives"):
        session = load(name, layout).session()
        latents[layout] = session.denoise(**denoise_arguments(session)).latent
    assert relative_error(latents["derivatives"], latents["history"]) <= LAYOUTS_AGREE


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("flux-tiny", "history"),
        ("flux-tiny", "derivatives"),
        ("dit-tiny", "history"),
        ("dit-tiny", "derivatives"),
        ("hunyuan-video-tiny", "history"),
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
    """Denoise with ONNX Runtime alone: the full graph at every step, guidance written out."""
    graph, pipeline, sampler = bundle.manifest.graphs["full"], bundle.manifest.pipeline, arguments["sampler"]
    engine = onnxruntime.InferenceSession(bundle.path(graph.file), providers=["CPUExecutionProvider"])
    rows = 2 if pipeline.guidance_mode == "classifier-free" else 1
    latent: NDArray[np.float32] = arguments["latent"].copy()
    for step, timestep in enumerate(sampler.timesteps):
        inputs = dict(arguments["conditions"])
        for spec in graph.inputs:
            if spec.role == "latent":
                inputs[spec.name] = np.concatenate([latent] * rows)
            elif spec.role == "timestep":
                inputs[spec.name] = np.full(rows, timestep * pipeline.timestep_scale, np.float32)
            elif spec.role == "guidance":
                inputs[spec.name] = np.full(rows, arguments["guidance"] * pipeline.guidance_factor, np.float32)
        (prediction,) = engine.run(["prediction"], inputs)
        if rows == 2:
            conditional, unconditional = prediction[:1, : latent.shape[1]], prediction[1:, : latent.shape[1]]
            prediction = unconditional + np.float32(arguments["guidance"]) * (conditional - unconditional)
        sampler.step(latent, prediction, step)
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


def test_a_batch_is_its_images_one_by_one(load: Load, denoise_arguments: MakeRequest) -> None:
    model = load("dit-tiny")  # its batch of 2 images is 4 rows: conditional ones first
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
    """ONNX Runtime, with a record of what was allocated and of the memory that each call works on."""

    def __init__(self, bundle: Bundle) -> None:
        self.inner = OnnxRuntimeBackend(bundle, threads=1)
        self.allocations: list[HostBuffer] = []
        self.addresses: list[dict[str, int]] = []

    def load(self, kind: str) -> "Engine":
        engine, watched = self.inner.load(kind), self

        class Watching:
            def bind(self, tensors: Mapping[str, Any]) -> Call:
                call, memory = engine.bind(tensors), {n: t.host.ctypes.data for n, t in tensors.items()}

                class Run:
                    def run(self) -> None:
                        watched.addresses.append(memory)
                        call.run()

                return Run()

        return Watching()

    def allocate(self, shape: tuple[int, ...], dtype: str) -> HostBuffer:
        self.allocations.append(self.inner.allocate(shape, dtype))
        return self.allocations[-1]

    def allocate_state(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        return self.allocate(shape, dtype)


@pytest.mark.parametrize("layout", ["history", "derivatives"])
def test_all_memory_is_made_with_the_session(
    bundles: Callable[..., Bundle], denoise_arguments: MakeRequest, layout: str
) -> None:
    bundle = bundles("flux-tiny", layout)
    backend = WatchedBackend(bundle)
    session = LoadedModel(bundle.manifest, backend).session()
    made = len(backend.allocations)
    owned = {buffer.host.ctypes.data for buffer in backend.allocations}
    runs = []
    for seed in range(2):
        session.denoise(**denoise_arguments(session, seed=seed))
        runs.append(backend.addresses[:])
        backend.addresses.clear()
    assert len(backend.allocations) == made and len(owned) == made
    assert runs[0] == runs[1] and len(runs[0]) == 50
    assert all(set(memory.values()) <= owned for memory in runs[0])


def test_no_engine_reads_the_memory_that_it_writes(
    bundles: Callable[..., Bundle], denoise_arguments: MakeRequest
) -> None:
    bundle = bundles("flux-tiny", "derivatives")
    backend = WatchedBackend(bundle)
    session = LoadedModel(bundle.manifest, backend).session()
    result = session.denoise(**denoise_arguments(session))
    for full, memory in zip(result.full_steps, backend.addresses, strict=True):
        graph = bundle.manifest.graphs["full" if full else "forecast"]
        read, written = ({memory[spec.name] for spec in specs} for specs in (graph.inputs, graph.outputs))
        assert not read & written


@pytest.mark.parametrize(("name", "layout"), [("flux-emoji", "history"), ("flux-tiny", "derivatives")])
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


def test_the_result_is_the_callers_and_the_noise_is_kept(load: Load, denoise_arguments: MakeRequest) -> None:
    session = load("flux-tiny").session()
    arguments = denoise_arguments(session, cache=SHORT)
    noise = arguments["latent"].copy()
    result = session.denoise(**arguments)
    kept = result.latent.copy()
    np.testing.assert_array_equal(arguments["latent"], noise)
    session.denoise(**denoise_arguments(session, seed=9, cache=SHORT))
    np.testing.assert_array_equal(result.latent, kept)


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
