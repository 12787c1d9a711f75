"""What is held out: halves that share no prompt, and a gain whose interval is as wide as the prompts differ."""

from collections.abc import Callable

import numpy as np
import pytest

from taylorseer.bundle import Bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import InputError
from taylorseer.runtime.generation import Generator
from taylorseer.runtime.held_out import bootstrap_interval, measure_gain, split_prompts
from taylorseer.runtime.trial import closeness_db

SPARSE = CacheConfig(steps=12, full_steps=(0, 1), order=0)
DENSE = CacheConfig(steps=12, interval=3, order=1)
REQUESTS = [("red heart", 0), ("rocket", 0), ("rocket", 1)]


def test_halves_share_no_prompt() -> None:
    prompts = [f"prompt {i}" for i in range(9)]
    kept, held = split_prompts([*prompts, *prompts], seed=0)
    assert len(kept) == 5 and len(held) == 4 and {*kept, *held} == set(prompts)
    assert split_prompts(prompts, seed=0) == (kept, held) != split_prompts(prompts, seed=1)


def test_too_few_to_split() -> None:
    with pytest.raises(
        InputError, match=r"3 different prompts are too few to hold out half of them: give four or more"
    ):
        split_prompts(["a", "b", "c", "a"], seed=0)


def test_the_gain_is_the_difference_of_the_medians(bundles: Callable[..., Bundle]) -> None:
    seen: list[int] = []
    with Generator(bundles("flux-emoji"), threads=1) as generator:
        gain = measure_gain(generator, REQUESTS, preset=SPARSE, tuned=DENSE, on_request=seen.append)
        back = measure_gain(generator, REQUESTS, preset=DENSE, tuned=SPARSE)
        close = []
        for prompt, seed in REQUESTS:
            reference = generator.generate(prompt, seed=seed, cache=DENSE, every_step_full=True)
            close.append(closeness_db(reference, generator.generate(prompt, seed=seed, cache=DENSE)))
    assert gain.pairs == 3 and seen == [0, 1, 2]
    assert gain.tuned_db == np.median(close) and gain.gain_db == gain.tuned_db - gain.preset_db > 1
    assert gain.improved == 1 and back.improved == 0
    assert gain.interval_db[0] <= gain.gain_db <= gain.interval_db[1]
    assert (back.gain_db, back.preset_db) == (-gain.gain_db, gain.tuned_db)
    assert gain.to_json()["interval_db"] == list(gain.interval_db)


def test_one_prompt_holds_nothing_out(bundles: Callable[..., Bundle]) -> None:
    with (
        Generator(bundles("flux-emoji"), threads=1) as generator,
        pytest.raises(InputError, match="One held-out prompt says nothing about others: hold out two or more"),
    ):
        measure_gain(generator, [("rocket", 0), ("rocket", 1)], preset=SPARSE, tuned=DENSE)


def test_the_interval_covers_what_prompts_differ_by() -> None:
    gains = np.repeat([0.0, 1.0, 2.0, 3.0, 4.0], 4)
    close = np.stack([np.full(20, 30.0), 30.0 + gains], axis=1)
    by_prompt = bootstrap_interval(close, [f"{i // 4}" for i in range(20)])
    by_pair = bootstrap_interval(close, [f"{i}" for i in range(20)])
    assert by_prompt[0] <= by_pair[0] < 2 < by_pair[1] <= by_prompt[1]
    assert np.subtract(*by_prompt[::-1]) > np.subtract(*by_pair[::-1])


def test_equal_gains_leave_no_doubt() -> None:
    close = np.array([[30.0, 31.5]] * 6)
    assert bootstrap_interval(close, list("abcdef")) == (1.5, 1.5)
