"""The manifest: what is written is read back, and nothing that was not written by the schema is read."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.errors import BundleError, VersionError
from taylorseer.manifest import FORMAT_VERSION, Manifest
from taylorseer.manifest_json import manifest_from_json, manifest_to_json

Json = dict[str, Any]


def damaged(manifest: Manifest, damage: Callable[[Json], object]) -> str:
    data: Json = json.loads(manifest_to_json(manifest))
    damage(data)
    return json.dumps(data)


def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    again = manifest_from_json(manifest_to_json(manifest))
    assert again == manifest
    assert isinstance(again.features[0].shape, tuple) and again.features[1].rows == (1, 4)


def test_conditions_are_the_inputs_that_come_with_a_request(manifest: Manifest) -> None:
    """Not the timestep, which comes with a step; and each by its name, whether it repeats for each step or not."""
    conditions = manifest_from_json(manifest_to_json(manifest)).conditions
    assert {name: spec.shape for name, spec in conditions.items()} == {
        "pooled": ("step_batch", 5),
        "text": ("batch", 3, 6),
    }


def test_a_default_may_be_left_out(manifest: Manifest) -> None:
    text = damaged(manifest, lambda data: data["features"][0].pop("rows"))
    assert manifest_from_json(text) == manifest


def test_a_whole_number_serves_as_a_float(manifest: Manifest) -> None:
    text = damaged(manifest, lambda data: data["pipeline"].update(guidance=4))
    guidance = manifest_from_json(text).pipeline.guidance
    assert guidance == 4.0 and isinstance(guidance, float)


def test_a_newer_format_asks_for_an_upgrade_and_names_the_writer(manifest: Manifest) -> None:
    # A newer manifest may have keys that nobody here knows: the version has to be looked at first.
    text = damaged(manifest, lambda data: data.update(format_version=FORMAT_VERSION + 1, tool_version="9.0", new_key=1))
    message = rf"format {FORMAT_VERSION + 1}, this tool reads up to {FORMAT_VERSION} .*9\.0.*upgrade taylorseer-trt"
    with pytest.raises(VersionError, match=message):
        manifest_from_json(text)


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, 0, -1, str(FORMAT_VERSION), None, FORMAT_VERSION + 0.5])
def test_no_other_format_is_guessed_at(manifest: Manifest, version: object) -> None:
    text = damaged(manifest, lambda data: data.update(format_version=version))
    with pytest.raises(BundleError, match=rf"has format .*not {FORMAT_VERSION}; build the bundle again") as caught:
        manifest_from_json(text)
    assert not isinstance(caught.value, VersionError)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"format_version": 1'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"not JSON.*build the bundle again"):
        manifest_from_json(text)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"manifest"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="not a JSON object"):
        manifest_from_json(text)


KINDS = ("prepare", "full", "forecast", "update")

MALFORMED: dict[str, tuple[Callable[[Json], object], str]] = {
    "unknown key": (lambda data: data.update(colour="red"), "unknown key 'colour'"),
    "unknown key deep": (lambda data: data["pipeline"].update(vae=1), r"manifest\.pipeline: unknown key 'vae'"),
    "missing key": (lambda data: data.pop("layout"), "the key 'layout' is missing"),
    "missing key deep": (lambda data: data["engine"].pop("backend"), r"manifest\.engine: the key 'backend'"),
    "wrong type": (lambda data: data.update(order="1"), r"manifest\.order: '1' is not allowed"),
    "a bool is no integer": (lambda data: data.update(order=True), r"manifest\.order: True is not allowed"),
    "a bool is no float": (
        lambda data: data["pipeline"].update(guidance=True),
        r"manifest\.pipeline\.guidance: True is not allowed",
    ),
    "unknown layout": (lambda data: data.update(layout="folded"), r"manifest\.layout: 'folded' is not allowed"),
    "unknown role": (
        lambda data: data["graphs"]["full"]["inputs"][0].update(role="text"),
        r"manifest\.graphs\.full\.inputs\[0\]\.role: 'text'",
    ),
    "list for an object": (lambda data: data.update(pipeline=[]), "manifest.pipeline: an object is expected"),
    "object for a list": (lambda data: data.update(features={}), r"manifest\.features: \{\} is not allowed"),
    "too many rows": (
        lambda data: data["features"][0].update(rows=[1, 2, 3]),
        r"manifest\.features\[0\]\.rows: .* is not allowed",
    ),
    "size of a file": (
        lambda data: data["files"].update(x={"bytes": 1.5, "sha256": ""}),
        r"manifest\.files\.x\.bytes: 1\.5",
    ),
    **{
        f"no {kind} graph": (
            lambda data, kind=kind: data["graphs"].pop(kind),  # type: ignore[misc]
            rf"found {re.escape(str(sorted({*KINDS} - {kind})))}, not prepare, full, forecast, update",
        )
        for kind in KINDS
    },
    "prepare below the batch": (
        lambda data: data.update(prepare_rows=data["sizes"]["max_batch"] - 1),
        r"manifest\.prepare_rows: \d+ is below sizes\.max_batch",
    ),
    "a graph too many": (
        lambda data: data["graphs"].update(lite=data["graphs"]["full"]),
        r"found \['forecast', 'full', 'lite', 'prepare', 'update'\], not prepare, full, forecast, update",
    ),
    "no rows of prepare": (lambda data: data.pop("prepare_rows"), "the key 'prepare_rows' is missing"),
    "no largest batch": (lambda data: data["sizes"].pop("max_batch"), r"manifest\.sizes: the key 'max_batch'"),
    "unknown dtype": (lambda data: data["features"][0].update(dtype="float8"), "'a' is float8 .*unknown"),
    "unknown dynamic size": (
        lambda data: data["graphs"]["full"]["inputs"][0].update(shape=["batch", "rows", 2]),
        r"'latent' is float32 \['batch', 'rows', 2\]",
    ),
    "state of no feature": (
        lambda data: data["graphs"]["forecast"]["inputs"][1].update(feature="z"),
        r"'state\.a\.0' belongs to no feature",
    ),
    "state above the order": (
        lambda data: data["graphs"]["forecast"]["inputs"][1].update(index=2),
        r"'state\.a\.0' belongs to no feature",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_manifest_is_refused_where_it_is_wrong(manifest: Manifest, name: str) -> None:
    damage, message = MALFORMED[name]
    with pytest.raises(BundleError, match=message + ".*build the bundle again"):
        manifest_from_json(damaged(manifest, damage))
