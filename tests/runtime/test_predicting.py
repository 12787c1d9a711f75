"""A predictor in a loop of the test's own against a session on the same request, and what it refuses."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, NonFiniteError, ScheduleError, ShapeError
from taylorseer.runtime.predicting import Predictor
from taylorseer.runtime.samplers import Sampler
from taylorseer.runtime.session import LoadedModel
from tests.runtime.gpu import Gpu

Arguments = dict[str, Any]
Load = Callable[..., LoadedModel]
MakeRequest = Callable[..., Arguments]

SHORT = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)


def begin(predictor: Predictor, arguments: Arguments, **changes: Any) -> None:
    """Begin the request that is a session's ``arguments``."""
    pipeline = predictor.manifest.pipeline
    given = {
        "conditions": arguments["conditions"],
        "timesteps": arguments["sampler"].timesteps * np.float32(pipeline.timestep_scale),
        "cache": arguments["cache"],
        "guidance": arguments["guidance"] * pipeline.guidance_factor if pipeline.guidance_mode == "embedded" else None,
    }
    predictor.begin(**(given | changes))


def loop(predictor: Predictor, arguments: Arguments, **options: Any) -> NDArray[np.float32]:
    """Denoise as the session does, with the sampler in NumPy."""
    sampler: Sampler = arguments["sampler"]
    latent: NDArray[np.float32] = arguments["latent"]
    for step in range(sampler.steps):
        prediction = predictor.predict(step, np.concatenate([latent] * predictor.rows), **options)
        prediction = prediction if isinstance(prediction, np.ndarray) else prediction.numpy()
        if predictor.rows == 2:
            conditional, unconditional = prediction[:, : latent.shape[1]]
            prediction = (unconditional + np.float32(arguments["guidance"]) * (conditional - unconditional))[None]
        latent = sampler.step(latent, prediction, step)
    return latent


def relative(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
@pytest.mark.parametrize("name", ["flux-tiny", "dit-tiny", "hunyuan-video-tiny"])
def test_the_loop_is_the_sessions(load: Load, denoise_arguments: MakeRequest, name: str, layout: str) -> None:
    model = load(name, layout)
    with model.session() as session:
        arguments = denoise_arguments(session, cache=SHORT)
        result = session.denoise(**arguments)
        baseline = session.denoise(**arguments, every_step_full=True)
    with Predictor(model, model.manifest.rows_per_image, 20) as predictor:
        begin(predictor, arguments)
        assert predictor.full_steps.tolist() == result.full_steps.tolist()
        assert relative(loop(predictor, arguments), result.latent) <= 1e-5
        begin(predictor, arguments, every_step_full=True)
        assert relative(loop(predictor, arguments), baseline.latent) <= 1e-5


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_a_predictor_on_a_gpu_is_the_session_there(gpu: Gpu, denoise_arguments: MakeRequest, layout: str) -> None:
    model = gpu.load("flux-tiny", layout)
    with model.session() as session, Predictor(model, 1, SHORT.steps) as predictor:
        arguments = denoise_arguments(session, cache=SHORT)
        wanted = session.denoise(**arguments).latent
        for on_device in (False, True):
            begin(predictor, arguments)
            assert relative(loop(predictor, arguments, on_device=on_device), wanted) <= 1e-5


@pytest.mark.parametrize("layout", ["history", "derivatives", "folded"])
def test_a_request_that_ends_early_leaves_nothing(load: Load, denoise_arguments: MakeRequest, layout: str) -> None:
    model = load("flux-tiny", layout)
    with model.session() as session, Predictor(model, 1, 12) as predictor, Predictor(model, 1, 12) as fresh:
        first, second = (denoise_arguments(session, seed=seed, cache=SHORT) for seed in (1, 2))
        begin(predictor, first)
        for step in range(7):
            predictor.predict(step, first["latent"])
        predictor.end()
        with pytest.raises(InputError, match="Denoising step 7 was asked, and no request is running: begin one"):
            predictor.predict(7, first["latent"])
        for one in (predictor, fresh):
            begin(one, second)
        np.testing.assert_array_equal(loop(predictor, second), loop(fresh, second))


def test_a_batch_that_is_no_pair_of_halves(load: Load, denoise_arguments: MakeRequest) -> None:
    """Rows are the model's, whatever they stand for: each is what it is alone."""
    model = load("dit-tiny", "history")
    random = np.random.default_rng(0)
    latents = random.standard_normal((3, 3, 8, 8), np.float32)
    labels = np.array([1, 5, 9], np.int64)
    with model.session() as session:
        arguments = denoise_arguments(session, cache=SHORT)
    with Predictor(model, 3, 12) as together, Predictor(model, 1, 12) as alone:
        begin(together, arguments, conditions={"class_labels": labels})
        found = [together.predict(step, latents) for step in range(4)]
        for row in range(3):
            begin(alone, arguments, conditions={"class_labels": labels[row : row + 1]})
            for step in range(4):
                assert relative(alone.predict(step, latents[row : row + 1])[0], found[step][row]) <= 1e-5


@pytest.fixture
def running(load: Load, denoise_arguments: MakeRequest) -> Any:
    """A predictor of flux-tiny with a request begun, and the request."""
    model = load("flux-tiny")
    with model.session() as session:
        arguments = denoise_arguments(session, cache=SHORT)
    with Predictor(model, 1, 12) as predictor:
        begin(predictor, arguments)
        yield predictor, arguments


def test_steps_out_of_order_are_refused_and_the_request_goes_on(running: tuple[Predictor, Arguments]) -> None:
    predictor, arguments = running
    expected = predictor.predict(0, arguments["latent"])
    for step in (0, 2):
        with pytest.raises(
            InputError, match=f"Denoising step {step} was asked, and 1 comes next: ask for the steps in"
        ):
            predictor.predict(step, arguments["latent"])
    with pytest.raises(ShapeError, match=r"The input 'latent' is float32 \[1, 3\]"):
        predictor.predict(1, np.zeros((1, 3), np.float32))
    rest = [predictor.predict(step, arguments["latent"]) for step in range(1, 12)]
    with pytest.raises(InputError, match="Denoising step 12 was asked, and all 12 steps are done: begin another"):
        predictor.predict(12, arguments["latent"])
    begin(predictor, arguments)
    for step, prediction in enumerate([expected, *rest]):
        np.testing.assert_array_equal(predictor.predict(step, arguments["latent"]), prediction)


def test_a_prediction_is_the_callers_own(running: tuple[Predictor, Arguments]) -> None:
    predictor, arguments = running
    first = predictor.predict(0, arguments["latent"])
    kept = first.copy()
    predictor.predict(1, arguments["latent"] + 1)
    np.testing.assert_array_equal(first, kept)


def test_a_prediction_that_is_not_finite_ends_the_request(running: tuple[Predictor, Arguments]) -> None:
    predictor, arguments = running
    huge = np.full_like(arguments["latent"], 3e38)
    with pytest.raises(NonFiniteError, match="The prediction of denoising step 0 holds NaN or infinity"):
        predictor.predict(0, huge)
    with pytest.raises(InputError, match="no request is running"):
        predictor.predict(0, arguments["latent"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"guidance": None}, InputError, "The model takes a guidance, and the request has None: give it"),
        ({"guidance": float("nan")}, NonFiniteError, "The guidance holds NaN"),
        ({"cache": dataclasses.replace(SHORT, steps=20)}, ShapeError, r"'timesteps' is float32 \[12\], .* \[20\]"),
        ({"cache": dataclasses.replace(SHORT, steps=8)}, ScheduleError, "8 steps or fewer"),
        ({"timesteps": np.full(12, np.inf, np.float32)}, NonFiniteError, "'timesteps' holds NaN or infinity"),
        ({"conditions": {}}, ShapeError, "The input 'encoder_hidden_states' is missing"),
    ],
    ids=str,
)
def test_requests_that_are_refused(
    running: tuple[Predictor, Arguments], changes: Arguments, error: type[InputError], message: str
) -> None:
    predictor, arguments = running
    with pytest.raises(error, match=message):
        begin(predictor, arguments, **changes)
    with pytest.raises(InputError, match="no request is running"):
        predictor.predict(0, arguments["latent"])


def test_more_steps_than_there_is_memory_for(running: tuple[Predictor, Arguments]) -> None:
    predictor, arguments = running
    longer = {"timesteps": np.linspace(1, 0.1, 20, dtype=np.float32), "cache": dataclasses.replace(SHORT, steps=20)}
    with pytest.raises(InputError, match="The request has 20 steps, this predictor has memory for 12: open one for"):
        begin(predictor, arguments, **longer)


def test_a_model_without_guidance_takes_none(load: Load, denoise_arguments: MakeRequest) -> None:
    model = load("dit-tiny")
    with model.session() as session, Predictor(model, 2, 12) as predictor:
        arguments = denoise_arguments(session, cache=SHORT)
        with pytest.raises(InputError, match=r"The model takes no guidance, and the request has 4\.0: drop it"):
            begin(predictor, arguments, guidance=4.0)


def test_a_batch_that_is_too_large(load: Load) -> None:
    with pytest.raises(ShapeError, match="A batch of 9 needs 9 rows of the model, this bundle serves up to 8"):
        Predictor(load("flux-tiny"), 9, 12)


def test_two_threads_and_a_closed_predictor(running: tuple[Predictor, Arguments]) -> None:
    predictor, arguments = running
    errors: list[str] = []

    def ask() -> None:
        try:
            predictor.predict(0, arguments["latent"])
        except InputError as error:
            errors.append(str(error))

    with predictor._busy:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    assert errors == ["This session is running a request already: use one session per concurrent request."]
    predictor.close()
    with pytest.raises(InputError, match="This session was closed: open another one"):
        predictor.predict(0, arguments["latent"])
