"""Between images and the models' token form.

A transformer reads an image as tokens: patches of ``patch * patch`` pixels (of the image or of its latent),
each flattened to one row.  The order within is FluxPipeline's: channel, then row, then column of the patch.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import InputError, NonFiniteError, ShapeError

__all__ = ["initial_noise", "pack", "to_pixels", "unpack"]

_Kind = TypeVar("_Kind", bound=np.generic)


def pack(images: NDArray[_Kind], patch: int = 2) -> NDArray[_Kind]:
    """Return the tokens [B, (H/patch) * (W/patch), C * patch * patch] of ``images`` [B, C, H, W], a copy.

    The order is that of ``FluxPipeline._pack_latents``, which has ``patch`` = 2.
    Raises ShapeError unless the images are 4-D and whole patches.
    """
    if images.ndim != 4 or patch < 1 or images.shape[2] % patch or images.shape[3] % patch:
        raise ShapeError(
            f"images {list(images.shape)} do not divide into patches of {patch}: they must be [B, C, H, W] "
            f"with H and W multiples of {patch}. Crop or pad them."
        )
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    tokens = grid.transpose(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, (height // patch) * (width // patch), channels * patch * patch).copy()


def unpack(tokens: NDArray[_Kind], height: int, width: int, patch: int = 2) -> NDArray[_Kind]:
    """Return the images [B, C, height, width] of ``tokens`` [B, N, C * patch * patch], a copy.

    The inverse of :func:`pack`; ``height`` and ``width`` are those of the packed image, in its own pixels.
    Raises ShapeError unless the tokens make exactly that image.
    """
    rows, columns = height // max(patch, 1), width // max(patch, 1)
    whole = patch >= 1 and rows * patch == height and columns * patch == width
    if not whole or tokens.ndim != 3 or tokens.shape[1] != rows * columns or tokens.shape[2] % patch**2:
        raise ShapeError(
            f"tokens {list(tokens.shape)} do not make images of {height} x {width} with patches of {patch}: "
            f"they must be [B, {rows * columns}, C * {patch * patch}]. Give the size that was packed."
        )
    batch, _, features = tokens.shape
    grid = tokens.reshape(batch, rows, columns, features // patch**2, patch, patch)
    return grid.transpose(0, 3, 1, 4, 2, 5).reshape(batch, features // patch**2, height, width).copy()


def to_pixels(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return uint8 [B, H, W, 3] of ``images`` [B, 3, H, W] in [-1, 1]: clipped and rounded as in diffusers.

    Raises ShapeError for another shape and NonFiniteError for NaN or infinity, which no pixel can show.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ShapeError(f"pictures need images [B, 3, H, W]; got {list(images.shape)}. Unpack them first.")
    if not np.isfinite(images).all():
        raise NonFiniteError("an image has NaN or infinity. Check the latent, or try another precision.")
    unit = np.clip(images.astype(np.float32) / 2 + np.float32(0.5), 0, 1)
    return np.rint(unit * 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def initial_noise(shape: Sequence[int], seed: int | Sequence[int]) -> NDArray[np.float32]:
    """Return float32 standard normal noise of ``shape`` [B, ...].

    Each image has its own generator, ``np.random.default_rng``, and depends on its own seed alone, so that it
    can be made again in any batch.  ``seed``: one for each image, or the first of B consecutive ones.

    Raises InputError for negative seeds or another number of seeds than images.
    """
    seeds = list(range(seed, seed + shape[0])) if isinstance(seed, int) else list(seed)
    if len(seeds) != shape[0]:
        raise InputError(f"{len(seeds)} seeds were given for {shape[0]} images. Give one for each, or just one.")
    if min(seeds, default=0) < 0:
        raise InputError(f"seed {min(seeds)} is negative. Give whole numbers from 0.")
    noise = np.empty(shape, np.float32)
    for image, own_seed in zip(noise, seeds, strict=True):
        image[...] = np.random.default_rng(own_seed).standard_normal(image.shape, dtype=np.float32)
    return noise
