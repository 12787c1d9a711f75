"""A bundle on disk: any change of it is noticed, and writing one leaves it whole or leaves nothing."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from taylorseer.bundle import MANIFEST_NAME, Bundle, check_target, draft_bundle, open_bundle, require_space
from taylorseer.errors import BundleError, OutputError
from taylorseer.manifest import Manifest

MakeBundle = Callable[[pathlib.Path], Bundle]


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.path(MANIFEST_NAME)
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: pathlib.Path) -> Bundle:
    return make_bundle(tmp_path / "small")


def test_what_was_committed_is_opened(bundle: Bundle) -> None:
    opened = open_bundle(bundle.folder)
    assert opened == bundle
    graphs = ["graphs/forecast.onnx", "graphs/full.onnx", "graphs/prepare.onnx", "graphs/update.onnx"]
    assert sorted(opened.manifest.files) == [*graphs, "graphs/weights.data"]
    assert opened.path("graphs/full.onnx").read_bytes() == b"full graph"
    assert names(bundle.folder.parent) == ["small"]


@pytest.mark.parametrize("name", ["weights.data", "prepare.onnx", "full.onnx", "forecast.onnx", "update.onnx"])
def test_a_flipped_byte_is_noticed(bundle: Bundle, name: str) -> None:
    name = f"graphs/{name}"
    content = bytearray(bundle.path(name).read_bytes())
    content[len(content) // 2] ^= 1
    bundle.path(name).write_bytes(content)
    with pytest.raises(BundleError, match=f"'{name}' does not match its digest.*altered.*build the bundle again"):
        open_bundle(bundle.folder)
    open_bundle(bundle.folder, check_digests=False)  # the size is right, and no more was asked


@pytest.mark.parametrize("check_digests", [True, False])
def test_a_missing_and_a_truncated_file_are_noticed(bundle: Bundle, check_digests: bool) -> None:
    os.truncate(bundle.path("graphs/weights.data"), 63)
    with pytest.raises(
        BundleError, match=r"'graphs/weights\.data' has 63 bytes, the manifest says 64: it was truncated"
    ):
        open_bundle(bundle.folder, check_digests=check_digests)
    bundle.path("graphs/weights.data").unlink()
    with pytest.raises(BundleError, match=r"file 'graphs/weights\.data' is missing in .*build the bundle again"):
        open_bundle(bundle.folder, check_digests=check_digests)


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_no_bundle_says_how_to_build_one(tmp_path: pathlib.Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=r"There is no bundle in .*build-engines --model NAME --output"):
        open_bundle(tmp_path / place)


def test_a_manifest_that_is_no_text_or_far_too_long(bundle: Bundle) -> None:
    bundle.path(MANIFEST_NAME).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        open_bundle(bundle.folder)
    os.truncate(bundle.path(MANIFEST_NAME), 2**27)  # sparse: takes no space
    with pytest.raises(BundleError, match=r"manifest\.json is larger than \d+ bytes: it is no manifest"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["../secret", "graphs/../../secret", "graphs\\..\\x", "", "/etc/hostname"])
def test_no_file_outside_the_bundle_is_named(bundle: Bundle, name: str) -> None:
    (bundle.folder.parent / "secret").write_bytes(b"")
    edit_manifest(bundle, lambda data: data["files"].update({name: {"bytes": 0, "sha256": "0" * 64}}))
    with pytest.raises(BundleError, match="outside the bundle: do not use this bundle"):
        open_bundle(bundle.folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_no_link_leads_out_of_the_bundle(bundle: Bundle, what: str) -> None:
    elsewhere = bundle.folder.parent / "elsewhere"
    shutil.copytree(bundle.folder / "graphs", elsewhere)
    if what == "file":
        bundle.path("graphs/full.onnx").unlink()
        bundle.path("graphs/full.onnx").symlink_to(elsewhere / "full.onnx")
    else:
        shutil.rmtree(bundle.folder / "graphs")
        (bundle.folder / "graphs").symlink_to(elsewhere)
    with pytest.raises(BundleError, match=r"file 'graphs/f.*\.onnx' is missing"):
        open_bundle(bundle.folder)


def test_a_link_to_the_whole_bundle_is_followed(bundle: Bundle, tmp_path: pathlib.Path) -> None:
    (tmp_path / "latest").symlink_to("small")
    assert open_bundle(tmp_path / "latest").manifest == bundle.manifest


def test_graphs_are_files_that_were_checked(bundle: Bundle) -> None:
    edit_manifest(bundle, lambda data: data["graphs"]["full"].update(file="../full.onnx"))
    with pytest.raises(BundleError, match=r"full graph '../full\.onnx' is not among the bundle's files"):
        open_bundle(bundle.folder)


def test_plans_are_files_that_were_checked(bundle: Bundle) -> None:
    plan = {"kind": "full", "file": "plans/full-8.9.plan", "compute_capability": "8.9", "fingerprint": "0" * 64}
    edit_manifest(bundle, lambda data: data["engine"].update(plans=[plan]))
    (bundle.folder / "plans").mkdir()
    (bundle.folder / "plans/full-8.9.plan").write_bytes(b"a plan that nobody checked")
    with pytest.raises(
        BundleError, match=r"full plan for 8\.9 'plans/full-8\.9\.plan' is not among the bundle's files"
    ):
        open_bundle(bundle.folder)


# Writing


def test_a_failed_draft_leaves_nothing(tmp_path: pathlib.Path) -> None:
    class Bug(Exception):
        pass

    for error in (Bug, KeyboardInterrupt):
        with pytest.raises(error), draft_bundle(tmp_path / "x") as draft:
            draft.path("a/b/c").write_text("half")
            assert names(tmp_path) == [f".x.partial-{os.getpid()}"]
            raise error
        assert names(tmp_path) == []


def test_a_draft_without_commit_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with draft_bundle(tmp_path / "x") as draft:
        draft.path("file").write_text("forgotten")
    assert names(tmp_path) == []


def test_an_existing_folder_is_kept(bundle: Bundle) -> None:
    with pytest.raises(OutputError, match="exists: give another --output, or --overwrite"), draft_bundle(bundle.folder):
        pytest.fail("a draft was given")
    assert open_bundle(bundle.folder) == bundle


def test_overwriting_replaces_a_bundle_whole(make_bundle: MakeBundle, bundle: Bundle) -> None:
    bundle.path("graphs/of-the-old-one").write_text("x")
    make_bundle(bundle.folder)
    assert names(bundle.folder / "graphs") == [
        "forecast.onnx",
        "full.onnx",
        "prepare.onnx",
        "update.onnx",
        "weights.data",
    ]
    assert names(bundle.folder.parent) == ["small"]


@pytest.mark.parametrize("manifest", [None, "", "[]", '{"name": "a web app"}'])
def test_what_is_no_bundle_is_never_overwritten(tmp_path: pathlib.Path, manifest: str | None) -> None:
    """A web application's folder has a manifest.json too."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter").write_text("years of work")
    if manifest is not None:
        (folder / MANIFEST_NAME).write_text(manifest)
    with (
        pytest.raises(OutputError, match="is no bundle, so it is not overwritten"),
        draft_bundle(folder, overwrite=True),
    ):
        pytest.fail("a draft was given")
    assert (folder / "chapter").read_text() == "years of work"
    assert names(tmp_path) == ["thesis"]


def test_a_damaged_bundle_may_be_overwritten(make_bundle: MakeBundle, bundle: Bundle) -> None:
    bundle.path("graphs/full.onnx").unlink()
    edit_manifest(bundle, lambda data: data.update(format_version=99))
    make_bundle(bundle.folder)
    open_bundle(bundle.folder)


def test_the_old_bundle_survives_a_failed_overwriting(bundle: Bundle) -> None:
    with pytest.raises(ZeroDivisionError), draft_bundle(bundle.folder, overwrite=True):
        raise ZeroDivisionError
    assert open_bundle(bundle.folder) == bundle


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_the_old_bundle_comes_back_when_the_exchange_fails(
    make_bundle: MakeBundle, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def rename(source: Any, target: Any, true: Callable[..., None] = os.rename) -> None:
        if pathlib.Path(target) == bundle.folder and not str(source).endswith(".old"):
            raise error
        true(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        make_bundle(bundle.folder)
    assert open_bundle(bundle.folder) == bundle
    assert names(bundle.folder.parent) == ["small"]


class Gone(NamedTuple):
    pid: int


@pytest.fixture
def gone() -> Gone:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return Gone(process.pid)


@pytest.mark.parametrize("name", ["x", "x[1]"])
def test_drafts_of_killed_builds_are_removed_and_of_living_ones_kept(
    make_bundle: MakeBundle, tmp_path: pathlib.Path, gone: Gone, name: str
) -> None:
    alive = f".{name}.partial-{os.getppid()}"
    for leftover in (f".{name}.partial-{gone.pid}", f".{name}.partial-{gone.pid}.old", alive, f".y.partial-{gone.pid}"):
        (tmp_path / leftover / "graphs").mkdir(parents=True)
    held = os.open(tmp_path / alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    make_bundle(tmp_path / name)
    assert names(tmp_path) == sorted([alive, f".y.partial-{gone.pid}", name])
    os.close(held)


def test_a_bundle_whose_replacement_was_killed_comes_back(make_bundle: MakeBundle, tmp_path: pathlib.Path) -> None:
    """Killed between the two renames: the old bundle lies aside and nothing at its place."""
    make_bundle(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / ".x.partial-1.old")
    with pytest.raises(OutputError, match="exists"), draft_bundle(tmp_path / "x"):
        pytest.fail("a draft was given")
    assert names(tmp_path) == ["x"]
    open_bundle(tmp_path / "x")


def test_what_was_put_at_the_target_meanwhile_is_kept(manifest: Manifest, tmp_path: pathlib.Path) -> None:
    with pytest.raises(OutputError, match="exists"), draft_bundle(tmp_path / "x") as draft:
        for graph in manifest.graphs.values():
            draft.path(graph.file).write_text("graph")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis.txt").write_text("years of work")
        draft.commit(manifest)
    assert names(tmp_path) == ["x"] and (tmp_path / "x" / "thesis.txt").exists()


def test_a_place_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match=r"cannot be written.*--output"),
        draft_bundle(tmp_path / "file/x"),
    ):
        pytest.fail("a draft was given")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_and_nothing_kept(tmp_path: pathlib.Path, number: int) -> None:
    with (
        pytest.raises(OutputError, match=r"The disk is full .*nothing was kept"),
        draft_bundle(tmp_path / "x") as draft,
    ):
        draft.path("weights").write_text("half")
        raise OSError(number, os.strerror(number))
    assert names(tmp_path) == []


def test_space_is_refused_before_the_first_byte(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    require_space(tmp_path, 1_000_000_000)
    with pytest.raises(OutputError, match=r"disk is full: 24\.00 GB are needed in .* and 1\.00 GB are free"):
        require_space(tmp_path, 24_000_000_000)


def test_a_target_is_made_absolute_and_its_name_may_be_new(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_target("a/../b") == tmp_path / "b"


def test_the_manifest_is_written_last(
    manifest: Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the rename nobody sees a folder with a manifest and without its files."""
    synced: list[str] = []

    def note(path: pathlib.Path, flags: int, true: Callable[..., int] = os.open) -> int:
        synced.append(path.name)
        return true(path, flags)

    monkeypatch.setattr(os, "open", note)
    with draft_bundle(tmp_path / "x") as draft:
        for graph in manifest.graphs.values():
            draft.path(graph.file).write_text("graph")
        draft.commit(manifest)
    files = [name for name in synced if not name.startswith(".")]
    assert files[:5] == ["forecast.onnx", "full.onnx", "prepare.onnx", "update.onnx", MANIFEST_NAME]
