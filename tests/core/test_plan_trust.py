"""Whose plans are loaded: one's own by their record, others' by a key or by the user's word."""

import dataclasses
import pathlib
from collections.abc import Callable

import pytest

from taylorseer.bundle import Bundle, draft_bundle, open_bundle
from taylorseer.errors import BundleError, UntrustedPlanError
from taylorseer.manifest import Manifest, PlanSpec
from taylorseer.plan_trust import is_built_here, record_plan, records_folder, require_trusted_plan

NAME = "plans/full-8.9.plan"


@pytest.fixture(autouse=True)
def records(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/taylorseer/plans"


@pytest.fixture
def folder(manifest: Manifest, tmp_path: pathlib.Path) -> pathlib.Path:
    """A bundle with a plan that somebody else built."""
    plan = PlanSpec(kind="full", file=NAME, compute_capability="8.9", fingerprint="0" * 64)
    with draft_bundle(tmp_path / "x") as draft:
        for graph in manifest.graphs.values():
            draft.path(graph.file).write_bytes(b"graph")
        draft.path(NAME).write_bytes(b"plan")
        engine = dataclasses.replace(manifest.engine, plans=(plan,))
        return draft.commit(dataclasses.replace(manifest, engine=engine)).folder


def test_a_plan_from_elsewhere_is_refused_and_says_what_to_do(folder: pathlib.Path) -> None:
    with pytest.raises(
        UntrustedPlanError, match=r"'plans/full-8\.9\.plan' was not built .*--verify-key.*--trust-plans"
    ):
        require_trusted_plan(open_bundle(folder), NAME)


def test_a_plan_that_was_built_here_is_loaded(folder: pathlib.Path, records: pathlib.Path) -> None:
    bundle = open_bundle(folder)
    digest = bundle.manifest.files[NAME].sha256
    assert not is_built_here(digest)
    assert record_plan(digest) and is_built_here(digest)
    assert require_trusted_plan(bundle, NAME) == folder / NAME
    assert [path.name for path in records.iterdir()] == [digest]
    assert record_plan(digest)  # once more is no mistake


def test_the_user_may_trust_it(folder: pathlib.Path) -> None:
    assert require_trusted_plan(open_bundle(folder, trust_plans=True), NAME) == folder / NAME


def test_a_record_is_of_one_content(folder: pathlib.Path, make_bundle: Callable[[pathlib.Path], Bundle]) -> None:
    record_plan("f" * 64)
    with pytest.raises(UntrustedPlanError):
        require_trusted_plan(open_bundle(folder), NAME)


def test_no_trust_makes_up_for_a_digest(folder: pathlib.Path) -> None:
    bundle = open_bundle(folder, check_digests=False, trust_plans=True)
    (folder / NAME).write_bytes(b"palm")
    with pytest.raises(BundleError, match="does not match its digest"):
        require_trusted_plan(bundle, NAME)
    with pytest.raises(BundleError, match=r"'plans/other\.plan' is none of the bundle's files"):
        require_trusted_plan(bundle, "plans/other.plan")


def test_without_a_home_nothing_is_recorded_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setattr(pathlib.Path, "home", no_home)
    assert records_folder() is None
    assert not record_plan("0" * 64) and not is_built_here("0" * 64)


def no_home() -> pathlib.Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_place_that_cannot_be_written(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert not record_plan("0" * 64) and not is_built_here("0" * 64)


def test_a_relative_state_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/ada")
    assert records_folder() == pathlib.Path("/home/ada/.local/state/taylorseer/plans")
