"""PSNR, SSIM and the temporal difference against values worked out otherwise."""

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from taylorseer.errors import DependencyError, ShapeError
from taylorseer.runtime.fidelity import SSIM_WINDOW, psnr_db, ssim, temporal_difference


def picture(seed: int = 0, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def flat(level: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


def test_equal_pictures_are_perfect() -> None:
    assert psnr_db(picture(), picture()) == math.inf
    assert ssim(picture(), picture()) == pytest.approx(1.0)


def test_psnr_of_known_differences() -> None:
    assert psnr_db(flat(0), flat(255)) == pytest.approx(0.0)
    assert psnr_db(flat(100), flat(101)) == pytest.approx(20 * math.log10(255))
    assert psnr_db(flat(101), flat(100)) == pytest.approx(20 * math.log10(255))
    expected = peak_signal_noise_ratio(picture(0), picture(1), data_range=255)
    assert psnr_db(picture(0), picture(1)) == pytest.approx(expected)


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    stabilizer = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + stabilizer) / (100**2 + 150**2 + stabilizer)
    assert ssim(flat(100), flat(150)) == pytest.approx(expected)


def test_ssim_is_that_of_wang_at_one_pixel() -> None:
    """In a picture as large as the window, the mean is over the center alone: the formula, by hand."""
    first, second = picture(0, SSIM_WINDOW), picture(1, SSIM_WINDOW)
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    bell = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(bell, bell)[..., None] / bell.sum() ** 2
    x, y = first.astype(float), second.astype(float)
    mean_x, mean_y = (window * x).sum((0, 1)), (window * y).sum((0, 1))
    var_x, var_y = (window * x * x).sum((0, 1)) - mean_x**2, (window * y * y).sum((0, 1)) - mean_y**2
    both = (window * x * y).sum((0, 1)) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * both + c2) / (var_x + var_y + c2)
    assert ssim(first, second) == pytest.approx(float((luminance * structure).mean()), rel=1e-9)


def test_more_noise_is_less_fidelity() -> None:
    noise = np.random.default_rng(2).normal(size=(32, 32, 3))
    clean = np.broadcast_to(np.linspace(60, 190, 32)[:, None, None], (32, 32, 3))
    noisy = [(clean + strength * noise).astype(np.uint8) for strength in (0, 4, 16)]
    assert psnr_db(noisy[0], noisy[1]) > psnr_db(noisy[0], noisy[2]) + 10
    assert 1 > ssim(noisy[0], noisy[1]) > ssim(noisy[0], noisy[2]) > -1


def clip(seed: int = 0, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (frames, 16, 16, 3)).astype(np.uint8)


def test_a_clips_psnr_is_over_all_its_frames() -> None:
    """One mean over all errors: the mean of the frames' own PSNRs would be infinite here."""
    other = clip()
    other[1] += 10
    assert psnr_db(clip(), other) == pytest.approx(10 * math.log10(255**2 / (10**2 / 4)))


def test_a_clips_ssim_is_the_mean_over_its_frames() -> None:
    expected = np.mean([ssim(first, second) for first, second in zip(clip(0), clip(1), strict=True)])
    assert ssim(clip(0), clip(1)) == pytest.approx(expected)


def test_the_temporal_difference_is_that_of_the_changes() -> None:
    reference = np.zeros((3, 2, 2, 3), np.uint8)
    reference[1], reference[2] = 30, 60
    other = reference.copy()
    other[1] += 3  # the changes become 33 and 27 in place of 30 and 30
    assert temporal_difference(reference, other) == pytest.approx(0.1)


def test_what_differs_in_every_frame_alike_is_no_temporal_difference() -> None:
    assert temporal_difference(clip(), clip() + np.uint8(50)) == 0
    assert psnr_db(clip(), clip() + np.uint8(50)) < 20


def test_a_clip_that_stands_still_misses_every_change() -> None:
    still = np.repeat(clip()[:1], 4, axis=0)
    assert temporal_difference(clip(), still) == pytest.approx(1)
    assert temporal_difference(still, clip()) == math.inf
    assert temporal_difference(still, still) == 0


def test_changes_need_two_frames() -> None:
    for wrong in (picture(), clip(frames=1)):
        with pytest.raises(ShapeError, match="changes from frame to frame need clips"):
            temporal_difference(wrong, wrong)
    with pytest.raises(ShapeError, match="fidelity compares"):
        temporal_difference(clip(), clip(frames=3))


@pytest.mark.parametrize("measure", [psnr_db, ssim])
@pytest.mark.parametrize(
    ("reference", "image"),
    [
        (picture(), picture(0, 16)),
        (picture()[..., 0], picture()[..., 0]),
        (picture(), picture().astype(np.float32)),
        (picture()[:0], picture()[:0]),
        (clip(), clip(frames=3)),
        (clip()[:0], clip()[:0]),
        (clip()[None], clip()[None]),
    ],
)
def test_what_is_no_pair_of_pictures_is_refused(
    measure: Callable[[np.ndarray, np.ndarray], float], reference: np.ndarray, image: np.ndarray
) -> None:
    with pytest.raises(ShapeError, match="fidelity compares"):
        measure(reference, image)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    small = picture(0, SSIM_WINDOW - 1)
    assert psnr_db(small, small) == math.inf
    with pytest.raises(ShapeError, match="at least 11 pixels"):
        ssim(small, small)


def test_scikit_image_is_asked_for_only_by_ssim(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, taylorseer.runtime.fidelity; sys.exit('skimage' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(DependencyError, match="pip install scikit-image"):
        ssim(picture(), picture())
