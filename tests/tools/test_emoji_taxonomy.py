"""From a prompt to its class."""

import pytest

from taylorseer.errors import PromptError
from tools.emoji_taxonomy import EmojiClass, Taxonomy


@pytest.fixture
def taxonomy() -> Taxonomy:
    names = ["slice of pizza", "baby symbol", "baby", "negative squared a"]
    return Taxonomy.of(names, ["Food", "Symbols", "People", "Symbols"], ["prepared", "sign", "person", "alphanum"])


def test_labels_are_alphabetical(taxonomy: Taxonomy) -> None:
    assert taxonomy.categories == ("Food", "People", "Symbols")
    assert taxonomy.subcategories == ("alphanum", "person", "prepared", "sign")
    assert [taxonomy.category_of(label) for label in range(4)] == [2, 1, 0, 2]


def test_names_and_aliases_are_known_in_any_order_and_with_fillers(taxonomy: Taxonomy) -> None:
    for prompt in ("slice of pizza", "pizza", "Pizza slice", "a slice of the pizza", "piece of pizza"):
        assert taxonomy.class_of(prompt) == EmojiClass(category=0, subcategory=2)
    assert taxonomy.class_of("a negative squared") == EmojiClass(category=2, subcategory=0)


def test_a_whole_name_goes_before_one_without_its_fillers(taxonomy: Taxonomy) -> None:
    assert taxonomy.class_of("baby") == EmojiClass(category=1, subcategory=1)
    assert taxonomy.class_of("baby symbol") == EmojiClass(category=2, subcategory=3)


@pytest.mark.parametrize("prompt", ["unicorn", "", "the sign of"])
def test_words_that_name_no_emoji_are_refused(taxonomy: Taxonomy, prompt: str) -> None:
    with pytest.raises(PromptError, match="names no emoji"):
        taxonomy.class_of(prompt)


def test_what_is_written_reads_as_the_same(taxonomy: Taxonomy) -> None:
    again = Taxonomy(taxonomy.names)
    assert again.subcategories == taxonomy.subcategories
    assert again.class_of("pizza") == taxonomy.class_of("pizza")
