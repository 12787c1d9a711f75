"""``tune``: the schedule file, what takes it, and every refusal."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.bundle import Bundle
from taylorseer.cli import main
from taylorseer.schedule_file import load_schedule

Run = Callable[..., Any]
Bundles = Callable[..., Bundle]

PROMPTS = "red heart\n\n  rocket \npizza\npenguin\nrocket\n"
SHORT = ("--steps", 12, "--budget", 4, "--minutes", 0)


@pytest.fixture
def prompts(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "prompts"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def schedule(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What the command writes with two seeds for each prompt."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "prompts").write_text(PROMPTS)
    arguments = (*SHORT, "--prompts", folder / "prompts", "--seeds", 2, "--output", folder / "new" / "tuned.json")
    assert main(["tune", str(bundles("flux-emoji").folder), *map(str, arguments), "--json"]) == 0
    return folder / "new" / "tuned.json"


def test_a_file_that_generate_compare_and_plan_take(
    run: Run, bundles: Bundles, schedule: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    file, folder = load_schedule(schedule), bundles("flux-emoji").folder
    assert (file.model, file.budget, file.cache.steps) == ("flux-emoji", 4, 12)
    image = tmp_path / "image.png"
    made = run("generate", folder, "--prompt", "pizza", "--schedule", schedule, "--output", image)
    assert "4 of 12 steps full" in made.out and image.exists()
    compared = run("compare", folder, "--prompt", "rocket", "--schedule", schedule, "--json").json
    assert tuple(compared["full_steps"]) == file.cache.schedule().full_steps and compared["steps"] == 12
    planned = run("plan", folder, "--schedule", schedule, "--steps", 12, "--json").json
    assert planned["cache"] == file.cache.to_json() and planned["state_of"] == str(folder)
    assert run("plan", "--schedule", schedule, "--json").json["state_of"] is None


def test_half_of_the_prompts_is_held_out_with_other_noise(schedule: pathlib.Path) -> None:
    file = load_schedule(schedule)
    calibrated, held = file.calibration["requests"], file.measured["requests"]
    assert len(calibrated) == len(held) == file.measured["pairs"] == 4
    words = [{prompt for prompt, _ in requests} for requests in (calibrated, held)]
    assert not words[0] & words[1] and words[0] | words[1] == {"red heart", "rocket", "pizza", "penguin"}
    assert {seed for _, seed in calibrated} == {0, 1} and {seed for _, seed in held} == {2, 3}
    assert file.measured["gain_db"] == file.measured["tuned_db"] - file.measured["preset_db"]
    assert file.calibration["chosen"] in file.calibration["median_psnr_db"]


def test_text_json_and_prompts_of_their_own(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    (tmp_path / "classes").write_text("0\n1\n")
    (tmp_path / "others").write_text("2\n3\n4\n")
    output = tmp_path / "tuned.json"
    asked = ("tune", bundles("dit-tiny").folder, *SHORT, "--prompts", tmp_path / "classes", "--output", output)
    held_out = ("--held-out", tmp_path / "others")
    text = run(*asked, *held_out).out
    assert text.startswith("4 of 12 steps full; median PSNR in dB against every step full\n")
    for line in ("\npreset  ", "\ntuned  ", "preset: interval", "on 3 held-out pairs ", "95 % interval", output.name):
        assert line in text
    assert {prompt for prompt, _ in load_schedule(output).measured["requests"]} == {"2", "3", "4"}
    assert run(*asked, *held_out, "--json").json == json.loads(output.read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", 0), "--seeds 0 calibrates on nothing: give 1 or more"),
        (("--split-seed", -1), "--split-seed -1 is negative"),
        (("--minutes", "nan"), "--minutes nan is no time: give 0 or more"),
        (("--output", "tuned.png"), "'tuned.png' is no schedule file: give --output FILE.json"),
        (("--prompts", "nowhere"), "nowhere cannot be read"),
        (("--prompts", "/dev/null"), "0 different prompts are too few to hold out half of them"),
        (("--held-out", "prompts"), "'penguin' is in prompts and in prompts, and a prompt that was calibrated on"),
        (("--held-out", "one"), "One held-out prompt says nothing about others: hold out two or more"),
        (("--held-out", "wrong"), "'bananna' (close: 'banana'"),
        (("--budget", 12), "A budget of 12 full steps in a loop of 12"),
        (("--guidance", "nan"), "The guidance is nan"),
    ],
)
def test_what_cannot_be_tuned(
    run: Run, bundles: Bundles, prompts: pathlib.Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    monkeypatch.chdir(prompts.parent)
    pathlib.Path("one").write_text("banana")
    pathlib.Path("wrong").write_text("bananna\nfire")
    outcome = run("tune", bundles("flux-emoji").folder, *SHORT, "--prompts", "prompts", *options)
    assert outcome.refused(message)
    assert outcome.out == "" and sorted(path.name for path in prompts.parent.iterdir()) == ["one", "prompts", "wrong"]


def test_what_a_schedule_file_does_not_go_with(
    run: Run, bundles: Bundles, schedule: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    plan = ("plan", bundles("flux-emoji").folder, "--schedule", schedule)
    assert run(*plan, "--steps", 50).refused(
        "was tuned for 12 steps, and --steps asks for 50: leave out --steps, or run"
    )
    for options in (("--preset", "flux"), ("--order", 1), ("--warmup-steps", 2), ("--full-steps", "0,4")):
        assert run(*plan, *options).refused(f"--schedule names every full step and weight: leave out {options[0]}, or")
    other = ("plan", bundles("dit-tiny").folder, "--schedule", schedule)
    assert run(*other).refused("tuned.json was tuned for flux-emoji, and this is dit-tiny: run `taylorseer tune`")
    for command in ("generate", "compare"):
        refused = run(command, bundles("dit-tiny").folder, "--prompt", "1", "--schedule", schedule)
        assert refused.refused("was tuned for flux-emoji, and this is dit-tiny")
    (tmp_path / "none.json").write_text("{}")
    assert run("plan", "--schedule", tmp_path / "none.json").refused("none.json is no schedule file")
