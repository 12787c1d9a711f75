"""Packing against FluxPipeline, pixels against diffusers, and noise that belongs to its seed."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor

from taylorseer.errors import InputError, NonFiniteError, ShapeError
from taylorseer.runtime.latents import initial_noise, pack, to_pixels, unpack


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def test_pack_is_that_of_flux() -> None:
    picture = images(2, 3, 4, 6)
    expected = FluxPipeline._pack_latents(torch.from_numpy(picture), 2, 3, 4, 6)
    assert np.array_equal(pack(picture), expected.numpy())


def test_unpack_is_that_of_flux() -> None:
    tokens = images(2, 6, 12)
    expected = FluxPipeline._unpack_latents(torch.from_numpy(tokens), 4, 6, vae_scale_factor=1)
    assert np.array_equal(unpack(tokens, 4, 6), expected.numpy())


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch", "channels", "rows", "columns"), [(1, 1, 1, 1), (1, 4, 3, 2), (3, 3, 2, 5)])
def test_unpack_undoes_pack(batch: int, channels: int, rows: int, columns: int, patch: int) -> None:
    picture = images(batch, channels, rows * patch, columns * patch)
    tokens = pack(picture, patch)
    assert tokens.shape == (batch, rows * columns, channels * patch**2)
    assert np.array_equal(unpack(tokens, rows * patch, columns * patch, patch), picture)


@pytest.mark.parametrize("patch", [1, 2])
def test_results_are_contiguous_copies(patch: int) -> None:
    picture = images(1, 1, 2, 2)
    tokens = pack(picture, patch)
    back = unpack(tokens, 2, 2, patch)
    assert tokens.flags.c_contiguous and back.flags.c_contiguous
    assert not np.shares_memory(picture, tokens) and not np.shares_memory(tokens, back)


@pytest.mark.parametrize(("shape", "patch"), [((3, 4, 4), 2), ((1, 3, 5, 4), 2), ((1, 3, 4, 5), 2), ((1, 1, 2, 2), 0)])
def test_pack_refuses_what_does_not_divide(shape: tuple[int, ...], patch: int) -> None:
    with pytest.raises(ShapeError, match="patches"):
        pack(images(*shape), patch)


@pytest.mark.parametrize(
    ("shape", "height", "width", "patch"),
    [
        ((6, 12), 4, 6, 2),
        ((1, 6, 12), 4, 4, 2),
        ((1, 6, 12), 5, 6, 2),
        ((1, 6, 10), 4, 6, 2),
        ((1, 6, 12), 4, 6, 0),
    ],
)
def test_unpack_refuses_another_size(shape: tuple[int, ...], height: int, width: int, patch: int) -> None:
    with pytest.raises(ShapeError, match="tokens"):
        unpack(images(*shape), height, width, patch)


def test_pixels_are_those_of_diffusers() -> None:
    picture = 1.5 * images(2, 3, 8, 8)
    processor = VaeImageProcessor(do_normalize=True)
    expected = processor.postprocess(torch.from_numpy(picture), output_type="pil")
    assert np.array_equal(to_pixels(picture), np.stack([np.asarray(image) for image in expected]))


def test_pixels_are_clipped_and_rounded() -> None:
    levels = np.array([-9.0, -1.0, -0.9955, 0.0, 0.5, 1.0, 9.0], np.float32)
    pixels = to_pixels(np.broadcast_to(levels, (1, 3, 1, 7)))
    assert pixels.dtype == np.uint8
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 1, 128, 191, 255, 255]


def test_pixels_refuse_other_channels_and_nonfinite_values() -> None:
    with pytest.raises(ShapeError, match=r"\[1, 4, 2, 2\]"):
        to_pixels(images(1, 4, 2, 2))
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteError):
            to_pixels(np.full((1, 3, 2, 2), value, np.float32))


def test_noise_depends_on_its_own_seed_alone() -> None:
    together = initial_noise((3, 64, 16), [7, 3, 7])
    assert together.dtype == np.float32
    assert np.array_equal(together[0], together[2])
    assert np.array_equal(together[1], initial_noise((1, 64, 16), 3)[0])
    assert not np.array_equal(together[0], together[1])


def test_one_seed_counts_up_over_the_batch() -> None:
    assert np.array_equal(initial_noise((3, 4), 5), initial_noise((3, 4), [5, 6, 7]))


def test_noise_is_standard_normal() -> None:
    noise = initial_noise((4, 10_000), 0)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("seed", [-1, [1], [1, 2, 3], [1, -2]])
def test_wrong_seeds_are_refused(seed: int | list[int]) -> None:
    with pytest.raises(InputError, match="seed"):
        initial_noise((2, 4), seed)
