"""``compare``: the numbers as JSON and as a table, the contact sheet, and every refusal."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from taylorseer.bundle import Bundle
from taylorseer.commands.compare import CLASSES, CLIPS, PROMPTS, default_prompts
from taylorseer.runtime.generation import Generator

Run = Callable[..., Any]
Bundles = Callable[..., Bundle]

SHORT = ("--steps", 12, "--interval", 3, "--warmup-steps", 3, "--order", 1)


def test_the_numbers_as_json(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    sheet = tmp_path / "sheet.png"
    outcome = run(
        "compare", bundles("flux-emoji").folder, "--prompt", "red heart", "--prompt", "rocket", "--seeds", 2,
        *SHORT, "--output", sheet, "--json",
    )  # fmt: skip
    result = outcome.json
    keys = {"state", "speedup", "eta", "full_ms", "forecast_ms", "psnr_db", "reuse_psnr_db", "ssim", "reuse_ssim"}
    assert outcome.code == 0 and keys <= result.keys()
    assert result["pairs"] == 4 and result["full_steps"] == [0, 1, 2, 5, 8, 11] and result["state"] == "history"
    assert result["eta"] == pytest.approx(result["speedup"] / 2)
    assert 0 < result["forecast_ms"] < result["full_ms"]
    assert 5 < result["psnr_db"] < 100 and result["psnr_db"] != result["reuse_psnr_db"]
    with Image.open(sheet) as image:
        assert image.width > 4 * 3 * 32 and image.height > 3 * 3 * 32  # four pairs, three rows, enlarged three times


@pytest.mark.parametrize("layout", ["history", "folded"])
def test_every_layout_is_compared_with_prepare_on_both_sides(run: Run, bundles: Bundles, layout: str) -> None:
    options = ("--prompt", "red heart", *SHORT, "--json")
    result = run("compare", bundles("flux-emoji", layout).folder, *options).json
    assert result["state"] == layout and result["better_than_reuse"] in (0, 1)
    assert result["full_request_ms"] > result["full_loop_ms"] and result["request_ms"] > result["loop_ms"]
    assert result["request_eta"] == pytest.approx(result["request_speedup"] / 2)


def test_a_folded_state_forecasts_what_the_history_does(run: Run, bundles: Bundles) -> None:
    options = ("--prompt", "red heart", "--prompt", "rocket", *SHORT, "--json")
    history, folded = (
        run("compare", bundles("flux-emoji", layout).folder, *options).json for layout in ("history", "folded")
    )
    for name in ("psnr_db", "reuse_psnr_db", "ssim"):  # rounding in float32, and images of 8 bits
        assert folded[name] == pytest.approx(history[name], rel=0.02)


def test_a_schedule_of_reuse_ties_with_reuse(run: Run, bundles: Bundles) -> None:
    options = ("--prompt", "red heart", "--predictor", "reuse", "--steps", 12, "--json")
    result = run("compare", bundles("flux-emoji").folder, *options).json
    assert result["psnr_db"] == result["reuse_psnr_db"] and result["better_than_reuse"] == 0


def test_the_table_and_a_file_of_prompts(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    (tmp_path / "prompts").write_text("red heart\n\n  rocket \n")
    outcome = run("compare", bundles("flux-emoji").folder, "--prompts", tmp_path / "prompts", *SHORT)
    assert outcome.out.startswith("2 pairs, 12 steps, 6 full, state history; medians\n")
    for line in (
        "every step full",
        "taylor ",
        "reuse, same schedule",
        "speed-up",
        "eta",
        "closer to every step",
        "whole requests, prepare",
    ):
        assert line in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", 0), "--seeds 0 compares nothing: give 1 or more"),
        (("--prompts", "nowhere"), "nowhere cannot be read"),
        (("--prompts", "/dev/null"), "nothing to compare: give at least one prompt"),
        (("--prompt", "red hearrt"), "'hearrt' (close: 'heart'"),
        (("--interval", 1), "Interval 1 makes every step full"),
        (("--order", 7), "Order 7 needs 8 remembered tensors per feature"),
        (("--guidance", "nan"), "The guidance is nan"),
        (("--output", "sheet.jpg"), "sheet.jpg"),
    ],
)
def test_what_cannot_be_compared(
    run: Run, bundles: Bundles, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("compare", bundles("flux-emoji").folder, *options, "--json")
    assert outcome.refused(message)
    assert outcome.out == "" and list(tmp_path.iterdir()) == []


def test_pictures_too_small_for_ssim(run: Run, bundles: Bundles) -> None:
    outcome = run("compare", bundles("dit-tiny").folder, "--prompt", "1", *SHORT)
    assert outcome.refused("images below 11 pixels, too small for SSIM's window")


def test_clips_are_compared_with_a_sheet_of_their_frames(run: Run, bundles: Bundles, tmp_path: pathlib.Path) -> None:
    sheet, folder = tmp_path / "sheet.png", bundles("hunyuan-video-emoji", "folded").folder
    prompts = ("--prompt", "red heart moving left", "--prompt", "pizza growing")
    outcome = run("compare", folder, *prompts, *SHORT, "--output", sheet)
    assert outcome.code == 0 and outcome.out.startswith("2 pairs, 12 steps, 6 full, state folded; medians\n")
    header, full, taylor, reuse = outcome.out.splitlines()[1:5]
    assert header.split()[-2:] == ["SSIM", "changes"] and full.startswith("every step full")
    assert all(0 < float(row.split()[-1].removesuffix("%")) < 100 for row in (taylor, reuse))
    with Image.open(sheet) as image:  # a column for each frame, and two clips made three times
        assert image.width > 8 * 3 * 32 and 6 * 3 * 32 < image.height < 9 * 3 * 32


def test_every_demo_model_knows_its_default_prompts(bundles: Bundles) -> None:
    for name, prompts in (("flux-emoji", PROMPTS), ("dit-emoji", CLASSES), ("hunyuan-video-emoji", CLIPS)):
        bundle = bundles(name, "history" if name == "flux-emoji" else "folded")
        assert default_prompts(bundle.manifest) == list(prompts)
        generator = Generator(bundle)
        asked = [generator.conditions(prompt) for prompt in prompts]
        keys = {tuple(value.tobytes() for value in each.values()) for each in asked}
        assert len(asked) == len(keys) == 8  # none is asked twice


def test_classes_without_names_are_compared_by_number(run: Run, bundles: Bundles) -> None:
    manifest = bundles("dit-tiny").manifest
    assert default_prompts(manifest) == ["0", "1", "3", "4", "5", "6", "8", "9"]
    few = dataclasses.replace(manifest, config=manifest.config | {"num_embeds_ada_norm": 3})
    assert default_prompts(few) == ["0", "1", "2"]


def test_a_command_without_prompts_compares_the_defaults(
    run: Run, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taylorseer.commands.compare.CLASSES", CLASSES[:1])
    result = run("compare", bundles("dit-emoji", "folded").folder, *SHORT, "--json").json
    assert result["pairs"] == 1 and result["temporal_difference"] is None
