"""The requests of the study: held-out ones are held out."""

import json

import pytest

from taylorseer.exporter.checkpoints import demo_checkpoint
from tools.quality_systems import SYSTEMS, System

ALL = pytest.mark.parametrize("system", SYSTEMS.values(), ids=list(SYSTEMS))


@ALL
def test_a_tuned_schedule_is_measured_on_other_prompts_and_other_noise(system: System) -> None:
    calibrated, held_out = dict(system.calibrated), dict(system.held_out)
    assert not calibrated.keys() & held_out.keys()
    assert not set(calibrated.values()) & {seed for _, seed in system.held_out}
    assert not {*system.calibrated, *system.held_out} & {*system.grid, *system.guard}


@ALL
def test_every_request_has_noise_of_its_own(system: System) -> None:
    for requests in (system.grid, system.guard, system.calibrated, system.held_out):
        assert len({seed for _, seed in requests}) == len(requests)


@ALL
def test_the_guards_are_measured_on_the_grids_requests_and_more(system: System) -> None:
    assert system.guard[: len(system.grid)] == system.grid
    assert len(system.guard) > len(system.grid)


@ALL
def test_enough_samples_for_a_distance(system: System) -> None:
    assert system.samples * system.frames >= 1000


def test_clips_are_of_prompts_that_were_never_trained() -> None:
    system = SYSTEMS["hunyuan-video-emoji"]
    trained = set(json.loads((demo_checkpoint(system.model) / "trained.json").read_text("utf-8")))
    assert not trained & {prompt for prompt, _ in (*system.grid, *system.guard, *system.held_out)}


def test_classes_are_tuned_and_measured_apart_from_the_grid() -> None:
    system = SYSTEMS["dit-emoji"]
    seen = {prompt for prompt, _ in system.guard}
    assert not seen & {prompt for prompt, _ in (*system.calibrated, *system.held_out)}
