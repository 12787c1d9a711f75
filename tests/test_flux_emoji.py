"""The real small model, as shipped: what the README shows of it holds."""

from collections.abc import Callable

import pytest

from taylorseer.bundle import Bundle
from taylorseer.commands.compare import PROMPTS
from taylorseer.config import CacheConfig
from taylorseer.exporter.checkpoints import demo_checkpoint
from taylorseer.runtime.comparison import Comparison, compare
from taylorseer.runtime.generation import Generator


@pytest.fixture(scope="module")
def comparison(bundles: Callable[[str], Bundle]) -> Comparison:
    return compare(Generator(bundles("flux-emoji")), PROMPTS, [0, 1], CacheConfig.from_preset("flux"))


def test_taylor_is_closer_to_every_step_full_than_reuse(comparison: Comparison) -> None:
    assert comparison.full_steps == (0, 1, 2, 8, 14, 20, 26, 32, 38, 44)
    assert comparison.better_than_reuse >= 0.9
    # Half a decibel is far above what rounding does to an 8-bit image of this size.
    assert comparison.psnr_db > comparison.reuse_psnr_db + 0.5
    assert comparison.ssim > comparison.reuse_ssim


def test_a_forecast_step_is_a_fraction_of_a_full_one(comparison: Comparison) -> None:
    # A ratio of medians in one process; three times what a quiet machine shows, because test machines are not quiet.
    assert comparison.forecast_ms < 0.15 * comparison.full_ms
    assert comparison.speedup > 2


def test_the_checkpoint_is_small() -> None:
    files = [path for path in demo_checkpoint("flux-emoji").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24_000_000
