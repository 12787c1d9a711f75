"""The campaign's short form: some hundred faults on a tiny bundle, and every known way out of it."""

import collections
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.errors import BundleError
from taylorseer.runtime.words import WordTable
from tools.bundle_faults import FAULTS
from tools.fault_trial import BAD, Trial
from tools.fuzz_manifest import read_both
from tools.inject_faults import attack, campaign
from tools.manifest_grammar import mutated_text
from tools.parser_watch import ParserWatch
from tools.path_attacks import ATTACKS, copy_linked, edit


@pytest.fixture(scope="module")
def trials(bundles: Callable[..., Bundle]) -> list[Trial]:
    """20 faults of each kind."""
    pair = [bundles("dit-tiny").folder, bundles("dit-tiny", "folded").folder]
    return list(campaign(pair, 20 * len(FAULTS), seed=11))


def test_no_fault_gives_a_wrong_image_or_a_crash_and_nothing_is_parsed_early(trials: list[Trial]) -> None:
    assert [trial for trial in trials if trial.verdict in BAD] == []
    assert collections.Counter(trial.fault for trial in trials) == dict.fromkeys(FAULTS, 20)


def test_damage_to_files_is_refused_and_never_harmless(trials: list[Trial]) -> None:
    """Of the manifest a blank may change; of every other file each bit counts."""
    files = [trial for trial in trials if "manifest" not in trial.what and trial.what != "nothing"]
    assert len(files) > 80
    assert {(trial.verdict, trial.detail) for trial in files} == {("refused", "BundleError")}


def test_parsers_are_seen(trials: list[Trial]) -> None:
    """Some faults are harmless, such as a blank more; then graphs are parsed, after the digests."""
    parsed: collections.Counter[str] = collections.Counter()
    for trial in trials:
        parsed.update(trial.parsed)
    assert parsed["onnxruntime.InferenceSession"] == parsed["taylorseer.bundle.external_locations"] > 0


@pytest.mark.parametrize("name", ATTACKS)
def test_a_way_out_is_refused(bundles: Callable[..., Bundle], tmp_path: pathlib.Path, name: str) -> None:
    trial = attack(bundles("dit-tiny").folder, name, tmp_path)
    assert trial.verdict == "refused", trial
    assert trial.parsed.keys() <= {"taylorseer.bundle.external_locations"}


def test_there_are_forty_ways_out_and_more() -> None:
    assert len(ATTACKS) >= 40


def test_an_attack_is_what_is_refused_and_not_its_copy(bundles: Callable[..., Bundle], tmp_path: pathlib.Path) -> None:
    """The copy that attacks are made of is a sound bundle, and so is one whose manifest was only written anew."""
    folder = copy_linked(bundles("dit-tiny").folder, tmp_path / "x")
    edit(folder, lambda data: data.update(layout_reason="another sentence"))
    bundle = open_bundle(folder)
    assert [bundle.graph_path(kind).name for kind in ("full", "update")] == ["full.onnx", "update.onnx"]


def test_the_watch_sees_what_is_parsed_too_soon(bundles: Callable[..., Bundle], tmp_path: pathlib.Path) -> None:
    import onnx_ir as ir

    folder = copy_linked(bundles("dit-tiny").folder, tmp_path / "x")
    watch = ParserWatch(folder)
    with watch.watching():
        ir.load(folder / "graphs/full.onnx")
        json.loads("{}")
        open_bundle(folder)
        ir.load(folder / "graphs/full.onnx")
    assert watch.early == [f"onnx_ir.load of {folder / 'graphs/full.onnx'}", "json.loads of a text"]


def test_a_word_table_that_the_manifest_does_not_name_is_not_read(
    bundles: Callable[..., Bundle], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taylorseer.runtime.generation import Generator

    folder = copy_linked(bundles("flux-tiny").folder, tmp_path / "x")
    edit(folder, lambda data: data["pipeline"].update(text="words"))
    (folder / "words").mkdir()
    (folder / "words/vocabulary.json").write_text("[]")
    monkeypatch.setattr(WordTable, "load", None)  # nobody may call it
    with pytest.raises(BundleError, match=r"'words/vocabulary\.json' is none of the bundle's files"):
        Generator(open_bundle(folder), threads=1)


def test_inspect_parses_no_graph_that_was_altered(
    bundles: Callable[..., Bundle], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from taylorseer.cli import main

    folder = copy_linked(bundles("dit-tiny").folder, tmp_path / "x")
    graph = folder / "graphs/full.onnx"
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    graph.unlink()
    graph.write_bytes(content)
    watch = ParserWatch(folder)
    with watch.watching():
        assert main(["inspect", str(folder)]) == 1
    assert "'graphs/full.onnx' does not match its digest" in capsys.readouterr().err
    assert watch.early == []


def test_the_reader_of_manifests_survives_its_grammar(bundles: Callable[..., Bundle]) -> None:
    manifest: dict[str, Any] = json.loads((bundles("dit-tiny").folder / "manifest.json").read_bytes())
    numbers = random.Random(7)
    accepted = sum(read_both(mutated_text(manifest, numbers)) for _ in range(300))
    assert 0 < accepted < 300  # mutations are neither all harmless nor all hopeless


def test_a_nan_that_a_stranger_put_into_the_weights_ends_the_first_full_step(
    bundles: Callable[..., Bundle], tmp_path: pathlib.Path, digest_again: Callable[[pathlib.Path], None]
) -> None:
    import numpy as np

    from taylorseer.errors import NonFiniteError
    from taylorseer.runtime.generation import Generator, random_conditions

    folder = copy_linked(bundles("dit-tiny").folder, tmp_path / "x")
    weights = np.fromfile(folder / "graphs/weights.data", np.float32)
    (folder / "graphs/weights.data").unlink()
    weights[len(weights) // 2 :] = np.nan
    weights.tofile(folder / "graphs/weights.data")
    digest_again(folder)
    steps: list[int] = []
    generator = Generator(open_bundle(folder), threads=1)
    conditions = random_conditions(generator.manifest, 0)
    with pytest.raises(NonFiniteError, match="The prediction of denoising step 0 holds NaN"):
        generator.generate(conditions, seed=0, on_step=lambda step, full: steps.append(step))
    assert steps == []
