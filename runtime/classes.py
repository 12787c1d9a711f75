"""The classes of class-conditional models: a number each, and a name where the checkpoint has ``classes.json``.

That file is a list of names, and the position is the class.  Case and space at the ends make no difference.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from taylorseer.errors import BundleError, PromptError
from taylorseer.runtime.words import close_words

__all__ = ["CLASSES_FILE", "Classes"]

CLASSES_FILE = "classes.json"
"""Where a bundle has the names of its classes, if it has any."""

_AGAIN = "Fetch the checkpoint again, or leave the file out: classes have numbers too."


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of one model.  Raises BundleError for names that do not tell each class from the others."""

    model: str
    """The model's name, for messages."""
    count: int
    """How many there are; the null class of the unconditional half is not one of them."""
    names: tuple[str, ...] = ()
    """One for each class, or none at all."""

    def __post_init__(self) -> None:
        if not self.names:
            return
        if len(self.names) != self.count:
            raise BundleError(
                f"{CLASSES_FILE} has {len(self.names)} names, but {self.model} has {self.count} classes. {_AGAIN}"
            )
        folded = [_folded(name) for name in self.names]
        wrong = [name for name, key in zip(self.names, folded, strict=True) if not key or key.isdigit()]
        wrong += [name for name, key in zip(self.names, folded, strict=True) if folded.count(key) > 1]
        if wrong:
            raise BundleError(
                f"{CLASSES_FILE} must name each class differently, and none with a number alone; found "
                f"{', '.join(map(repr, dict.fromkeys(wrong[:5])))}. {_AGAIN}"
            )

    @classmethod
    def load(cls, path: Path, *, model: str, count: int) -> "Classes":
        """Read the names in ``path``.

        Raises:
            BundleError: the file cannot be read, or is no list of one name for each class.
        """
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path} cannot be read: {error}. {_AGAIN}") from error
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise BundleError(f"{path} must hold a JSON list of names, one for each class. {_AGAIN}")
        return cls(model=model, count=count, names=tuple(names))

    def label(self, prompt: str) -> int:
        """Return the class that ``prompt`` names, or whose number it is.

        Raises:
            PromptError: it is neither.
        """
        # Python refuses to convert thousands of digits.
        if prompt.isascii() and prompt.isdigit() and len(prompt) < 10 and int(prompt) < self.count:
            return int(prompt)
        labels = {_folded(name): label for label, name in enumerate(self.names)}
        if (label := labels.get(_folded(prompt))) is not None:
            return label
        if not self.names:
            raise PromptError(f"{self.model} takes a class number from 0 to {self.count - 1}, not {prompt!r}.")
        close = ", ".join(repr(self.names[labels[key]]) for key in close_words(_folded(prompt), list(labels)))
        raise PromptError(
            f"{self.model} takes a class by name or by number from 0 to {self.count - 1}, not {prompt!r} "
            f"({f'close: {close}' if close else 'nothing close'}). The names are in the bundle's {CLASSES_FILE}."
        )


def _folded(name: str) -> str:
    return name.strip().casefold()
