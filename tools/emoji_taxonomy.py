"""The classes of emoji, and which emoji belong to them: what `labels.json` of the classifier holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from taylorseer.errors import PromptError
from tools.emoji_dataset import FILLERS, captions_of, split_words

__all__ = ["EmojiClass", "Taxonomy"]


@dataclass(frozen=True)
class EmojiClass:
    """What an emoji counts as."""

    category: int
    """index in `Taxonomy.categories`"""
    subcategory: int
    """index in `Taxonomy.subcategories`"""


class Taxonomy:
    """Categories, their subcategories, and the names and aliases of the emoji of each."""

    def __init__(self, names: dict[str, dict[str, list[str]]]) -> None:
        self.names = names
        """category -> subcategory -> names"""
        self.categories = tuple(sorted(names))
        """Names of the categories; the index is the label."""
        self.subcategories = tuple(sorted(name for inner in names.values() for name in inner))
        """Names of the subcategories; the index is the label."""
        labels = list(self._each())
        self._classes = {frozenset(split_words(name)): label for name, label in labels}
        for name, label in labels:
            self._classes.setdefault(_telling(name), label)
        self._parents = {label.subcategory: label.category for _, label in labels}

    @classmethod
    def of(cls, names: list[str], categories: list[str], subcategories: list[str]) -> Taxonomy:
        """Return the taxonomy of N emoji, each name with its aliases in `tools.emoji_dataset`."""
        nested: dict[str, dict[str, set[str]]] = {}
        for name, category, subcategory in zip(names, categories, subcategories, strict=True):
            known = nested.setdefault(category, {}).setdefault(subcategory, set())
            known |= {name, *captions_of(name, [], set())}
        return cls(
            {
                category: {name: sorted(inner[name]) for name in sorted(inner)}
                for category, inner in sorted(nested.items())
            }
        )

    def _each(self) -> Iterator[tuple[str, EmojiClass]]:
        for category, inner in self.names.items():
            for subcategory, names in inner.items():
                label = EmojiClass(self.categories.index(category), self.subcategories.index(subcategory))
                yield from ((name, label) for name in names)

    def class_of(self, prompt: str) -> EmojiClass:
        """Return the class of a prompt: the name of an emoji or an alias, its words in any order.

        Raises PromptError for words that name no emoji.
        """
        found = self._classes.get(frozenset(split_words(prompt))) or self._classes.get(_telling(prompt))
        if found is None:
            raise PromptError(
                f"{prompt!r} names no emoji whose class is known: use a name of labels.json, such as 'rocket'."
            )
        return found

    def category_of(self, subcategory: int) -> int:
        """Return the label of the category that a subcategory belongs to."""
        return self._parents[subcategory]


def _telling(name: str) -> frozenset[str]:
    """Return the words of a name that are no fillers: a prompt may have those or not."""
    return frozenset(split_words(name)) - frozenset(FILLERS)
