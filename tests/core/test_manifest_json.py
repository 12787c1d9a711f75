"""The manifest: what is written is read back, and nothing that was not written by the schema is read."""

import dataclasses
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


def test_a_folded_state_is_read_back(folded_manifest: Manifest) -> None:
    again = manifest_from_json(manifest_to_json(folded_manifest))
    assert again == folded_manifest
    assert again.folding is not None and again.folding.terms[1].feature_rows == (0, 3)


def test_a_folded_state_of_order_0_without_gates_is_read_back(folded_manifest: Manifest) -> None:
    assert folded_manifest.folding is not None
    folding = dataclasses.replace(folded_manifest.folding, accumulators=4, carried=0, gates=None)
    full = folded_manifest.graphs["full"]
    full = dataclasses.replace(full, inputs=tuple(s for s in full.inputs if s.role not in ("carried", "gates_ahead")))
    plain = dataclasses.replace(folded_manifest, folding=folding, graphs={**folded_manifest.graphs, "full": full})
    assert manifest_from_json(manifest_to_json(plain)) == plain


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
    "unknown layout": (lambda data: data.update(layout="lite"), r"manifest\.layout: 'lite' is not allowed"),
    "folded without a folding": (
        lambda data: data.update(layout="folded"),
        r"manifest\.folding: it is missing, and the layout is 'folded'",
    ),
    "a tensor of the folded state": (
        lambda data: data["graphs"]["full"]["inputs"][0].update(role="carried"),
        "'latent' is no tensor of the layout 'history'",
    ),
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


def of(kind: str, side: str, name: str) -> Callable[[Json], Json]:
    """Return what finds a tensor of a graph."""
    return lambda data: next(spec for spec in data["graphs"][kind][side] if spec["name"] == name)


def without(kind: str, side: str, name: str) -> Callable[[Json], object]:
    """Return the damage that leaves a tensor out."""
    return lambda data: data["graphs"][kind][side].remove(of(kind, side, name)(data))


MISFOLDED: dict[str, tuple[Callable[[Json], object], str]] = {
    "another layout": (
        lambda data: data.update(layout="history"),
        r"manifest\.folding: it is given, and the layout is 'history'",
    ),
    "coefficients": (
        lambda data: of("forecast", "inputs", "accumulator")(data).update(role="coefficients"),
        "'accumulator' is no tensor of the layout 'folded'",
    ),
    "all are carried": (
        lambda data: data["folding"].update(carried=4),
        r"4 accumulators, 4 of them carried on, in flush groups of 2 are no folded state",
    ),
    "no whole order": (
        lambda data: data["folding"].update(accumulators=5),
        r"5 accumulators, 2 of them carried on, .* are no folded state",
    ),
    "no flush group": (lambda data: data["folding"].update(flush_group=0), r"in flush groups of 0 are no"),
    "a feature without a term": (
        lambda data: data["folding"]["terms"].pop(),
        r"manifest\.folding: the proof has not one term for each feature",
    ),
    "an unknown table": (
        lambda data: data["folding"].update(gates="prepared.gates.bfloat16"),
        r"manifest\.folding: prepare makes no table 'prepared\.gates\.bfloat16'",
    ),
    "an unknown form": (lambda data: data["folding"].update(form="rows"), r"manifest\.folding\.form: 'rows' is not"),
    "an output too few": (
        without("full", "outputs", "accumulator.3"),
        r"manifest\.graphs\.full: 3 tensors of the role 'accumulator' where 4 are expected",
    ),
    "outputs in another order": (
        lambda data: of("full", "outputs", "accumulator.3")(data).update(index=2),
        r"manifest\.graphs\.full: 4 tensors of the role 'accumulator' where 4 are expected, or of another index",
    ),
    "a carried one too few": (
        without("full", "inputs", "carried.0"),
        "1 tensors of the role 'carried' where 2 are expected",
    ),
    "another shape": (
        lambda data: of("full", "inputs", "carried.1")(data).update(shape=["batch", 4, 9]),
        "2 tensors of the role 'carried' where 2 are expected, or of another index, shape or dtype",
    ),
    "another dtype": (
        lambda data: of("forecast", "inputs", "accumulator")(data).update(dtype="bfloat16"),
        r"manifest\.graphs\.forecast: 1 tensors of the role 'accumulator' where 1 are expected, or of another",
    ),
    "no weights": (without("full", "inputs", "fold_weights"), "0 tensors of the role 'fold_weights' where 1 are"),
    "no gates ahead": (without("full", "inputs", "gates_ahead"), "0 tensors of the role 'gates_ahead' where 1 are"),
    "gates of no feature": (
        lambda data: data["folding"].update(gates=None),
        "1 tensors of the role 'gates_ahead' where 0 are expected",
    ),
    "other gates ahead": (
        lambda data: of("full", "inputs", "gates_ahead")(data).update(shape=[4, "batch", 25]),
        "1 tensors of the role 'gates_ahead' where 1 are expected, or of another index, shape or dtype",
    ),
}


@pytest.mark.parametrize("name", MISFOLDED)
def test_a_folded_state_that_its_graphs_do_not_have_is_refused(folded_manifest: Manifest, name: str) -> None:
    damage, message = MISFOLDED[name]
    with pytest.raises(BundleError, match=message + ".*build the bundle again"):
        manifest_from_json(damaged(folded_manifest, damage))
