"""The training of the demo video model, on a network of a few thousand weights."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoPatchEmbed

from taylorseer.runtime.words import WordTable
from tools.emoji_clips import CAST, MOTIONS
from tools.guided_flow import loss_of
from tools.train_hunyuan_emoji import ClipData, VideoConfig, sheet_pairs, train
from tools.video_emoji_model import (
    ARCHITECTURE,
    GUIDANCE,
    SHIFT,
    TEXT_LENGTH,
    ClipCaptions,
    FlatPatchEmbed,
    VideoEmojiModel,
    close_gaps,
    sample,
)

PUBLISHED = Path(__file__).parent.parent.parent / "exporter/models/hunyuan-video-emoji.json"

TINY: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "patch_size": 16,
    "text_embed_dim": 8,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}


@pytest.fixture
def captions() -> ClipCaptions:
    return ClipCaptions([["red heart", "heart"], ["pizza", "slice of pizza"]])


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    images = np.zeros((len(CAST), 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, names=np.array(list(CAST.values())))
    return tmp_path / "data.npz"


def tiny_model(captions: ClipCaptions) -> VideoEmojiModel:
    torch.manual_seed(0)
    return VideoEmojiModel(len(captions.vocabulary), **TINY)


def test_the_bundle_of_the_model_is_the_one_that_is_trained() -> None:
    published = json.loads(PUBLISHED.read_text())
    for name, value in ARCHITECTURE.items():
        assert published["config"][name] == (list(value) if isinstance(value, tuple) else value)
    assert published["sizes"]["text_length"] == TEXT_LENGTH
    assert published["pipeline"]["scheduler"]["shift"] == SHIFT
    assert published["pipeline"]["guidance"] == GUIDANCE
    assert published["pipeline"]["guidance_factor"] == 1000 * published["pipeline"]["timestep_scale"] == 1000


def test_the_full_size_has_at_most_eleven_million_weights() -> None:
    with torch.device("meta"):
        model = VideoEmojiModel(200)
    assert 9e6 < sum(weight.numel() for weight in model.parameters()) < 11e6


def test_words_move_up_to_the_first_gap() -> None:
    assert close_gaps(torch.tensor([[0, 5, 0, 3], [0, 0, 0, 0]])).tolist() == [[5, 3, 0, 0], [0, 0, 0, 0]]


def test_captions_name_the_emoji_then_the_motion(captions: ClipCaptions) -> None:
    torch.manual_seed(0)
    moving_up = list(MOTIONS).index("moving up")
    drawn = captions.draw(torch.ones(500, dtype=torch.long), torch.full((500,), moving_up))
    assert drawn.shape == (500, TEXT_LENGTH)
    said = [" ".join(captions.vocabulary[word] for word in row if word) for row in drawn.tolist()]
    assert {"pizza moving up", "slice of pizza rising", "pizza going up", "slice of pizza", "rising"} <= set(said)
    assert any(each.endswith(" the") for each in said)
    assert not any("heart" in each or "left" in each for each in said)


def test_captions_too_long_for_the_text_are_refused() -> None:
    with pytest.raises(ValueError, match="the captions take up to 24 words with two fillers, but 16 fit"):
        ClipCaptions([["one " * 20]])


def test_the_flat_patch_embedding_is_the_convolution() -> None:
    torch.manual_seed(0)
    plain = HunyuanVideoPatchEmbed((1, 4, 4), 3, 16)
    flat = FlatPatchEmbed((1, 4, 4), 3, 16)
    flat.load_state_dict(plain.state_dict())
    clips = torch.randn(2, 3, 8, 32, 32)
    torch.testing.assert_close(flat(clips), plain(clips))


def test_an_empty_prompt_reads_one_padding_row_and_no_more(captions: ClipCaptions) -> None:
    model = tiny_model(captions)
    arguments = (torch.randn(1, 3, 8, 32, 32), torch.tensor([0.5]), torch.tensor([1.0]))
    nothing, longer = torch.zeros(1, TEXT_LENGTH, dtype=torch.long), torch.zeros(1, 24, dtype=torch.long)
    with torch.no_grad():
        before = model(*arguments, nothing)
        assert before.isfinite().all()
        torch.testing.assert_close(model(*arguments, longer), before)
        model.tokens.weight[1:] += 1
        torch.testing.assert_close(model(*arguments, nothing), before)
        model.tokens.weight[0] += 1
        assert not torch.allclose(model(*arguments, nothing), before)


@pytest.mark.parametrize("guided", [0, 4])
def test_training_lowers_the_loss(captions: ClipCaptions, guided: int) -> None:
    model = tiny_model(captions)
    model.start_from_zero()
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    clean = torch.full((8, 3, 8, 32, 32), 0.5)
    ids = captions.encode("red heart growing").expand(8, -1)
    losses = []
    for _ in range(25):
        loss = loss_of(model, teacher, clean, ids, guided)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.25, rel=0.1)  # the zeroed network says 0; noise has power 1, clean 0.25
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_held_out_pairs_are_never_drawn_and_are_half_of_the_sheet(data_file: Path) -> None:
    data = ClipData(data_file, "cpu")
    held_out, trained = ({tuple(pair) for pair in pairs.tolist()} for pairs in (data.held_out, data.trained))
    assert not held_out & trained
    assert len(held_out | trained) == len(CAST) * len(MOTIONS)
    shown = [tuple(pair) for pair in sheet_pairs(data).tolist()]
    assert [pair in held_out for pair in shown] == [False, True] * len(MOTIONS)
    clips, ids = data.batch(3)
    assert clips.shape == (3, 3, 8, 32, 32)
    assert ids.shape == (3, TEXT_LENGTH)


def test_a_run_writes_a_checkpoint_that_loads(data_file: Path, tmp_path: Path) -> None:
    first = VideoConfig(
        data=data_file, output=tmp_path / "one", minutes=0.005, device="cpu", batch=2, autocast=False, sample_steps=1
    )
    trained = train(first, **TINY)
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(first.output / "scheduler").config.shift == SHIFT
    written = {str(path.relative_to(first.output)) for path in first.output.rglob("*") if path.is_file()}
    assert written == {
        "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json", "words/vocabulary.json", "words/embeddings.safetensors",
        "held_out.json", "trained.json", "evaluation.json", "training.json", "loss.png", "samples.png",
    }  # fmt: skip
    prompts = json.loads((first.output / "held_out.json").read_text())
    hidden, pooled = WordTable.load(first.output / "words").encode(prompts, TEXT_LENGTH)
    assert len(hidden) == len(pooled) == round(0.1 * len(CAST) * len(MOTIONS))
    again = VideoEmojiModel(len(json.loads((first.output / "words" / "vocabulary.json").read_text())), **TINY)
    again.load(first.output)
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, trained.state_dict()[name].half().float())


def test_samples_are_clips_and_end_where_diffusers_would(captions: ClipCaptions) -> None:
    model, ids = tiny_model(captions), captions.encode("pizza growing")[None]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 5)[:-1])
    clips = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for time in scheduler.timesteps:
            velocity = model(clips, time[None] / 1000, torch.tensor([GUIDANCE]), ids)
            clips = scheduler.step(velocity, time, clips, return_dict=False)[0]
    torch.testing.assert_close(sample(model, ids, steps=4, seed=3), clips.clamp(-1, 1))
