"""How close an image made with forecasts is to the same image with every step full.

Both numbers are for two pictures, uint8 [H, W, 3] in 0 to 255.  Higher is closer.
"""

import importlib
import math

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import DependencyError, ShapeError

__all__ = ["SSIM_WINDOW", "psnr_db", "ssim"]

SSIM_WINDOW = 11
"""Width in pixels of SSIM's Gaussian window (sigma 1.5, Wang et al. 2004); no picture may be smaller."""

_PEAK = 255.0

Picture = NDArray[np.uint8]


def psnr_db(reference: Picture, image: Picture) -> float:
    """Return the peak signal-to-noise ratio, 10 log10(255^2 / mean squared error), in dB; inf when equal.

    Raises ShapeError unless both are uint8 [H, W, 3] of one size.
    """
    _check(reference, image, smallest=1)
    error = float(np.mean((reference.astype(np.float64) - image.astype(np.float64)) ** 2))
    return 10.0 * math.log10(_PEAK**2 / error) if error else math.inf


def ssim(reference: Picture, image: Picture) -> float:
    """Return the mean structural similarity over pixels and channels, at most 1.

    Computed by scikit-image with the settings of Wang et al. 2004 (Image quality assessment: from error
    visibility to structural similarity): Gaussian window of :data:`SSIM_WINDOW` pixels, K1 = 0.01, K2 = 0.03,
    each channel alone.

    Raises ShapeError unless both are uint8 [H, W, 3] of one size, not smaller than the window, and
    DependencyError without scikit-image.
    """
    _check(reference, image, smallest=SSIM_WINDOW)
    try:
        metrics = importlib.import_module("skimage.metrics")
    except ImportError as error:
        raise DependencyError("SSIM needs scikit-image; install it: pip install scikit-image") from error
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(metrics.structural_similarity(reference, image, channel_axis=-1, data_range=_PEAK, **window))


def _check(reference: Picture, image: Picture, smallest: int) -> None:
    fits = reference.shape == image.shape and reference.ndim == 3 and reference.shape[2] == 3
    if not fits or min(reference.shape[:2]) < smallest or not reference.dtype == image.dtype == np.uint8:
        raise ShapeError(
            f"fidelity compares two pictures of uint8 [H, W, 3], one size, at least {smallest} pixels wide "
            f"and high; got {reference.dtype} {list(reference.shape)} and {image.dtype} {list(image.shape)}. "
            "Convert latents to pixels first; for very small pictures use the PSNR."
        )
