"""``taylorseer sign``, and bundles that are asked for a signature."""

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("cryptography")

Run = Callable[..., Any]
Copied = Callable[[str], pathlib.Path]


@pytest.fixture
def key(run: Run, tmp_path: pathlib.Path) -> pathlib.Path:
    outcome = run("sign", "--new-key", "--key", tmp_path / "key.pem")
    assert outcome.out == f"{tmp_path}/key.pem.pub: the public key of {tmp_path}/key.pem, for `--verify-key`\n"
    return tmp_path / "key.pem"


def test_a_signed_bundle_is_inspected_with_its_key(run: Run, copied: Copied, key: pathlib.Path) -> None:
    folder = copied("dit-tiny")
    refused = run("inspect", folder, "--verify-key", f"{key}.pub")
    assert refused.refused("is not signed (no manifest.sig)", "`taylorseer sign`")
    signed = run("sign", folder, "--key", key)
    assert signed.code == 0 and signed.out.startswith(
        f"{folder}/manifest.sig: 5 files, whose digests match, are signed"
    )
    assert run("inspect", folder, "--verify-key", f"{key}.pub").code == 0


def test_both_at_once(run: Run, copied: Copied, tmp_path: pathlib.Path) -> None:
    folder = copied("dit-tiny")
    assert run("sign", folder, "--new-key", "--key", tmp_path / "k").code == 0
    assert run("inspect", folder, "--verify-key", tmp_path / "k.pub").code == 0


def test_a_damaged_bundle_is_not_signed(run: Run, copied: Copied, key: pathlib.Path) -> None:
    folder = copied("dit-tiny")
    with open(folder / "graphs/weights.data", "r+b") as file:
        file.write(b"\xff\xff")
    assert run("sign", folder, "--key", key).refused("'graphs/weights.data' does not match its digest")
    assert not (folder / "manifest.sig").exists()


def test_nothing_to_do_and_no_key(run: Run, key: pathlib.Path, tmp_path: pathlib.Path, copied: Copied) -> None:
    assert run("sign", "--key", key).refused("There is nothing to do: give a bundle to sign, or --new-key")
    assert run("sign", copied("dit-tiny"), "--key", tmp_path / "none").refused("give an Ed25519 key in a PEM file")
    assert run("sign", "--new-key", "--key", key).refused("cannot be written", "File exists")
