"""Tuning: what comes out is served, within the budget and no worse than the preset on what it was calibrated on."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest

from taylorseer.bundle import Bundle
from taylorseer.errors import InputError, PromptError, ScheduleError
from taylorseer.runtime.fidelity import psnr_db
from taylorseer.runtime.generation import Generator
from taylorseer.runtime.step_plan import BuiltState, plan_steps
from taylorseer.runtime.tuning import Tuning, tune

Bundles = Callable[..., Bundle]

REQUESTS = [("red heart", 0), ("rocket", 1)]
CLASSES = [("0", 0), ("1", 0)]
STEPS, BUDGET = 12, 4


@pytest.fixture(scope="module")
def emoji(bundles: Bundles) -> Iterator[Generator]:
    with Generator(bundles("flux-emoji", "folded"), threads=1) as generator:
        yield generator


@pytest.fixture(scope="module")
def progress() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def found(emoji: Generator, progress: list[tuple[str, float]]) -> Tuning:
    return tune(emoji, REQUESTS, BUDGET, steps=STEPS, search_seconds=1.0, on_progress=lambda *now: progress.append(now))


def test_it_is_better_than_the_preset_where_it_was_calibrated(found: Tuning) -> None:
    assert found.preset is found.tried[0] and found.preset.name == "preset"
    assert found.best.median > found.preset.median + 1
    assert all(
        found.best.mean >= candidate.mean for candidate in found.tried if candidate.median >= found.preset.median
    )


def test_the_budget_is_kept_and_the_bundle_serves_it(emoji: Generator, found: Tuning) -> None:
    built = BuiltState.of_bundle(emoji.manifest)
    for candidate in (*found.tried, found.best):
        assert len(candidate.cache.schedule().full_steps) == BUDGET and candidate.cache.steps == STEPS
        plan_steps(candidate.cache, built)


def test_the_numbers_are_those_of_the_pictures(emoji: Generator, found: Tuning) -> None:
    for (prompt, seed), close in zip(REQUESTS, found.best.psnr_db, strict=True):
        reference, made = (
            emoji.generate(prompt, seed=seed, cache=found.best.cache, every_step_full=full).image
            for full in (True, False)
        )
        assert reference is not None and made is not None
        assert close == psnr_db(reference, made)


def test_every_kind_is_tried(found: Tuning) -> None:
    names = [candidate.name for candidate in found.tried]
    for part in (
        "preset's placement",
        "even placement",
        "searched placement",
        "taylor",
        "fitted",
        "order 0",
        "order 2",
    ):
        assert any(part in name for name in names), part
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("run", "cramped"), [(2, True), (3, False)])
def test_little_room_is_said(found: Tuning, run: int, cramped: bool) -> None:
    assert found.longest_run == 6 and not found.is_cramped  # twice the run of even full steps
    assert dataclasses.replace(found, longest_run=run).is_cramped == cramped


def test_progress_is_a_share(progress: list[tuple[str, float]], found: Tuning) -> None:
    assert found.moves > 0
    assert {what for what, _ in progress} >= {"recording every step full", "moving full steps"}
    assert all(0 <= share < 1 for _, share in progress)


def test_nothing_better_leaves_the_preset(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taylorseer.runtime.trial.closeness_db", lambda reference, made: 30.0)
    with Generator(bundles("dit-tiny"), threads=1) as generator:
        found = tune(generator, CLASSES, BUDGET, steps=STEPS)
    assert found.best is found.preset and found.moves == 0 and len(found.tried) > 3


def test_without_time_derivatives_keep_the_weights_of_the_paper(bundles: Bundles) -> None:
    with Generator(bundles("dit-tiny", "derivatives"), threads=1) as generator:
        found = tune(generator, CLASSES, BUDGET, steps=STEPS, search_seconds=0)
    assert {candidate.cache.predictor for candidate in found.tried} == {"taylor"}
    assert len(found.tried) > 3 and found.moves == 0


@pytest.mark.parametrize(
    ("requests", "budget", "error", "message"),
    [
        (REQUESTS[:1], 4, InputError, "One prompt says nothing about others: calibrate on two or more"),
        ([("rocket", 0), ("rocket", 1)], 4, InputError, "One prompt says nothing about others"),
        (REQUESTS, 12, ScheduleError, "A budget of 12 full steps in a loop of 12"),
        (REQUESTS, 0, ScheduleError, "A budget of 0 full steps"),
        (REQUESTS, 13, ScheduleError, "A budget of 13"),
        ([("rocket", 0), ("rokcet", 0)], 4, PromptError, "rokcet"),
    ],
)
def test_what_cannot_be_tuned(
    emoji: Generator, requests: list[tuple[str, int]], budget: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tune(emoji, requests, budget, steps=STEPS)


def test_a_budget_below_what_the_window_reaches(emoji: Generator) -> None:
    with pytest.raises(ScheduleError, match=r"3 full steps with at most 15 forecasts after each reach 48 of 50 steps"):
        tune(emoji, REQUESTS, 3, steps=50)


def test_a_schedule_that_is_too_short(emoji: Generator) -> None:
    with pytest.raises(ScheduleError):
        tune(emoji, REQUESTS, 3, steps=8)
