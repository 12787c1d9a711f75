"""How close an image or clip made with forecasts is to the same one with every step full.

All numbers are for two pictures, uint8 [H, W, 3] in 0 to 255, or two clips [F, H, W, 3].
"""

import importlib
import math

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import DependencyError, ShapeError

__all__ = ["SSIM_WINDOW", "psnr_db", "ssim", "temporal_difference"]

SSIM_WINDOW = 11
"""Width in pixels of SSIM's Gaussian window (sigma 1.5, Wang et al. 2004); no picture may be smaller."""

_PEAK = 255.0

Picture = NDArray[np.uint8]


def psnr_db(reference: Picture, image: Picture) -> float:
    """Return the peak signal-to-noise ratio, 10 log10(255^2 / mean squared error), in dB; inf when equal.

    Higher is closer.  For clips the mean is over all frames.
    Raises ShapeError unless both are uint8 [H, W, 3], or both [F, H, W, 3], of one size.
    """
    _check(reference, image, smallest=1)
    error = float(np.mean((reference.astype(np.float64) - image.astype(np.float64)) ** 2))
    return 10.0 * math.log10(_PEAK**2 / error) if error else math.inf


def ssim(reference: Picture, image: Picture) -> float:
    """Return the mean structural similarity over pixels and channels, at most 1; for clips over the frames too.

    Computed by scikit-image with the settings of Wang et al. 2004 (Image quality assessment: from error
    visibility to structural similarity): Gaussian window of :data:`SSIM_WINDOW` pixels, K1 = 0.01, K2 = 0.03,
    each channel alone.

    Raises ShapeError unless both are uint8 [H, W, 3], or both [F, H, W, 3], of one size, not smaller than the window,
    and DependencyError without scikit-image.
    """
    _check(reference, image, smallest=SSIM_WINDOW)
    if reference.ndim == 4:
        return float(np.mean([ssim(first, second) for first, second in zip(reference, image, strict=True)]))
    try:
        metrics = importlib.import_module("skimage.metrics")
    except ImportError as error:
        raise DependencyError("SSIM needs scikit-image; install it: pip install scikit-image") from error
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(metrics.structural_similarity(reference, image, channel_axis=-1, data_range=_PEAK, **window))


def temporal_difference(reference: Picture, clip: Picture) -> float:
    """Return how far the changes from frame to frame are from the reference's, relative to those: 0 when equal.

    ``||diff(clip) - diff(reference)|| / ||diff(reference)||``, where ``diff`` is each frame minus the one before, and
    the norm is Euclidean over all of them.  What differs equally in every frame, such as a color, does not count;
    flicker and other motion do.  A clip that stands still has 1.  Against a reference that stands still it is inf, or
    0 when both do.

    Raises ShapeError unless both are uint8 [F, H, W, 3] of one size, with two frames or more.
    """
    _check(reference, clip, smallest=1)
    if reference.ndim != 4 or len(reference) < 2:
        raise ShapeError(
            f"changes from frame to frame need clips [F, H, W, 3] of two frames or more; got {list(reference.shape)}."
        )
    changes = np.diff(reference.astype(np.float64), axis=0)
    error = float(np.linalg.norm(np.diff(clip.astype(np.float64), axis=0) - changes))
    size = float(np.linalg.norm(changes))
    if not size:
        return math.inf if error else 0.0
    return error / size


def _check(reference: Picture, image: Picture, smallest: int) -> None:
    fits = reference.shape == image.shape and reference.ndim in (3, 4) and reference.shape[-1] == 3
    small = not fits or min(reference.shape[-3:-1]) < smallest or not reference.size
    if small or not reference.dtype == image.dtype == np.uint8:
        raise ShapeError(
            f"fidelity compares two pictures of uint8 [H, W, 3], or two clips [F, H, W, 3], of one size, at least "
            f"{smallest} pixels wide and high; got {reference.dtype} {list(reference.shape)} and {image.dtype} "
            f"{list(image.shape)}. Convert latents to pixels first; for very small pictures use the PSNR."
        )
