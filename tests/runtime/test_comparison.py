"""The comparison: its numbers are those of its pictures and times, and it can come out against us."""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.runtime.comparison import Comparison, compare
from taylorseer.runtime.fidelity import psnr_db, ssim, temporal_difference
from taylorseer.runtime.generation import Generator

SHORT = CacheConfig(steps=12, interval=3, order=1, warmup_steps=3)
PROMPTS = ["red heart", "rocket"]
MEASURES = (psnr_db, ssim, temporal_difference)


@pytest.fixture(scope="module")
def emoji(bundles: Callable[..., Bundle]) -> Generator:
    return Generator(bundles("flux-emoji"), threads=1)


@pytest.fixture(scope="module")
def loops() -> list[int]:
    return []


@pytest.fixture(scope="module")
def result(emoji: Generator, loops: list[int]) -> Comparison:
    return compare(emoji, PROMPTS, [0, 5], SHORT, on_loop=lambda: loops.append(len(loops)))


def test_every_pair_is_made_three_times(result: Comparison, loops: list[int]) -> None:
    assert result.pairs == 4 and len(loops) == 12
    assert [len(row) for row in result.images] == [4, 4, 4]
    assert (result.steps, result.full_steps, result.state) == (12, (0, 1, 2, 5, 8, 11), "history")


def test_the_pictures_are_those_of_generate(emoji: Generator, result: Comparison) -> None:
    reuse = dataclasses.replace(SHORT, predictor="reuse")
    for row, (config, full) in enumerate(((SHORT, True), (SHORT, False), (reuse, False))):
        made = emoji.generate("rocket", seed=0, cache=config, every_step_full=full)  # the third pair
        assert made.image is not None
        np.testing.assert_array_equal(result.images[row][2], made.image)


def test_the_fidelity_is_that_of_the_pictures(result: Comparison) -> None:
    full, taylor, reuse = result.images
    assert result.psnr_db == pytest.approx(np.median([psnr_db(a, b) for a, b in zip(full, taylor, strict=True)]))
    assert result.reuse_psnr_db == pytest.approx(np.median([psnr_db(a, b) for a, b in zip(full, reuse, strict=True)]))
    assert result.ssim == pytest.approx(np.median([ssim(a, b) for a, b in zip(full, taylor, strict=True)]))
    assert result.reuse_ssim == pytest.approx(np.median([ssim(a, b) for a, b in zip(full, reuse, strict=True)]))
    assert result.psnr_db != result.reuse_psnr_db
    assert result.better_than_reuse in (0, 0.25, 0.5, 0.75, 1)


def test_eta_is_the_share_of_the_ideal_speedup(result: Comparison) -> None:
    assert result.eta == pytest.approx(result.speedup / 2)
    assert 0 < result.forecast_ms < result.full_ms
    assert result.speedup > 1
    assert result.full_loop_ms > result.loop_ms > 6 * result.full_ms * 0.2


def test_the_json_has_every_number_and_no_picture(result: Comparison) -> None:
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert "images" not in values
    for name in ("state", "speedup", "eta", "full_ms", "forecast_ms", "psnr_db", "reuse_psnr_db", "ssim", "reuse_ssim"):
        assert values[name] == getattr(result, name)


def test_reuse_against_itself_is_no_better(emoji: Generator) -> None:
    same = compare(emoji, ["red heart"], [0], dataclasses.replace(SHORT, predictor="reuse"))
    assert same.psnr_db == same.reuse_psnr_db and same.better_than_reuse == 0
    np.testing.assert_array_equal(same.images[1][0], same.images[2][0])
    assert not np.array_equal(same.images[0][0], same.images[1][0])


def test_fewer_full_steps_are_further_away(emoji: Generator, result: Comparison) -> None:
    sparse = compare(emoji, PROMPTS, [0, 5], CacheConfig(steps=12, full_steps=(0, 1), order=0))
    assert sparse.psnr_db < result.psnr_db - 1
    assert sparse.eta == pytest.approx(sparse.speedup / 6)


def test_equal_pictures_have_no_finite_psnr(result: Comparison) -> None:
    equal = dataclasses.replace(result, psnr_db=math.inf)
    assert equal.to_json()["psnr_db"] is None


def test_nothing_to_compare(emoji: Generator) -> None:
    for prompts, seeds in (([], [0]), (["rocket"], [])):
        with pytest.raises(InputError, match="nothing to compare: give at least one prompt and one seed"):
            compare(emoji, prompts, seeds, SHORT)


def test_pictures_smaller_than_the_window_of_ssim(bundles: Callable[..., Bundle]) -> None:
    with pytest.raises(InputError, match="images below 11 pixels, too small for SSIM"):
        compare(Generator(bundles("dit-tiny"), threads=1), ["1"], [0], SHORT)


@pytest.fixture(scope="module")
def moving(bundles: Callable[..., Bundle]) -> Comparison:
    video = Generator(bundles("hunyuan-video-emoji", "folded"), threads=1)
    return compare(video, ["red heart moving left", "star fading in"], [3], SHORT)


def test_clips_are_compared_over_their_frames(moving: Comparison) -> None:
    full, taylor, reuse = moving.images
    assert [clip.shape for clip in full] == [(8, 32, 32, 3)] * 2
    for row, found in (
        (taylor, (moving.psnr_db, moving.ssim, moving.temporal_difference)),
        (reuse, (moving.reuse_psnr_db, moving.reuse_ssim, moving.reuse_temporal_difference)),
    ):
        expected = [np.mean([measure(a, b) for a, b in zip(full, row, strict=True)]) for measure in MEASURES]
        assert found == pytest.approx(expected)  # the median of two is their mean
    assert moving.temporal_difference != moving.reuse_temporal_difference
    assert json.loads(json.dumps(moving.to_json()))["temporal_difference"] == moving.temporal_difference


def test_images_have_no_temporal_difference(result: Comparison) -> None:
    assert result.temporal_difference is None and result.reuse_temporal_difference is None


def test_latents_without_decoder_are_no_pictures(emoji: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = dataclasses.replace(emoji.manifest.pipeline, decoder="none")
    monkeypatch.setattr(emoji, "manifest", dataclasses.replace(emoji.manifest, pipeline=pipeline))
    with pytest.raises(InputError, match="latents need their own decoder, so there are no images to compare"):
        compare(emoji, ["rocket"], [0], SHORT)
