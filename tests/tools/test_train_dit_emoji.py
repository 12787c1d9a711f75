"""The training of the class-conditional demo model, on a network of a few thousand weights."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

from taylorseer.runtime.samplers import sampler_from_config
from tools.noise_levels import NoiseLevels, log_likelihood
from tools.train_dit_emoji import MODEL, SHEET, DitConfig, Labels, class_names, loss_of, make_model, sample, train
from tools.training import LossLog, learning_rate, moments

TINY: dict[str, Any] = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "patch_size": 8}


def linear_scheduler(prediction: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type=prediction)


def wake(model: DiTTransformer2DModel) -> None:
    """Give the zeroed last layers weights, so that labels reach the output."""
    for module in (model.proj_out_1, model.proj_out_2):
        torch.nn.init.normal_(module.weight)


def test_classes_are_categories_then_subcategories_each_alphabetical() -> None:
    assert class_names(["B", "A", "B"], ["z", "c", "y"]) == ["A", "B", "c", "y", "z"]


def test_a_name_of_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="hearts: both a category and a subcategory"):
        class_names(["hearts"], ["hearts"])


def test_each_image_is_shown_under_both_labels_and_at_times_under_none() -> None:
    torch.manual_seed(0)
    labels = Labels(["A", "B"], ["x", "y"], "cpu")
    drawn = labels.draw(torch.ones(10_000, dtype=torch.long))
    counts = torch.bincount(drawn, minlength=5).tolist()
    assert counts[0] == counts[2] == 0
    assert abs(counts[labels.null] - 1000) < 5 * 30  # five standard deviations, here and below
    assert abs(counts[1] - 4500) < 5 * 50
    assert abs(counts[3] - 4500) < 5 * 50


def test_the_bound_is_the_divergence_of_ddpm_s_posteriors() -> None:
    torch.manual_seed(0)
    scheduler, level = linear_scheduler(), 300
    kept, before = (scheduler.alphas_cumprod[index].double() for index in (level, level - 1))
    beta = 1 - kept / before
    clean, noise, between = (torch.randn(1, 3, 4, 4, dtype=torch.float64) for _ in range(3))
    predicted = noise + 0.3
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def mean(image: torch.Tensor) -> torch.Tensor:  # DDPM, equation 7
        return (before.sqrt() * beta * image + (1 - beta).sqrt() * (1 - before) * noisy) / (1 - kept)

    true_variance = beta * (1 - before) / (1 - kept)
    guess = (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()
    fraction = (between + 1) / 2
    deviation = (fraction * beta.log() + (1 - fraction) * true_variance.log()).exp().sqrt()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean(clean), true_variance.sqrt()),
        torch.distributions.Normal(mean(guess), deviation),
    )
    levels = NoiseLevels(scheduler, "cpu")
    bound = levels.bound(torch.tensor([level]), clean.float(), (noise - predicted).float(), between.float())
    torch.testing.assert_close(bound.double(), expected.mean() / math.log(2), rtol=1e-4, atol=0)


def test_the_last_level_of_the_bound_counts_the_bits_of_8_bit_pixels() -> None:
    values = torch.arange(256) / 127.5 - 1
    total = log_likelihood(values, torch.full_like(values, 0.1), torch.tensor(-2.0)).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), rtol=1e-4, atol=0)
    levels, clean = NoiseLevels(linear_scheduler(), "cpu"), values[77:78].view(1, 1, 1, 1)
    error, between = torch.full_like(clean, 0.5), torch.ones_like(clean)
    kept, beta = 1 - 1e-4, 1e-4
    mean = clean + math.sqrt(beta / kept) * error  # what a predicted noise that is 0.5 too small leaves in the image
    expected = -log_likelihood(clean, mean, torch.tensor(beta).log() / 2) / math.log(2)
    bound = levels.bound(torch.tensor([0]), clean, error, between)
    torch.testing.assert_close(bound, expected.squeeze(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_model_that_knows_the_black_images_has_no_error(prediction: str) -> None:
    levels = NoiseLevels(linear_scheduler(prediction), "cpu")

    def oracle(noisy: torch.Tensor, *, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        noise = noisy / levels.at("noise", timestep)
        target = levels.at("signal", timestep) * noise if prediction == "v_prediction" else noise
        return (torch.cat([target, torch.full_like(target, -1.0)], dim=1),)

    torch.manual_seed(0)
    error, bound = loss_of(oracle, levels, torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.long))
    assert error.item() < 1e-9
    assert bound.item() < 1e-6


def test_training_lowers_the_error_of_the_noise() -> None:
    torch.manual_seed(0)
    model, levels = make_model(2, **TINY | {"patch_size": 4}), NoiseLevels(linear_scheduler(), "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    clean, labels = torch.full((32, 3, 32, 32), 0.5), torch.zeros(32, dtype=torch.long)
    errors = []
    for _ in range(40):
        error, bound = loss_of(model, levels, clean, labels)
        (error + bound).backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.item())
    assert errors[0] == pytest.approx(1.0, rel=0.05)  # the zeroed network predicts no noise; noise has power 1
    assert np.mean(errors[-5:]) < 0.9 * errors[0]


def test_the_variance_alone_learns_from_the_bound() -> None:
    torch.manual_seed(0)
    model, levels = make_model(2, **TINY), NoiseLevels(linear_scheduler(), "cpu")
    _, bound = loss_of(model, levels, torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))
    bound.backward()
    by_channel = model.proj_out_2.bias.grad.view(8, 8, 6).abs().amax((0, 1))
    assert (by_channel[:3] == 0).all()
    assert (by_channel[3:] > 0).all()


def test_no_block_drops_labels_by_itself() -> None:
    torch.manual_seed(0)
    model, levels = make_model(2, **TINY), NoiseLevels(linear_scheduler(), "cpu")
    wake(model)
    loss_of(model, levels, torch.zeros(64, 3, 32, 32), torch.zeros(64, dtype=torch.long))[0].backward()
    table = model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight.grad
    assert table.abs().amax(1).gt(0).tolist() == [True, False, False]


def data_file(folder: Path) -> Path:
    np.savez(
        folder / "data.npz",
        images=np.zeros((3, 32, 32, 3), np.uint8),
        names=np.array(["dog", "heart", "waving hand light skin tone"]),
        categories=np.array(["Animals & Nature", "Smileys & Emotion", "People & Body"]),
        subcategories=np.array(["animal-mammal", "heart", "hand-fingers-open"]),
    )
    return folder / "data.npz"


def test_a_run_writes_a_checkpoint_that_loads_and_resumes(tmp_path: Path) -> None:
    first = DitConfig(data=data_file(tmp_path), output=tmp_path / "one", minutes=0.005, device="cpu", batch=2)
    trained = train(first, **TINY)
    loaded = DiTTransformer2DModel.from_pretrained(first.output / "transformer", torch_dtype=torch.float32)
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, trained.state_dict()[name].half().float())
    assert not any(weight.requires_grad for weight in trained.parameters())
    written = {str(path.relative_to(first.output)) for path in first.output.rglob("*") if path.is_file()}
    assert written == {
        "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json", "classes.json", "training.json", "loss.png", "samples.png",
    }  # fmt: skip
    names = json.loads((first.output / "classes.json").read_text())
    assert names[:4] == ["Animals & Nature", "People & Body", "Smileys & Emotion", "animal-mammal"]
    assert loaded.config.num_embeds_ada_norm == len(names) == 6
    second = DitConfig(**{**vars(first), "output": tmp_path / "two", "resume": first.output})
    train(second, **TINY)
    runs = json.loads((tmp_path / "two" / "training.json").read_text())["runs"]
    assert len(runs) == 2
    assert runs[1]["steps"] >= 1
    (first.output / "classes.json").write_text(json.dumps(["other"]))
    with pytest.raises(ValueError, match="1 classes, which are not the 6 of the data"):
        train(second, **TINY)
    with pytest.raises(ValueError, match="would overwrite it"):
        train(DitConfig(**{**vars(second), "output": first.output}), **TINY)


def test_the_runtime_takes_the_scheduler_that_is_saved(tmp_path: Path) -> None:
    config = DitConfig(data=data_file(tmp_path), output=tmp_path / "one", minutes=0.0, device="cpu", batch=2)
    train(config, **TINY)
    saved = json.loads((config.output / "scheduler" / "scheduler_config.json").read_text())
    sampler = sampler_from_config(saved, 50)
    published = sampler_from_config(MODEL["pipeline"]["scheduler"], 50)
    np.testing.assert_array_equal(sampler.updates, published.updates)
    assert sampler.clip == published.clip


def test_samples_are_images_that_repeat_with_their_seed_and_heed_guidance() -> None:
    torch.manual_seed(0)
    model, labels = make_model(2, **TINY), torch.tensor([0, 1])
    wake(model)
    images = sample(model, labels, steps=3, seed=3)
    assert images.shape == (2, 3, 32, 32)
    assert images.abs().max() <= 1
    assert torch.equal(images, sample(model, labels, steps=3, seed=3))
    assert not torch.equal(images, sample(model, labels, steps=3, seed=4))
    assert not torch.equal(images, sample(model, labels, steps=3, seed=3, guidance=1.0))


def test_the_sheet_shows_distinct_classes_whose_labels_fit_under_them() -> None:
    assert len(set(SHEET)) == len(SHEET) == 32
    assert max(map(len, SHEET)) <= 20


def test_a_signal_ends_a_run_in_good_order() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    for moment in moments(60):
        seen.append(moment.step)
        if moment.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_rate_rises_then_falls_to_zero() -> None:
    assert learning_rate(2.0, 0.015) == pytest.approx(1.0)
    assert learning_rate(2.0, 0.5) == pytest.approx(1.0)
    assert learning_rate(2.0, 1.0) == pytest.approx(0.0)


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    losses = LossLog(every=2)
    losses.add(1, loss=torch.tensor(1.0))
    with pytest.raises(FloatingPointError, match="before 2"):
        losses.add(2, loss=torch.tensor(math.nan))
