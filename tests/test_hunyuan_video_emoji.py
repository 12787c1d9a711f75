"""The small model of clips, as shipped: its clips are the torch model's, and move as the prompt says."""

import json
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.exporter.checkpoints import demo_checkpoint
from taylorseer.runtime.generation import Generator
from taylorseer.runtime.latents import initial_noise

CHECKPOINT = demo_checkpoint("hunyuan-video-emoji")
SHORT = CacheConfig.from_preset("hunyuan-video", steps=20)
"""Forecasts as in the default of 50 steps, and enough steps for a clip to look like one."""
TOLERANCE = 1e-5
"""fp32 on both sides: sums in another order, which a few steps leave below 1e-6."""


@pytest.fixture(scope="module")
def generator(bundles: Callable[..., Bundle]) -> Generator:
    return Generator(bundles("hunyuan-video-emoji", "folded"))


def text_of(prompt: str) -> dict[str, torch.Tensor]:
    """Encode a prompt as the training did: padded ids, of which the first counts even when there are no words."""
    vocabulary = json.loads((CHECKPOINT / "words/vocabulary.json").read_text())
    tables = load_file(CHECKPOINT / "words/embeddings.safetensors")
    ids = np.array([[vocabulary.index(word) for word in prompt.split()] + [0] * (16 - len(prompt.split()))])
    present = ids > 0
    present[:, 0] = True
    pooled = (tables["pooled"][ids].astype(np.float32) * present[..., None]).sum(1) / np.float32(present.sum())
    return {
        "encoder_hidden_states": torch.tensor(tables["tokens"][ids].astype(np.float32)),
        "encoder_attention_mask": torch.tensor(present.astype(np.int64)),
        "pooled_projections": torch.tensor(pooled),
    }


@torch.no_grad()  # type: ignore[untyped-decorator]
def torch_clip(text: dict[str, torch.Tensor], *, steps: int, seed: int, guidance: float) -> NDArray[np.float32]:
    """Make the latent of a clip with diffusers' transformer and noise scheduler, every step full."""
    torch.set_num_threads(1)  # a model this small gains nothing from more, which other processes would fight over
    model = diffusers.HunyuanVideoTransformer3DModel.from_pretrained(
        CHECKPOINT / "transformer", torch_dtype=torch.float32
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(CHECKPOINT / "scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])
    latent = torch.tensor(initial_noise((1, 3, 8, 32, 32), seed))
    for timestep in scheduler.timesteps:
        given = {"timestep": timestep[None], "guidance": torch.tensor([1000 * guidance]), **text}
        velocity = model(latent, **given, return_dict=False)[0]
        latent = scheduler.step(velocity, timestep, latent, return_dict=False)[0]
    clip: NDArray[np.float32] = latent.numpy()
    return clip


@pytest.mark.parametrize("prompt", ["red heart moving left", ""])
def test_a_clip_is_the_torch_models(generator: Generator, prompt: str) -> None:
    wanted = torch_clip(text_of(prompt), steps=3, seed=7, guidance=2.0)
    made = generator.generate(prompt, seed=7, cache=CacheConfig(steps=3), every_step_full=True).latent
    assert np.linalg.norm(made - wanted) <= TOLERANCE * np.linalg.norm(wanted)


def test_the_folded_state_is_proven(bundles: Callable[..., Bundle]) -> None:
    manifest = bundles("hunyuan-video-emoji", "folded").manifest
    assert manifest.layout == "folded" and manifest.folding is not None
    assert manifest.layout_reason == "the forecast is proven to be linear in its 8 features"
    assert {term.feature for term in manifest.folding.terms} == {feature.name for feature in manifest.features}


def course(generator: Generator, prompt: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the column [8] and the row [8] around which the ink of each frame lies."""
    made = generator.generate(prompt, seed=0, cache=SHORT)
    assert made.image is not None and made.image.shape == (8, 32, 32, 3)
    edges = np.concatenate([made.image[:, 0], made.image[:, -1]])
    assert (edges >= 235).mean() > 0.9  # white paper, which noise is not
    ink = (255.0 - made.image).sum(axis=-1)
    places, total = np.arange(32), ink.sum(axis=(1, 2))
    return ink.sum(axis=1) @ places / total, ink.sum(axis=2) @ places / total


def test_clips_move_as_the_prompt_says(generator: Generator) -> None:
    left, _ = course(generator, "red heart moving left")
    right, _ = course(generator, "red heart moving right")
    still, height = course(generator, "red heart standing still")
    assert (np.diff(left) < -0.5).all() and (np.diff(right) > 0.5).all()
    assert max(np.ptp(still), np.ptp(height)) < 0.5


def test_words_have_their_colors(generator: Generator) -> None:
    def color(prompt: str) -> Any:
        made = generator.generate(prompt, seed=0, cache=SHORT)
        assert made.image is not None
        return made.image[:, 12:18, 13:19].mean(axis=(0, 1, 2))

    red, blue = color("red heart standing still"), color("blue heart standing still")
    assert red[0] > red[2] + 60 and blue[2] > blue[0] + 60


def test_the_checkpoint_is_small() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24_000_000
