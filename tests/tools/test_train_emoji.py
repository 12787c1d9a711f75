"""The training of the demo model, on a network of a few thousand weights."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from tools.emoji_dataset import FILLERS
from tools.emoji_model import Captions, EmojiModel, augment, image_ids, pack, sample, unpack
from tools.guided_flow import loss_of
from tools.train_emoji import CORE, SHEET, TrainConfig, train

TINY: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 1,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.fixture
def captions() -> Captions:
    return Captions(["red heart\nheart", "slice of pizza\npizza", "a the"])


def tiny_model(captions: Captions) -> EmojiModel:
    torch.manual_seed(0)
    return EmojiModel(len(captions.vocabulary), **TINY)


def test_packing_is_the_one_of_flux_and_goes_back() -> None:
    images = torch.arange(2.0 * 3 * 32 * 32).view(2, 3, 32, 32)
    tokens = pack(images)
    assert tokens.shape == (2, 256, 12)
    # Token 17 is the block at row 1, column 1; channel 7 is green (4..7) at its lower right corner.
    assert tokens[0, 17, 7] == images[0, 1, 3, 3]
    assert torch.equal(unpack(tokens), images)
    assert image_ids(16, torch.device("cpu"))[17].tolist() == [0, 1, 1]


def test_a_caption_becomes_padded_rows_of_the_vocabulary(captions: Captions) -> None:
    ids = captions.encode("Heart, red!").tolist()
    assert [captions.vocabulary[row] for row in ids] == ["heart", "red"] + ["<pad>"] * 10
    assert captions.vocabulary[0] == "<pad>"
    assert set(FILLERS) < set(captions.vocabulary)
    with pytest.raises(KeyError, match="zeppelin"):
        captions.encode("zeppelin")


def test_varied_captions_keep_a_word_that_means_something(captions: Captions) -> None:
    torch.manual_seed(0)
    ids = captions.encode("slice of pizza").expand(4000, -1)
    varied = augment(ids, captions.fillers)
    counts = {word: int((varied == captions.index[word]).any(1).sum()) for word in ("slice", "of", "pizza")}
    assert 1900 < counts["of"] < 2300  # dropped in half of 4000, put back in some: four standard deviations
    assert 3700 < min(counts["slice"], counts["pizza"]) < 4000
    meaningful = (varied > 0) & ~torch.isin(varied, captions.fillers)
    assert meaningful.any(1).all()


def test_a_caption_of_fillers_alone_is_not_emptied(captions: Captions) -> None:
    ids = captions.encode("a the").expand(500, -1)
    assert torch.equal(augment(ids, captions.fillers)[:, :2], ids[:, :2])


def test_an_empty_caption_reads_the_padding_rows(captions: Captions) -> None:
    model, tokens = tiny_model(captions), torch.randn(1, 4, 12)
    nothing = torch.zeros(1, 12, dtype=torch.long)
    arguments = (tokens, torch.tensor([0.5]), torch.tensor([1.0]), nothing)
    with torch.no_grad():
        before = model(*arguments)
        model.pooled.weight[1:] += 1
        assert torch.equal(model(*arguments), before)
        model.pooled.weight[0] += 1
        assert not torch.equal(model(*arguments), before)


@pytest.mark.parametrize("guided", [0, 4])
def test_training_lowers_the_loss(captions: Captions, guided: int) -> None:
    model = tiny_model(captions)
    model.start_from_zero()
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    clean = torch.full((8, 256, 12), 0.5)
    ids = captions.encode("red heart").expand(8, -1)
    losses = []
    for _ in range(25):
        loss = loss_of(model, teacher, clean, ids, guided)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[0] == pytest.approx(1.25, rel=0.1)  # the zeroed network says 0; noise has power 1, clean 0.25
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_a_run_writes_a_checkpoint_that_loads_and_resumes(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "data.npz",
        images=np.zeros((len(CORE), 32, 32, 3), np.uint8),
        names=np.array(CORE),
        categories=np.array(["Objects"] * len(CORE)),
        captions=np.array(SHEET),
    )
    first = TrainConfig(
        data=tmp_path / "data.npz", output=tmp_path / "one", minutes=0.005, device="cpu", batch=2,
        autocast=False, layers=(1, 1, 1), core=True,
    )  # fmt: skip
    changes = {key: value for key, value in TINY.items() if not key.startswith("num_")}
    trained = train(first, **changes)
    loaded = FluxTransformer2DModel.from_pretrained(first.output / "transformer", torch_dtype=torch.float32)
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, trained.transformer.state_dict()[name].half().float())
    written = {str(path.relative_to(first.output)) for path in first.output.rglob("*") if path.is_file()}
    assert written == {
        "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json", "words/vocabulary.json", "words/embeddings.safetensors",
        "training.json", "loss.png", "samples.png",
    }  # fmt: skip
    second = TrainConfig(**{**vars(first), "output": tmp_path / "two", "resume": first.output})
    train(second, **changes)
    assert len(json.loads((tmp_path / "two" / "training.json").read_text())["runs"]) == 2


def test_samples_are_images_and_repeat_with_their_seed(captions: Captions) -> None:
    model, ids = tiny_model(captions), captions.encode("pizza").expand(2, -1)
    images = sample(model, ids, steps=2, seed=3)
    assert images.shape == (2, 3, 32, 32)
    assert images.abs().max() <= 1
    assert torch.equal(images, sample(model, ids, steps=2, seed=3))
    assert not torch.equal(images, sample(model, ids, steps=2, seed=4))
