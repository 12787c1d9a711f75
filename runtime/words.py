"""The demo models' text encoder: a table with one row a word.

The folder holds ``vocabulary.json`` (list of words; the first is ``<pad>``) and ``embeddings.safetensors``
with ``tokens`` [V, D] and ``pooled`` [V, P], fp16 or fp32.  A prompt becomes what a diffusion transformer
reads: one row per word, and one vector for the whole prompt.  Large models bring their own encoders.
"""

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import BundleError, DependencyError, PromptError, ShapeError

__all__ = ["PAD", "WordTable", "close_words"]

PAD = "<pad>"
"""Row 0 of the table: what fills the text after the last word."""

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_AGAIN = "Fetch or train the text encoder again."

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WordTable:
    """Words and their embeddings.  Raises BundleError when they do not belong together."""

    vocabulary: tuple[str, ...]
    """V words; the position is the row, and the first is :data:`PAD`."""
    tokens: Floats
    """float32 [V, D]: the rows of ``encoder_hidden_states``."""
    pooled: Floats
    """float32 [V, P]: the rows whose mean is ``pooled_projections``."""

    def __post_init__(self) -> None:
        _check_vocabulary(self.vocabulary)
        for name, table in (("tokens", self.tokens), ("pooled", self.pooled)):
            if table.ndim != 2 or len(table) != len(self.vocabulary):
                raise BundleError(
                    f"word table: {name!r} has shape {list(table.shape)}, but the vocabulary has "
                    f"{len(self.vocabulary)} words and needs one row each. {_AGAIN}"
                )

    @classmethod
    def load(cls, folder: Path) -> "WordTable":
        """Read the table in ``folder``.

        Raises BundleError for files that are missing, unreadable or inconsistent, and DependencyError without
        safetensors.
        """
        vocabulary = _read_vocabulary(folder / "vocabulary.json")
        tables = _read_tables(folder / "embeddings.safetensors")
        return cls(vocabulary, tables["tokens"], tables["pooled"])

    def encode(self, prompts: Sequence[str], text_length: int) -> tuple[Floats, Floats]:
        """Return ``encoder_hidden_states`` [B, text_length, D] and ``pooled_projections`` [B, P], float32.

        Words are runs of ``a-z 0-9`` and inner hyphens in the lower-cased prompt; punctuation separates them.
        The rows after the last word are row 0; the pooled vector is the mean over the words, each repetition
        counted, or row 0 without words.

        Raises PromptError for no prompts, too many words, an unknown word or a letter that no word can have: no word
        that the user wrote is dropped silently.  Raises ShapeError for ``text_length`` below 1.
        """
        rows = self._known(prompts, text_length)
        padded = np.zeros((len(rows), text_length), np.intp)
        for line, known in zip(padded, rows, strict=True):
            line[: len(known)] = known
        pooled = np.stack([self.pooled[known or [0]].mean(axis=0) for known in rows])
        return self.tokens[padded], pooled

    def attention_mask(self, prompts: Sequence[str], text_length: int) -> NDArray[np.int64]:
        """Return ``encoder_attention_mask`` [B, text_length], int64: 1 for words and 0 for what fills up the rest.

        Without words the first row counts as one, as models that divide by the number of words were trained.

        Raises what :meth:`encode` raises.
        """
        rows = self._known(prompts, text_length)
        mask = np.zeros((len(rows), text_length), np.int64)
        for line, known in zip(mask, rows, strict=True):
            line[: max(len(known), 1)] = 1
        return mask

    def _known(self, prompts: Sequence[str], text_length: int) -> list[list[int]]:
        """Return the table's rows of each prompt's words, having refused what cannot be encoded."""
        if text_length < 1:
            raise ShapeError(f"text_length is {text_length}; use the bundle's, which is at least 1.")
        if not prompts:
            raise PromptError("there are no prompts; give at least one, which may be empty ('').")
        return [self._rows(prompt, text_length) for prompt in prompts]

    def _rows(self, prompt: str, text_length: int) -> list[int]:
        """Return the table's row of each word in ``prompt``."""
        words = _split(prompt)
        if len(words) > text_length:
            raise PromptError(
                f"prompt {prompt!r} has {len(words)} words, but {text_length} fit. Shorten it, or build the "
                f"bundle with --text-length {len(words)}."
            )
        index = {word: row for row, word in enumerate(self.vocabulary)}
        unknown = list(dict.fromkeys(word for word in words if word not in index))
        if unknown:
            hints = "; ".join(_hint(word, self.vocabulary[1:]) for word in unknown)
            raise PromptError(f"prompt {prompt!r} has words that the model does not know: {hints}.")
        return [index[word] for word in words]


def _split(prompt: str) -> list[str]:
    """Split ``prompt`` into words, having refused letters, digits and symbols that no word can have."""
    lowered = prompt.lower()
    foreign = {sign for sign in lowered if not sign.isascii() and unicodedata.category(sign)[0] in "LMNS"}
    if foreign:
        raise PromptError(
            f"prompt {prompt!r} has {_listed(sorted(foreign))}, which no word of this model can have: words "
            "are made of a-z, 0-9 and '-'. Write it with these."
        )
    return _WORD.findall(lowered)


def close_words(word: str, known: Sequence[str]) -> list[str]:
    """Return up to three of the ``known`` words that look like ``word``, the closest first."""
    return difflib.get_close_matches(word, known)


def _hint(word: str, known: Sequence[str]) -> str:
    """Name an unknown word with the known words that look like it."""
    close = close_words(word, known)
    return f"{word!r} (close: {_listed(close)})" if close else f"{word!r} (nothing close)"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(repr(word) for word in words)


def _check_vocabulary(words: tuple[str, ...]) -> None:
    """Refuse a list that does not start with the pad, or repeats a word, or has one that no prompt can."""
    counts = Counter(words[1:])
    wrong = [word for word, count in counts.items() if count > 1 or not _WORD.fullmatch(word)]
    if words[:1] != (PAD,) or wrong:
        raise BundleError(
            f"word table: the vocabulary must start with {PAD!r} and go on with distinct words of a-z, 0-9 "
            f"and '-'; found {_listed([*words[:1], *wrong[:5]])}. {_AGAIN}"
        )


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise BundleError(f"word table: {path} must hold a JSON list of words. {_AGAIN}")
    return tuple(words)


def _read_tables(path: Path) -> dict[str, Floats]:
    """Return the two tables as float32; safetensors is imported here because only demo models need it."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise DependencyError("word tables need safetensors; install it: pip install safetensors") from error
    try:
        tables = load_file(path)
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise _unreadable(path, error) from error
    found = {name: str(table.dtype) for name, table in tables.items()}
    if any(found.get(name) not in ("float16", "float32") for name in ("tokens", "pooled")):
        raise BundleError(f"word table: {path} needs 'tokens' and 'pooled', fp16 or fp32; has {found}. {_AGAIN}")
    return {name: tables[name].astype(np.float32) for name in ("tokens", "pooled")}


def _unreadable(path: Path, error: Exception) -> BundleError:
    return BundleError(f"word table: {path} cannot be read: {error}. {_AGAIN}")
