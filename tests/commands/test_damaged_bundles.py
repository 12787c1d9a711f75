"""A damaged bundle is refused by every command that would run it, before anything is written."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from taylorseer.manifest import FORMAT_VERSION

Run = Callable[..., Any]
Copied = Callable[[str], pathlib.Path]
Damage = Callable[[pathlib.Path], object]


def flip(name: str) -> Damage:
    def damage(folder: pathlib.Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def edit(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: pathlib.Path) -> None:
        data = json.loads((folder / "manifest.json").read_text())
        change(data)
        (folder / "manifest.json").write_text(json.dumps(data))

    return damage


def link_outside(folder: pathlib.Path) -> None:
    graph = folder / "graphs/full.onnx"
    graph.rename(folder.parent / "full.onnx")
    graph.symlink_to(folder.parent / "full.onnx")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "flipped byte in the weights": (flip("graphs/weights.data"), "'graphs/weights.data' does not match its digest"),
    "flipped byte in a graph": (flip("graphs/forecast.onnx"), "'graphs/forecast.onnx' does not match its digest"),
    "flipped byte in prepare": (flip("graphs/prepare.onnx"), "'graphs/prepare.onnx' does not match its digest"),
    "flipped byte in the update graph": (flip("graphs/update.onnx"), "'graphs/update.onnx' does not match its digest"),
    "missing file": (lambda folder: (folder / "graphs/full.onnx").unlink(), "'graphs/full.onnx' is missing"),
    "truncated file": (lambda folder: os.truncate(folder / "graphs/weights.data", 1000), "has 1000 bytes, the man"),
    "newer manifest": (
        edit(lambda data: data.update(format_version=FORMAT_VERSION + 1, tool_version="7.0")),
        f"has format {FORMAT_VERSION + 1}, this tool reads up to {FORMAT_VERSION} (it was written by 7.0): upgrade "
        "taylorseer-trt",
    ),
    "unknown key": (edit(lambda data: data.update(colour=1)), "manifest: unknown key 'colour'"),
    "missing key": (edit(lambda data: data.pop("graphs")), "manifest: the key 'graphs' is missing"),
    "wrong type": (edit(lambda data: data.update(order="2")), "manifest.order: '2' is not allowed there"),
    "not JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "The manifest is not JSON"),
    "path traversal": (
        edit(lambda data: data["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
        "names the file '../x', outside the bundle: do not use this bundle",
    ),
    "absolute path": (
        edit(lambda data: data["files"].update({"/etc/passwd": {"bytes": 0, "sha256": ""}})),
        "names the file '/etc/passwd', outside the bundle",
    ),
    "link out of the bundle": (link_outside, "'graphs/full.onnx' is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "There is no bundle in"),
    "unknown cache field": (edit(lambda data: data["cache"].update(speed=9)), "no cache config field 'speed'"),
    "unknown sampler": (
        edit(lambda data: data["pipeline"]["scheduler"].update(_class_name="Heun")),
        "_class_name = 'Heun' is not supported",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_generates_nothing(run: Run, copied: Copied, tmp_path: pathlib.Path, name: str) -> None:
    damage, message = DAMAGES[name]
    folder = copied("dit-tiny")
    damage(folder)
    assert run("generate", folder, "--prompt", "1", "--output", tmp_path / "out/image.png").refused(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["compare", "verify", "plan", "inspect"])
def test_other_commands_refuse_as_well(run: Run, copied: Copied, command: str) -> None:
    folder = copied("dit-tiny")
    (folder / "graphs/weights.data").unlink()
    outcome = run(command, folder, "--json")
    assert outcome.refused("'graphs/weights.data' is missing")
    assert outcome.out == ""


def test_weights_with_nan_and_honest_digests(
    run: Run, copied: Copied, digest_again: Callable[[pathlib.Path], None], tmp_path: pathlib.Path
) -> None:
    folder = copied("dit-tiny")
    weights = np.fromfile(folder / "graphs/weights.data", np.float32)
    weights[:] = np.nan
    weights.tofile(folder / "graphs/weights.data")
    digest_again(folder)
    outcome = run("generate", folder, "--prompt", "1", "--output", tmp_path / "image.png")
    assert outcome.refused("The prediction of denoising step 0 holds NaN or infinity", "nothing was returned")
    assert not (tmp_path / "image.png").exists()
