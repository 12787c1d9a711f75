"""From prompts to pictures: what each model takes, what comes out, and that a seed is a picture."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import BackendError, InputError, MemoryPlanError, NonFiniteError, PromptError, ShapeError
from taylorseer.runtime.backend import Memory
from taylorseer.runtime.generation import Generator, random_conditions, sampler_for
from taylorseer.runtime.latents import initial_noise, to_pixels, unpack
from taylorseer.runtime.memory import MemoryPlan
from taylorseer.runtime.words import WordTable

SHORT = CacheConfig(steps=10, interval=3, order=1, warmup_steps=2)


@pytest.fixture(scope="session")
def generator(bundles: Callable[..., Bundle]) -> Callable[[str], Generator]:
    made: dict[str, Generator] = {}

    def generate(name: str) -> Generator:
        if name not in made:
            made[name] = Generator(bundles(name), threads=1)
        return made[name]

    return generate


def test_words_become_the_tables_rows(generator: Callable[[str], Generator], bundles: Callable[..., Bundle]) -> None:
    bundle = bundles("flux-emoji")
    table = WordTable.load(bundle.path("words"))
    hidden, pooled = table.encode(["red heart"], bundle.manifest.sizes["text_length"])
    made = generator("flux-emoji").conditions("Red Heart")
    assert made.keys() == {"encoder_hidden_states", "pooled_projections"}
    np.testing.assert_array_equal(made["encoder_hidden_states"], hidden)
    np.testing.assert_array_equal(made["pooled_projections"], pooled)


def test_a_seed_is_a_picture(generator: Callable[[str], Generator]) -> None:
    emoji = generator("flux-emoji")
    first, again, other = (emoji.generate("red heart", seed=seed, cache=SHORT) for seed in (3, 3, 4))
    assert first.image is not None and again.image is not None and other.image is not None
    assert first.image.shape == (32, 32, 3) and first.image.dtype == np.uint8
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.latent, again.latent)
    assert (first.image != other.image).mean() > 0.1
    np.testing.assert_array_equal(first.image, to_pixels(unpack(first.latent, 32, 32))[0])


def test_prompts_guidance_and_forecasts_make_a_difference(generator: Callable[[str], Generator]) -> None:
    emoji = generator("flux-emoji")
    base = emoji.generate("red heart", seed=0, cache=SHORT).latent
    for change in (
        emoji.generate("rocket", seed=0, cache=SHORT),
        emoji.generate("red heart", seed=0, cache=SHORT, guidance=5.0),
        emoji.generate("red heart", seed=0, cache=SHORT, every_step_full=True),
    ):
        assert not np.array_equal(change.latent, base)


def test_a_request_of_more_steps_gets_a_larger_session(bundles: Callable[..., Bundle]) -> None:
    generator = Generator(bundles("dit-tiny"), threads=1)
    before, long = generator.session, dataclasses.replace(SHORT, steps=60)
    assert before.memory_plan.steps == 50
    first = generator.generate("7", seed=0, cache=long).latent
    assert generator.session is not before and generator.session.memory_plan.steps == 60
    kept = generator.session
    np.testing.assert_array_equal(generator.generate("7", seed=0, cache=long).latent, first)
    generator.generate("7", seed=0, cache=SHORT)
    assert generator.session is kept


def test_the_bundles_own_schedule_and_guidance_are_the_default(generator: Callable[[str], Generator]) -> None:
    dit = generator("dit-tiny")
    default = dit.generate("7", seed=0)
    schedule = CacheConfig.from_preset("dit").schedule()
    assert default.result.full_steps.nonzero()[0].tolist() == list(schedule.full_steps)
    same = dit.generate("7", seed=0, cache=CacheConfig.from_preset("dit", order=2), guidance=4.0)
    np.testing.assert_array_equal(default.latent, same.latent)


def test_a_class_number_is_asked_against_the_null_class(generator: Callable[[str], Generator]) -> None:
    dit = generator("dit-tiny")
    labels = dit.conditions("3")["class_labels"]
    assert labels.tolist() == [3, 10] and labels.dtype == np.int64
    by_name = dit.generate({"class_labels": labels}, seed=1, cache=SHORT)
    by_number = dit.generate("3", seed=1, cache=SHORT)
    np.testing.assert_array_equal(by_name.latent, by_number.latent)
    assert by_number.image is not None and by_number.image.shape == (8, 8, 3)


@pytest.mark.parametrize("prompt", ["10", "-1", "cat", "", "1.0", "²", "٣", " 1"])
def test_what_is_no_class(generator: Callable[[str], Generator], prompt: str) -> None:
    with pytest.raises(PromptError, match="dit-tiny takes a class number from 0 to 9, not"):
        generator("dit-tiny").generate(prompt, seed=0)


def test_a_word_that_the_model_does_not_know(generator: Callable[[str], Generator]) -> None:
    with pytest.raises(PromptError, match=r"words that the model does not know: 'hearrt' .*'heart'"):
        generator("flux-emoji").generate("red hearrt", seed=0)


def test_a_prompt_longer_than_the_text_length(generator: Callable[[str], Generator]) -> None:
    length = generator("flux-emoji").manifest.sizes["text_length"]
    message = f"has {length + 1} words, but {length} fit. Shorten it, or build the bundle with --text-length"
    with pytest.raises(PromptError, match=message):
        generator("flux-emoji").generate(" ".join(["red"] * (length + 1)), seed=0)


def test_a_model_without_text_encoder_names_its_inputs(generator: Callable[[str], Generator]) -> None:
    message = r"no text encoder of its own: give the inputs encoder_hidden_states, pooled_projections as an \.npz"
    with pytest.raises(PromptError, match=message):
        generator("flux-tiny").generate("red heart", seed=0)


@pytest.mark.parametrize(
    ("conditions", "error", "message"),
    [
        ({"class_labels": np.array([1, 5000])}, BackendError, "check the values of the condition inputs"),
        ({"class_labels": np.array([1, 10], np.int32)}, ShapeError, r"int32 \[2\], this bundle was built for int64"),
        ({"class_labels": np.array([1])}, ShapeError, r"int64 \[1\], this bundle was built for int64 \[2\]"),
        ({"labels": np.array([1, 10])}, ShapeError, "no input 'labels'; it takes class_labels"),
        ({}, ShapeError, "'class_labels' is missing"),
    ],
)
def test_conditions_that_do_not_fit(
    generator: Callable[[str], Generator], conditions: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator("dit-tiny").generate(conditions, seed=0, cache=SHORT)


def test_other_numbers_that_do_not_fit(generator: Callable[[str], Generator]) -> None:
    dit = generator("dit-tiny")
    with pytest.raises(InputError, match="seed -1 is negative"):
        dit.generate("1", seed=-1, cache=SHORT)
    with pytest.raises(NonFiniteError, match="The guidance is nan: give a finite number"):
        dit.generate("1", seed=0, cache=SHORT, guidance=float("nan"))
    with pytest.raises(InputError, match="steps = 1001 is not supported"):
        dit.generate("1", seed=0, cache=CacheConfig(steps=1001))


def test_a_clip_has_its_frames_first(generator: Callable[[str], Generator]) -> None:
    video = generator("hunyuan-video-tiny")
    made = video.generate(random_conditions(video.manifest, 0), seed=0, cache=SHORT)
    assert made.image is not None and made.image.shape == (3, 8, 12, 3)
    np.testing.assert_array_equal(made.image[1], to_pixels(made.latent[:, :, 1])[0])


def test_random_conditions_are_seeded_and_fit(generator: Callable[[str], Generator]) -> None:
    for name in ("flux-tiny", "dit-tiny", "hunyuan-video-tiny"):
        manifest = generator(name).manifest
        specs = {name: spec.dtype for name, spec in manifest.conditions.items()}
        made, again = random_conditions(manifest, 5), random_conditions(manifest, 5)
        assert {key: str(value.dtype) for key, value in made.items()} == specs
        assert all(np.array_equal(made[key], again[key]) for key in made)
    first, other = (random_conditions(generator("flux-tiny").manifest, seed) for seed in (0, 1))
    assert not np.array_equal(first["pooled_projections"], other["pooled_projections"])


def test_the_noise_is_the_seeds_and_the_sampler_the_models(generator: Callable[[str], Generator]) -> None:
    session = generator("flux-tiny").session
    assert sampler_for(session, 7).steps == 7
    assert initial_noise(session.latent_shape, 1).shape == (1, 48, 12)


def test_a_longer_request_gets_a_larger_session(bundles: Callable[..., Bundle]) -> None:
    with Generator(bundles("flux-emoji"), threads=1) as emoji:
        longer = dataclasses.replace(SHORT, steps=60)
        assert emoji.session.memory_plan.steps < 60
        assert len(emoji.generate("pizza", seed=1, cache=longer).result.full_steps) == 60
        assert emoji.session.memory_plan.steps == 60


def test_a_request_that_does_not_fit_leaves_the_generator_as_it_was(
    bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Generator(bundles("flux-emoji"), threads=1) as emoji:
        expected = emoji.generate("pizza", seed=1, cache=SHORT).latent
        reserve = emoji.session.model.backend.reserve

        def full(plan: MemoryPlan) -> Memory:
            plan.require_fits(0 if plan.steps > 50 else plan.total_bytes)
            return reserve(plan)

        monkeypatch.setattr(emoji.session.model.backend, "reserve", full)
        with pytest.raises(MemoryPlanError, match="The session needs"):
            emoji.generate("pizza", seed=1, cache=dataclasses.replace(SHORT, steps=60))
        np.testing.assert_array_equal(emoji.generate("pizza", seed=1, cache=SHORT).latent, expected)
