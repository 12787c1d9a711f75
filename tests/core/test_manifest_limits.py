"""Bounds of a manifest: each is refused just beyond it, with the field named."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer import manifest_limits as limits
from taylorseer.errors import BundleError
from taylorseer.manifest import Manifest
from taylorseer.manifest_json import manifest_from_json, manifest_to_json, sealed
from taylorseer.manifest_limits import check_limits

Json = dict[str, Any]


def files(count: int) -> Json:
    return {f"{number}": {"bytes": 0, "sha256": "0" * 64} for number in range(count)}


BEYOND: dict[str, tuple[Callable[[Json], object], str]] = {
    "files": (lambda data: data.update(files=files(limits.MOST_FILES + 1)), r"manifest\.files: 4097 is out of bounds"),
    "features": (
        lambda data: data.update(dead_features=["x"] * (limits.MOST_FEATURES + 1)),
        r"manifest\.dead_features: 4097 is out of bounds",
    ),
    "order": (lambda data: data.update(order=limits.HIGHEST_ORDER + 1), r"manifest\.order: 17 is out of bounds"),
    "negative order": (lambda data: data.update(order=-1), r"manifest\.order: -1 is out of bounds"),
    "rows": (lambda data: data.update(prepare_rows=limits.MOST_ROWS + 1), r"manifest\.prepare_rows: .* out of bounds"),
    "no height": (lambda data: data["sizes"].update(height=0), r"manifest\.sizes\.height: 0 is out of bounds"),
    "width": (lambda data: data["sizes"].update(width=2**21), r"manifest\.sizes\.width: 2097152 is out of bounds"),
    "bytes of a file": (
        lambda data: data["files"].update(x={"bytes": -1, "sha256": "0" * 64}),
        r"manifest\.files\.x\.bytes: -1 is out of bounds",
    ),
    "digest": (lambda data: data["files"].update(x={"bytes": 1, "sha256": "0" * 63}), "'x' has no SHA-256 digest"),
    "digest in upper case": (
        lambda data: data["files"].update(x={"bytes": 1, "sha256": "A" * 64}),
        "'x' has no SHA-256 digest",
    ),
    "guidance": (
        lambda data: data["pipeline"].update(guidance=1e10),
        r"manifest\.pipeline\.guidance: .* out of bounds",
    ),
    "rank": (
        lambda data: data["features"][0].update(shape=["batch"] + [1] * 8),
        r"manifest\.features\.a\.shape: .* is no shape",
    ),
    "empty tensor": (
        lambda data: data["graphs"]["full"]["inputs"][0].update(shape=["batch", 0]),
        r"manifest\.graphs\.full\.latent\.shape: .* is no shape",
    ),
    "giant tensor": (
        lambda data: data["graphs"]["full"]["inputs"][0].update(shape=["batch", 2**30, 2**30]),
        r"manifest\.graphs\.full\.latent\.shape: .* is no shape",
    ),
    "no inputs": (
        lambda data: data["graphs"]["update"].update(inputs=[]),
        r"manifest\.graphs\.update\.inputs: 0 is out of bounds",
    ),
    "plans": (
        lambda data: data["engine"].update(
            plans=[{"kind": "full", "file": "x", "compute_capability": "8.9", "fingerprint": ""}] * 257
        ),
        r"manifest\.engine\.plans: 257 is out of bounds",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_out_of_bounds_is_refused_by_its_field(manifest: Manifest, name: str) -> None:
    change, message = BEYOND[name]
    data = json.loads(manifest_to_json(manifest))
    change(data)
    with pytest.raises(BundleError, match=message + ".*build the bundle again"):
        manifest_from_json(json.dumps(sealed(data)))


def test_accumulators(folded_manifest: Manifest) -> None:
    assert folded_manifest.folding is not None
    folding = dataclasses.replace(folded_manifest.folding, accumulators=limits.MOST_ACCUMULATORS + 1)
    with pytest.raises(BundleError, match=r"manifest\.folding\.accumulators: 1025 is out of bounds"):
        check_limits(dataclasses.replace(folded_manifest, folding=folding))


def test_a_published_model_of_today_is_far_within(manifest: Manifest) -> None:
    """HunyuanVideo at 720p: 118,800 image rows, and 80 features of some four tensors each."""
    check_limits(
        dataclasses.replace(
            manifest,
            sizes=manifest.sizes | {"height": 720, "width": 1280, "frames": 129},
            features=tuple(
                dataclasses.replace(manifest.features[0], name=str(number), shape=("batch", 118_800, 3072))
                for number in range(80)
            ),
        )
    )
