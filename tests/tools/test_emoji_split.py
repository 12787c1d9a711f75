"""Which emoji are variants of one another, and that a split keeps them together."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.emoji_split import emoji_of, held_out, variant_groups


def pictures(count: int) -> NDArray[np.uint8]:
    """Return different pictures, also from their mirror images."""
    random = np.random.default_rng(0)
    return np.stack([random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(count)])


@pytest.mark.parametrize(
    "names",
    [
        ("woman farmer", "man farmer light skin tone", "farmer dark skin tone"),
        ("man running", "woman running facing right", "runner medium-dark skin tone"),
        ("people holding hands light skin tone and dark skin tone", "two men holding hands"),
        ("family: man, woman, girl", "family", "family: adult, child, child"),
        ("woman: beard", "bearded person"),
        ("merman", "mermaid"),
        ("woman gesturing ok", "face with ok gesture"),
    ],
)
def test_variants_share_their_emoji(names: tuple[str, ...]) -> None:
    assert len({emoji_of(name) for name in names}) == 1


def test_other_emoji_do_not() -> None:
    names = ["man: red hair", "man: bald", "man running", "man walking", "clock face one oclock", "red heart", "heart"]
    assert len({emoji_of(name) for name in names}) == len(names)


def test_groups_are_by_name_and_by_picture() -> None:
    images = pictures(6)
    images[3] = images[2]
    images[4] = images[2][:, ::-1]
    names = ["cook", "man cook dark skin tone", "norway flag", "bouvet island flag", "mirrored flag", "spain flag"]
    assert variant_groups(names, images).tolist() == [0, 0, 1, 1, 1, 2]


def test_no_group_is_on_both_sides_and_each_subcategory_gives_a_fifth() -> None:
    groups = np.repeat(np.arange(60), 3)
    subcategories = ["big"] * 120 + ["small"] * 54 + ["pair"] * 6
    test = held_out(groups, subcategories)
    sides = [set(test[groups == group].tolist()) for group in range(60)]
    assert all(len(side) == 1 for side in sides)
    assert [int(test[:120].sum()), int(test[120:174].sum()), int(test[174:].sum())] == [8 * 3, 4 * 3, 1 * 3]


def test_the_only_emoji_of_a_subcategory_is_trained_on() -> None:
    assert held_out(np.array([0, 1, 1]), ["alone", "two", "two"]).tolist() == [False, False, False]


def test_a_split_repeats_with_its_seed() -> None:
    groups, subcategories = np.arange(50), ["one"] * 50
    assert (held_out(groups, subcategories, seed=3) == held_out(groups, subcategories, seed=3)).all()
    assert (held_out(groups, subcategories, seed=3) != held_out(groups, subcategories, seed=4)).any()
