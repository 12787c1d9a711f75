"""The word table: what it encodes, and that nothing of a prompt is dropped silently."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from taylorseer.errors import BundleError, PromptError, ShapeError
from taylorseer.runtime.words import PAD, WordTable

WORDS = [PAD, "a", "red", "green", "apple", "t-rex", "2"]
TOKENS = np.arange(7 * 4, dtype=np.float16).reshape(7, 4)
POOLED = np.arange(7 * 3, dtype=np.float16).reshape(7, 3) ** 2


def write(folder: Path, words: Any = None, **tables: np.ndarray) -> Path:
    (folder / "vocabulary.json").write_text(json.dumps(WORDS if words is None else words))
    save_file(tables or {"tokens": TOKENS, "pooled": POOLED}, folder / "embeddings.safetensors")
    return folder


@pytest.fixture
def table(tmp_path: Path) -> WordTable:
    return WordTable.load(write(tmp_path))


def test_words_become_rows_and_their_mean(table: WordTable) -> None:
    states, pooled = table.encode(["A red APPLE!", "t-rex, 2"], 5)
    assert states.dtype == pooled.dtype == np.float32
    assert np.array_equal(states[0], TOKENS[[1, 2, 4, 0, 0]])
    assert np.array_equal(states[1], TOKENS[[5, 6, 0, 0, 0]])
    np.testing.assert_allclose(pooled[0], POOLED[[1, 2, 4]].astype(np.float32).mean(0), rtol=1e-6)
    np.testing.assert_allclose(pooled[1], POOLED[[5, 6]].astype(np.float32).mean(0), rtol=1e-6)


def test_the_mean_counts_every_repetition(table: WordTable) -> None:
    _, pooled = table.encode(["red red green"], 3)
    np.testing.assert_allclose(pooled[0], POOLED[[2, 2, 3]].astype(np.float32).mean(0), rtol=1e-6)


def test_an_empty_prompt_is_the_pad(table: WordTable) -> None:
    states, pooled = table.encode([""], 2)
    assert np.array_equal(states[0], TOKENS[[0, 0]])
    assert np.array_equal(pooled[0], POOLED[0])


def test_the_mask_is_one_for_words(table: WordTable) -> None:
    mask = table.attention_mask(["a red apple", "t-rex", ""], 4)
    assert mask.dtype == np.int64
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]  # no words: the pad counts as one


def test_the_mask_refuses_what_the_encoding_refuses(table: WordTable) -> None:
    for prompts, length in ((["a red apple"], 2), ([], 4), (["xylophone"], 4)):
        with pytest.raises(PromptError):
            table.attention_mask(prompts, length)
    with pytest.raises(ShapeError, match="text_length is 0"):
        table.attention_mask(["red"], 0)


def test_float32_tables_are_kept(tmp_path: Path) -> None:
    tokens = np.full((7, 4), 0.1, np.float32)
    states, _ = WordTable.load(write(tmp_path, tokens=tokens, pooled=POOLED)).encode(["red"], 1)
    assert np.array_equal(states[0], tokens[:1])


def test_too_many_words_are_refused_with_the_numbers(table: WordTable) -> None:
    table.encode(["a red apple"], 3)
    with pytest.raises(PromptError, match=r"has 4 words, but 3 fit.*--text-length 4"):
        table.encode(["a", "a red red apple"], 3)


def test_unknown_words_are_all_named_with_close_ones(table: WordTable) -> None:
    with pytest.raises(PromptError) as refusal:
        table.encode(["a gren aple xylophone gren"], 8)
    text = str(refusal.value)
    assert "'gren' (close: 'green')" in text
    assert "'aple' (close: 'apple')" in text
    assert "'xylophone' (nothing close)" in text
    assert text.count("'gren'") == 1


@pytest.mark.parametrize("prompt", ["röd apple", "赤", "red \N{RED APPLE}", "cafe\u0301", "red²"])
def test_signs_that_no_word_has_are_refused(table: WordTable, prompt: str) -> None:
    with pytest.raises(PromptError, match="which no word"):
        table.encode([prompt], 8)


def test_punctuation_separates(table: WordTable) -> None:
    assert np.array_equal(table.encode(["“red”—apple_2"], 3)[0], table.encode(["red apple 2"], 3)[0])


def test_the_pad_cannot_be_asked_for(table: WordTable) -> None:
    with pytest.raises(PromptError, match="'pad'"):
        table.encode([PAD], 4)


def test_no_prompts_and_no_text_are_refused(table: WordTable) -> None:
    with pytest.raises(PromptError, match="no prompts"):
        table.encode([], 4)
    with pytest.raises(ShapeError, match="text_length"):
        table.encode(["red"], 0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (WORDS[1:], "'a'"),
        ([*WORDS[:-1], "red"], "'red'"),
        ([*WORDS[:-1], "Blue"], "'Blue'"),
        ([*WORDS, "blue"], "8 words"),
        ([], PAD),
        ({"a": 1}, "JSON list"),
        ([PAD, 3], "JSON list"),
    ],
)
def test_a_wrong_vocabulary_is_refused(tmp_path: Path, words: Any, named: str) -> None:
    with pytest.raises(BundleError, match=named):
        WordTable.load(write(tmp_path, words))


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"tokens": TOKENS}, "'pooled'"),
        ({"tokens": TOKENS, "pooled": POOLED[:3]}, r"\[3, 3\]"),
        ({"tokens": TOKENS[0], "pooled": POOLED}, r"\[4\]"),
        ({"tokens": TOKENS, "pooled": POOLED.astype(np.int32)}, "int32"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, tables: dict[str, np.ndarray], named: str) -> None:
    with pytest.raises(BundleError, match=named):
        WordTable.load(write(tmp_path, **tables))


@pytest.mark.parametrize("name", ["vocabulary.json", "embeddings.safetensors"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(b"\x00not this")
    with pytest.raises(BundleError, match=name):
        WordTable.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=name):
        WordTable.load(tmp_path)


def test_loading_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from taylorseer.runtime.words import WordTable;"
        "WordTable.load(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(write(tmp_path))], check=True)
