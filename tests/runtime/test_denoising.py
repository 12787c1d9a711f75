"""A loop in the hands of its owner: the image of the whole loop, from any thread, and abandoned at any step."""

import dataclasses
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.config import CacheConfig
from taylorseer.errors import InputError, NonFiniteError
from taylorseer.runtime.session import LoadedModel, Session
from tests.runtime.gpu import NullGpu

Load = Callable[..., LoadedModel]
MakeRequest = Callable[..., dict[str, Any]]

SHORT = CacheConfig(steps=12, interval=3, order=2, warmup_steps=2)


@pytest.fixture
def session(load: Load) -> Session:
    return load("flux-tiny").session()


def test_step_by_step_is_the_whole_loop(session: Session, denoise_arguments: MakeRequest) -> None:
    expected = session.denoise(**denoise_arguments(session, cache=SHORT))
    with session.begin(**denoise_arguments(session, cache=SHORT)) as loop:
        assert (loop.begun, loop.steps) == (0, 12)
        for step in range(12):
            assert loop.advance() and loop.begun == step + 1
            loop.wait(step)
        assert not loop.advance() and loop.begun == 12
        result = loop.result()
    np.testing.assert_array_equal(result.latent, expected.latent)
    assert result.full_steps.tolist() == expected.full_steps.tolist() == [loop.is_full(step) for step in range(12)]
    assert result.step_seconds.shape == (12,)


def test_every_step_from_another_thread(session: Session, denoise_arguments: MakeRequest) -> None:
    expected = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
    with session.begin(**denoise_arguments(session, cache=SHORT)) as loop:
        for _ in range(12):
            thread = threading.Thread(target=loop.advance)
            thread.start()
            thread.join()
        np.testing.assert_array_equal(loop.result().latent, expected)


def test_two_loops_in_turns_know_nothing_of_each_other(load: Load, denoise_arguments: MakeRequest) -> None:
    sessions = [load("dit-tiny", "folded").session() for _ in range(2)]
    arguments = [denoise_arguments(session, seed, cache=SHORT) for seed, session in enumerate(sessions)]
    expected = [session.denoise(**given).latent for session, given in zip(sessions, arguments, strict=True)]
    loops = [session.begin(**given) for session, given in zip(sessions, arguments, strict=True)]
    for _ in range(12):
        for loop in loops:
            loop.advance()
    for loop, latent in zip(loops, expected, strict=True):
        np.testing.assert_array_equal(loop.result().latent, latent)


@pytest.mark.parametrize("steps", [0, 1, 7, 12])
def test_an_abandoned_loop_leaves_nothing(session: Session, denoise_arguments: MakeRequest, steps: int) -> None:
    expected = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
    with session.begin(**denoise_arguments(session, seed=1, cache=SHORT)) as loop:
        for _ in range(steps):
            loop.advance()
    np.testing.assert_array_equal(session.denoise(**denoise_arguments(session, cache=SHORT)).latent, expected)
    for use in (loop.advance, loop.result, lambda: list(loop)):
        with pytest.raises(InputError, match="This loop was closed: begin another one"):
            use()
    loop.close()  # a second time does no harm


def test_a_forgotten_loop_lets_the_session_go(session: Session, denoise_arguments: MakeRequest) -> None:
    session.begin(**denoise_arguments(session, cache=SHORT)).advance()
    gc.collect()
    session.denoise(**denoise_arguments(session, cache=SHORT))


def test_a_session_is_busy_while_its_loop_is_open(session: Session, denoise_arguments: MakeRequest) -> None:
    with session.begin(**denoise_arguments(session, cache=SHORT)) as loop:
        with pytest.raises(InputError, match="This session is running a request already"):
            session.begin(**denoise_arguments(session, cache=SHORT))
        with pytest.raises(InputError, match="running a request, so it is not closed"):
            session.close()
        loop.advance()
        with pytest.raises(InputError, match="has done 1 of its 12 steps: advance it to its end first"):
            loop.result()
    session.close()


def test_two_threads_on_one_loop(session: Session, denoise_arguments: MakeRequest) -> None:
    refused: list[str] = []

    def interfere() -> None:
        for use in (loop.advance, loop.close):
            with pytest.raises(InputError, match="Another thread is advancing this loop: let one thread") as caught:
                use()
            refused.append(str(caught.value))

    class Interrupted:
        """The session's step inputs, with another thread in the midst of the fourth step."""

        def __init__(self, inputs: Any) -> None:
            self.inputs = inputs

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inputs, name)

        def select(self, step: int, *, full: bool) -> None:
            if step == 3:
                thread = threading.Thread(target=interfere)
                thread.start()
                thread.join()
            self.inputs.select(step, full=full)

    expected = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
    session._inputs = Interrupted(session._inputs)
    with session.begin(**denoise_arguments(session, cache=SHORT)) as loop:
        while loop.advance():
            pass
        np.testing.assert_array_equal(loop.result().latent, expected)
    assert len(refused) == 2


def test_a_failing_step_ends_the_loop(session: Session, denoise_arguments: MakeRequest) -> None:
    arguments = denoise_arguments(session, cache=SHORT)
    updates = arguments["sampler"].updates.copy()
    updates[3] = np.nan  # a forecast step: the next full one tells
    arguments["sampler"] = dataclasses.replace(arguments["sampler"], updates=updates)
    with session.begin(**arguments) as loop, pytest.raises(NonFiniteError, match="denoising step 4 holds NaN"):
        while loop.advance():
            pass
    assert loop.begun == 4
    session.denoise(**denoise_arguments(session, cache=SHORT))


def test_steps_are_enqueued_without_waiting_for_the_device(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    with null_gpu.load("dit-tiny").session(steps=12) as session:
        expected = session.denoise(**denoise_arguments(session, cache=SHORT)).latent
        null_gpu.device.lazy = True
        with session.begin(**denoise_arguments(session, cache=SHORT)) as loop:
            with null_gpu.device.counting() as counter:
                while loop.advance():
                    pass
            assert counter["cudaGraphLaunch"] == 12 == counter["cudaEventRecord"] - 1
            assert counter["cudaStreamSynchronize"] == counter["cudaEventSynchronize"] == 0
            np.testing.assert_array_equal(loop.result().latent, expected)


def test_waiting_for_a_step_waits_for_no_later_one(null_gpu: NullGpu, denoise_arguments: MakeRequest) -> None:
    with null_gpu.load("dit-tiny").session(steps=12) as session:
        null_gpu.device.lazy = True
        latent = session.memory["latent.1"]
        with session.begin(**denoise_arguments(session, cache=SHORT)) as loop:
            for _ in range(3):
                loop.advance()  # the first and the third write the same latent
            loop.wait(0)
            first = null_gpu.device.content(latent.address, latent.nbytes)
            loop.wait()
            assert (null_gpu.device.content(latent.address, latent.nbytes) != first).any()
