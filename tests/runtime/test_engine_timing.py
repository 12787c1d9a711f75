"""Engines timed in a session: as often as asked, on its own state, and the session is as good as before."""

from typing import Any

import numpy as np
import pytest

from taylorseer.runtime.engine_timing import inspector_text, layer_reports, time_engine
from taylorseer.runtime.session import Session

KINDS = ("prepare", "full", "forecast", "update")


class CountedCall:
    def __init__(self, call: Any, runs: list[str], kind: str) -> None:
        self.call, self.runs, self.kind = call, runs, kind

    def run(self) -> None:
        self.runs.append(self.kind)
        self.call.run()


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_is_timed_run_by_run(load: Any, denoise_arguments: Any, kind: str) -> None:
    with load("dit-tiny").session() as session:
        session.denoise(**denoise_arguments(session))
        engine, asked = time_engine(session, kind, 7)
    assert engine.shape == asked.shape == (7,)
    # ONNX Runtime returns when it is done: from mark to mark there is all of a run, and the mark.
    assert (asked > 0).all() and (engine >= asked).all(), "whatever the number of runs between two marks"


def test_short_runs_are_timed_together_and_a_few_before_are_not(
    load: Any, denoise_arguments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load("dit-tiny").session() as session:
        session.denoise(**denoise_arguments(session))
        runs: list[str] = []
        true = session.model.engines["forecast"].bind
        monkeypatch.setattr(
            session.model.engines["forecast"], "bind", lambda tensors: CountedCall(true(tensors), runs, "forecast")
        )
        time_engine(session, "forecast", 5)
    assert len(runs) % 5 == 3 and 5 + 3 <= len(runs) <= 5 * 50 + 3


def test_the_session_serves_as_before(load: Any, denoise_arguments: Any) -> None:
    with load("dit-tiny").session() as session:
        before = _latent(session, denoise_arguments)
        for kind in KINDS:
            time_engine(session, kind, 2)
        assert np.array_equal(_latent(session, denoise_arguments), before)


def test_only_tensorrt_tells_of_layers(load: Any) -> None:
    with load("dit-tiny").session() as session:
        for kind in KINDS:
            assert list(layer_reports(session, kind, 3)) == [] and inspector_text(session, kind) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_on_a_device(gpu: Any, denoise_arguments: Any, kind: str) -> None:
    with gpu.load("dit-tiny").session() as session:
        session.denoise(**denoise_arguments(session))
        engine, asked = time_engine(session, kind, 4)
        assert engine.shape == asked.shape == (4,) and (engine > 0).all() and (asked > 0).all()


def _latent(session: Session, denoise_arguments: Any) -> Any:
    return session.denoise(**denoise_arguments(session)).latent
