"""The store in one process: built once, checked before every use, never half-written, pruned with care."""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import filelock
import numpy as np
import onnx_ir as ir
import pytest

from taylorseer.engines import store as module
from taylorseer.engines import store_entry
from taylorseer.engines.fingerprint import PlanRecipe, fingerprint, graph_digest, weights_digest
from taylorseer.engines.store import EngineStore, default_store
from taylorseer.engines.stored_plan import StoredPlan
from taylorseer.errors import BackendError, OutputError, StoreError

PLAN = np.random.default_rng(0).bytes(2000)


def recipe(name: str = "a", **fields: Any) -> PlanRecipe:
    values = {
        "graph_sha256": hashlib.sha256(name.encode()).hexdigest(),
        "weights_sha256": "",
        "profiles": (("latent", (1, 4), (2, 4), (4, 4)),),
        "precision": "fp32",
        "options": {"builder_optimization_level": 3, "engine_capability": None},
        "flavor": "tensorrt-rtx",
        "tensorrt_version": "1.2.3",
        "compute_capability": "8.9",
        "tool_version": "0.0.1",
    }
    return PlanRecipe(**values | fields)


def never() -> bytes:
    raise AssertionError("built again")


@pytest.fixture
def store(tmp_path: pathlib.Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def add(store: EngineStore, name: str = "a", plan: bytes = PLAN, *, unused_days: float = 0.0) -> StoredPlan:
    stored = store.get_or_build(recipe(name), lambda: plan)
    used = time.time() - unused_days * 86400
    os.utime(stored.path.with_name("recipe.json"), (used, used))
    return stored


def flip(path: pathlib.Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def visible(store: EngineStore) -> list[str]:
    """Everything in the store but the locks."""
    return sorted(path.name for path in store.folder.iterdir() if path.suffix != ".lock")


def test_a_plan_is_built_once(store: EngineStore) -> None:
    first = store.get_or_build(recipe(), lambda: PLAN)
    assert first.built and first.path.read_bytes() == first.read() == PLAN
    assert (first.sha256, first.bytes) == (hashlib.sha256(PLAN).hexdigest(), len(PLAN))
    assert first.fingerprint == fingerprint(recipe())
    again = EngineStore(store.folder).get_or_build(recipe(), never)
    assert again == store.load(first.fingerprint) == dataclasses.replace(first, built=False)


def test_another_recipe_is_another_plan(store: EngineStore) -> None:
    plans = [store.get_or_build(recipe(precision=name), name.encode) for name in ("fp32", "bf16")]
    assert [bytes(plan.read()) for plan in plans] == [b"fp32", b"bf16"]
    assert all(plan.built for plan in plans)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda plan: np.frombuffer(plan, np.float32)])
def test_any_buffer_is_a_plan(store: EngineStore, kind: Callable[[bytes], Any]) -> None:
    assert store.get_or_build(recipe(), lambda: kind(PLAN)).path.read_bytes() == PLAN


def test_a_plan_larger_than_a_block(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 300)
    assert add(store).read() == PLAN
    assert store.verify()[0].damage == ""


def test_what_is_recorded(store: EngineStore) -> None:
    stored = add(store)
    (entry,) = store.entries()
    assert (entry.fingerprint, entry.bytes, entry.sha256) == (stored.fingerprint, stored.bytes, stored.sha256)
    assert entry.recipe == json.loads(json.dumps(dataclasses.asdict(recipe())))
    assert entry.created.endswith("+00:00") and abs(entry.used - time.time()) < 3600
    assert stored.path.stat().st_mode & 0o222 == 0


def test_the_builders_exception_passes_through_and_leaves_nothing(store: EngineStore) -> None:
    def fail() -> bytes:
        raise OSError(errno.ENOSPC, "the builder's own")

    with pytest.raises(OSError, match="the builder's own"):
        store.get_or_build(recipe(), fail)
    assert visible(store) == []
    assert store.get_or_build(recipe(), lambda: PLAN).built


def test_an_exception_of_the_report_passes_through(store: EngineStore) -> None:
    flip(add(store).path, 0)

    def report(message: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        store.get_or_build(recipe(), never, report=report)
    assert store.get_or_build(recipe(), lambda: PLAN).built


def test_an_empty_plan(store: EngineStore) -> None:
    with pytest.raises(BackendError, match="The builder gave an empty plan: its own messages say why"):
        store.get_or_build(recipe(), lambda: b"")
    assert visible(store) == []


def test_a_build_may_need_another_plan(store: EngineStore) -> None:
    def build() -> bytes:
        return bytes(store.get_or_build(recipe("inner"), lambda: PLAN).read())

    assert store.get_or_build(recipe("outer"), build).read() == PLAN
    assert [entry.damage for entry in store.verify()] == ["", ""]


DAMAGES: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "flipped byte": (lambda entry: flip(entry / "plan", 1000), "its content does not match its digest"),
    "truncated": (lambda entry: os.truncate(entry / "plan", 1999), "it has 1999 bytes instead of 2000"),
    "longer": (lambda entry: os.truncate(entry / "plan", 2001), "it has 2001 bytes instead of 2000"),
    "no plan": (lambda entry: (entry / "plan").unlink(), "its plan cannot be read: No such file or directory"),
    "no recipe": (lambda entry: (entry / "recipe.json").unlink(), "its recipe.json cannot be read: No such file"),
    "no JSON": (lambda entry: replace(entry / "recipe.json", "{"), "its recipe.json is malformed or of another plan"),
    "deep JSON": (lambda entry: replace(entry / "recipe.json", "[" * 10**5), "its recipe.json is malformed"),
    "JSON list": (lambda entry: replace(entry / "recipe.json", "[]"), "its recipe.json is malformed"),
    "no text": (lambda entry: replace(entry / "recipe.json", "\udcff"), "its recipe.json is malformed"),
    "other recipe": (lambda entry: edit(entry / "recipe.json", "fp32", "fp16"), "its recipe.json is malformed or of"),
    "no number": (lambda entry: edit(entry / "recipe.json", "2000", "true"), "its recipe.json is malformed"),
    "no field": (lambda entry: edit(entry / "recipe.json", '"sha256"', '"sha255"'), "its recipe.json is malformed"),
    "link": (lambda entry: link_elsewhere(entry / "plan"), "its plan cannot be read: Too many levels of symbolic"),
    "no folder": (lambda entry: to_file(entry), "it is no folder that can be read: Not a directory"),
}


def replace(path: pathlib.Path, text: str) -> None:
    path.unlink()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def edit(path: pathlib.Path, old: str, new: str) -> None:
    content = path.read_text()
    assert content.count(old) == 1
    replace(path, content.replace(old, new))


def link_elsewhere(path: pathlib.Path) -> None:
    elsewhere = path.parent.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def to_file(entry: pathlib.Path) -> None:
    entry.rename(entry.parent.parent / "moved")
    entry.write_bytes(PLAN)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_never_loaded_and_is_built_again(store: EngineStore, damage: str) -> None:
    damaging, reason = DAMAGES[damage]
    stored = add(store)
    damaging(stored.path.parent)
    assert reason in store.verify()[0].damage
    with pytest.raises(StoreError, match="is not loaded: build the engines again, or remove it") as caught:
        store.load(stored.fingerprint)
    assert f"The plan {stored.fingerprint} in" in str(caught.value) and f"is damaged ({reason}" in str(caught.value)
    reports: list[str] = []
    again = store.get_or_build(recipe(), lambda: b"another build", report=reports.append)
    assert again.built and again.read() == b"another build"
    (report,) = reports
    assert report.startswith(f"The stored plan {stored.fingerprint[:12]} is damaged ({reason}")
    assert report.endswith("): it is removed and built again.")
    assert store.load(again.fingerprint).read() == b"another build"
    assert visible(store) == [stored.fingerprint]


def test_no_flipped_bit_of_a_plan_or_of_its_record_gives_other_bytes(store: EngineStore) -> None:
    stored = add(store, plan=PLAN[:64])
    refused = {"plan": 0, "recipe.json": 0}
    for name in refused:
        path = stored.path.with_name(name)
        content = path.read_bytes()
        for index in range(len(content)):
            flip(path, index)
            try:
                assert store.load(stored.fingerprint).read() == PLAN[:64]
            except StoreError:
                refused[name] += 1
            flip(path, index)
    assert refused["plan"] == 64  # of the record, blanks and the date say nothing about the plan
    assert refused["recipe.json"] > 500


def test_a_plan_that_is_damaged_after_the_check(store: EngineStore, tmp_path: pathlib.Path) -> None:
    stored = add(store)
    flip(stored.path, 5)
    with pytest.raises(StoreError, match=r"plan' was damaged since it was checked; run the same command to build"):
        stored.read()


@pytest.mark.parametrize(
    "name", ["", "..", "../other", "/etc", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "٣" * 64]
)
def test_a_name_never_leaves_the_folder(store: EngineStore, name: str) -> None:
    with pytest.raises(StoreError, match=r"is no fingerprint: those are 64 digits 0-9a-f, see `taylorseer store list`"):
        store.load(name)


def test_an_entry_that_is_a_link_is_damaged_and_only_the_link_is_removed(
    store: EngineStore, tmp_path: pathlib.Path
) -> None:
    stored = add(store)
    stored.path.parent.rename(tmp_path / "elsewhere")
    stored.path.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="it is no folder that can be read"):
        store.load(stored.fingerprint)
    assert [entry.fingerprint for entry in store.prune()] == [stored.fingerprint]
    assert visible(store) == [] and (tmp_path / "elsewhere/plan").read_bytes() == PLAN


def test_a_plan_that_is_not_there(store: EngineStore) -> None:
    with pytest.raises(StoreError, match=rf"There is no plan {'a' * 64} in '.*store': build the engines again"):
        store.load("a" * 64)
    assert store.entries() == store.verify() == store.prune() == ()
    assert not store.folder.exists()


def test_what_is_no_entry_is_left_alone(store: EngineStore) -> None:
    stored = add(store)
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / ".mine.partial").mkdir()
    (store.folder / ("b" * 63)).mkdir()
    assert [entry.fingerprint for entry in store.prune(max_bytes=0)] == [stored.fingerprint]
    assert visible(store) == [".mine.partial", "b" * 63, "notes.txt"]


def test_what_a_killed_build_left_is_swept_by_the_next_of_any_plan(store: EngineStore) -> None:
    store.folder.mkdir()
    for name in ("a", "b"):
        partial = store.folder / f".{fingerprint(recipe(name))}.partial"
        partial.mkdir()
        (partial / "plan").write_bytes(b"half")
    held = filelock.FileLock(store.folder / f".{fingerprint(recipe('b'))}.lock")
    with held:  # b is being built
        add(store, "c")
        assert visible(store) == sorted([f".{fingerprint(recipe('b'))}.partial", fingerprint(recipe("c"))])
    add(store, "b")
    assert visible(store) == sorted(fingerprint(recipe(name)) for name in "bc")


def refuse(number: int) -> Callable[..., Any]:
    def function(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return function


@pytest.mark.parametrize("function", ["fsync", "rename", "fchmod"])
def test_a_full_disk_says_what_is_lost_and_leaves_nothing(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    add(store, "before")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuse(errno.ENOSPC))
        message = (
            r"The disk is full \(No space left on device\); nothing was kept of '.*store'; the plan of 2000 bytes was "
            r"built and is lost\. Free some space, also with `taylorseer store prune`"
        )
        with pytest.raises(OutputError, match=message):
            store.get_or_build(recipe(), lambda: PLAN)
    assert visible(store) == [fingerprint(recipe("before"))]
    assert add(store).built


FULL_DISK = """
import resource, sys
from taylorseer.engines.fingerprint import PlanRecipe
from taylorseer.engines.store import EngineStore
from taylorseer.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
recipe = PlanRecipe(**dict.fromkeys(PlanRecipe.__dataclass_fields__, "") | {"profiles": (), "options": {}})
try:
    EngineStore(sys.argv[1]).get_or_build(recipe, lambda: bytes(10**6))
except OutputError as error:
    print(error)
"""


def test_a_disk_that_fills_up_while_the_plan_is_written(store: EngineStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, store.folder], capture_output=True, text=True, timeout=60, check=True
    )
    assert (
        done.stdout.startswith("The disk is full (File too large)")
        and "1000000 bytes was built and is lost" in done.stdout
    )
    assert visible(store) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_cannot_be_written_is_refused_before_the_build(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stored = add(store, "before")
    monkeypatch.setattr(os, "mkdir", refuse(number))
    with pytest.raises(OutputError, match=r"store' cannot be written: .*\. Give another folder\."):
        store.get_or_build(recipe(), never)
    assert visible(store) == [stored.fingerprint]


def test_a_store_that_cannot_be_written_still_gives_its_plans(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store)
    for function in ("mkdir", "rename", "utime"):
        monkeypatch.setattr(os, function, refuse(errno.EROFS))
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse(errno.EROFS))
    assert store.get_or_build(recipe(), never) == store.load(stored.fingerprint)


READ_ONLY = """
import os, pathlib, sys
from taylorseer.engines.fingerprint import PlanRecipe
from taylorseer.engines.store import EngineStore
from taylorseer.errors import OutputError
store = EngineStore(sys.argv[1])
fields = dict.fromkeys(PlanRecipe.__dataclass_fields__, "") | {"profiles": (), "options": {}}
store.get_or_build(PlanRecipe(**fields), lambda: b"plan")
store.folder.chmod(0o555)
if os.geteuid() == 0:  # who may write everywhere
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(store.get_or_build(PlanRecipe(**fields), lambda: 1 / 0).read())
try:
    store.get_or_build(PlanRecipe(**fields | {"flavor": "tensorrt"}), lambda: 1 / 0)
except OutputError as error:
    print(error)
"""


def test_a_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # another user than root may look into it
        command = [sys.executable, "-c", READ_ONLY, f"{folder}/store"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        os.chmod(f"{folder}/store", 0o755)
    first, second = done.stdout.splitlines()
    assert first == "bytearray(b'plan')"
    assert f"'{folder}/store' cannot be written: [Errno 13] Permission denied" in second


def test_a_folder_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/store' cannot be written: .*Not a directory.*Give another folder"):
        EngineStore(tmp_path / "file/store").get_or_build(recipe(), never)


def test_a_store_that_is_no_folder(tmp_path: pathlib.Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match=r"The store '.*store' cannot be read: .*Not a directory.*Give another folder"):
        EngineStore(tmp_path / "store").entries()


def test_no_kernel_lock_is_an_error_and_no_guess(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with pytest.raises(OutputError, match=r"cannot be written: .*Function not implemented"):
        store.get_or_build(recipe(), never)


def test_prune_removes_damaged_plans_alone_without_limits(store: EngineStore) -> None:
    sound, damaged = add(store, "a", unused_days=1000), add(store, "b")
    flip(damaged.path, 0)
    (removed,) = store.prune()
    assert (removed.fingerprint, removed.damage) == (damaged.fingerprint, "its content does not match its digest")
    assert visible(store) == [sound.fingerprint]


def test_prune_removes_the_least_recently_used_first(store: EngineStore) -> None:
    names = {add(store, name, unused_days=days).fingerprint: name for name, days in [("a", 3), ("b", 9), ("c", 5)]}
    assert [names[entry.fingerprint] for entry in store.prune(max_bytes=6000)] == []
    assert [names[entry.fingerprint] for entry in store.prune(max_bytes=5999)] == ["b"]
    assert [names[entry.fingerprint] for entry in store.prune(max_bytes=0)] == ["c", "a"]


def test_damaged_plans_make_room_before_sound_ones(store: EngineStore) -> None:
    old, damaged = add(store, "a", unused_days=9), add(store, "b", unused_days=1)
    flip(damaged.path, 0)
    assert [entry.fingerprint for entry in store.prune(max_bytes=2000)] == [damaged.fingerprint]
    assert visible(store) == [old.fingerprint]


def test_prune_removes_what_nobody_used(store: EngineStore) -> None:
    names = {add(store, name, unused_days=days).fingerprint: name for name, days in [("a", 3), ("b", 9)]}
    assert [names[entry.fingerprint] for entry in store.prune(unused_days=10)] == []
    assert [names[entry.fingerprint] for entry in store.prune(unused_days=5)] == ["b"]


@pytest.mark.parametrize("use", ["load", "get_or_build"])
def test_use_counts(store: EngineStore, use: str) -> None:
    used, unused = add(store, "a", unused_days=9), add(store, "b", unused_days=3)
    if use == "load":
        store.load(used.fingerprint)
    else:
        store.get_or_build(recipe("a"), never)
    assert [entry.fingerprint for entry in store.prune(max_bytes=2000)] == [unused.fingerprint]


def test_prune_spares_what_another_process_is_building(store: EngineStore) -> None:
    stored = add(store, unused_days=9)
    flip(stored.path, 0)
    with filelock.FileLock(store.folder / f".{stored.fingerprint}.lock"):
        assert store.prune(max_bytes=0, unused_days=0) == ()
    assert visible(store) == [stored.fingerprint]
    assert [entry.fingerprint for entry in store.prune()] == [stored.fingerprint]


def test_prune_spares_what_was_used_after_it_looked(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = add(store, unused_days=9)
    verify = store.verify

    def look() -> Any:
        entries = verify()
        store.load(stored.fingerprint)
        return entries

    monkeypatch.setattr(store, "verify", look)
    assert store.prune(max_bytes=0) == ()
    assert store.load(stored.fingerprint).read() == PLAN


def test_prune_spares_a_damaged_plan_that_was_rebuilt_meanwhile(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, unused_days=9)
    flip(stored.path, 0)
    verify = store.verify

    def look() -> Any:
        entries = verify()
        store.get_or_build(recipe(), lambda: PLAN)
        return entries

    monkeypatch.setattr(store, "verify", look)
    assert store.prune() == ()
    assert store.load(stored.fingerprint).read() == PLAN


def test_a_plan_that_is_replaced_while_it_is_checked_is_not_called_damaged(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the old plan and the content of the new one do not fit: the check starts over."""
    stored = add(store)
    parse, replaced = store_entry._parse, list[str]()

    def replace_once(content: bytes, name: str) -> Any:
        if not replaced:
            replaced.append(name)
            store.prune(max_bytes=0)
            store.get_or_build(recipe(), lambda: b"another build")
        return parse(content, name)

    monkeypatch.setattr(store_entry, "_parse", replace_once)
    assert store.load(stored.fingerprint).read() == b"another build"


def test_a_pruned_plan_is_a_clear_error_for_who_still_has_its_path(store: EngineStore, tmp_path: pathlib.Path) -> None:
    stored = add(store)
    store.prune(max_bytes=0)
    message = r"plan' cannot be read any more: .*The store was pruned or moved meanwhile; run the same command"
    with pytest.raises(StoreError, match=message):
        stored.read()
    with pytest.raises(StoreError, match=message):
        stored.export(tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_an_export_is_a_hard_link_that_outlives_the_store(store: EngineStore, tmp_path: pathlib.Path) -> None:
    stored = add(store)
    stored.export(tmp_path / "target")
    assert os.path.samefile(tmp_path / "target", stored.path)
    store.prune(max_bytes=0)
    assert (tmp_path / "target").read_bytes() == PLAN


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM])
def test_an_export_to_another_file_system_is_a_copy(
    store: EngineStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stored = add(store)
    monkeypatch.setattr(os, "link", refuse(number))
    stored.export(tmp_path / "target")
    assert not os.path.samefile(tmp_path / "target", stored.path)
    assert (tmp_path / "target").read_bytes() == PLAN
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "target"]


def test_a_copy_is_whole_or_absent(store: EngineStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = add(store)
    monkeypatch.setattr(os, "link", refuse(errno.EXDEV))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse(errno.ENOSPC))
        with pytest.raises(OutputError, match=r"The disk is full .*nothing was kept of '.*target'"):
            stored.export(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    flip(stored.path, 7)
    with pytest.raises(StoreError, match="was damaged since it was checked"):
        stored.export(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_plan_that_is_pruned_while_it_is_exported_is_still_exported(
    store: EngineStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, link = add(store), os.link

    def prune_first(source: pathlib.Path, target: pathlib.Path) -> None:
        store.prune(max_bytes=0)
        link(source, target)

    monkeypatch.setattr(os, "link", prune_first)
    stored.export(tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == PLAN


@pytest.mark.parametrize("linked", [True, False])
def test_an_export_overwrites_nothing(
    store: EngineStore, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    stored = add(store)
    (tmp_path / "target").write_text("mine")
    if not linked:
        monkeypatch.setattr(os, "link", refuse(errno.EXDEV))
    with pytest.raises(OutputError, match=r"target' cannot be written: .*File exists"):
        stored.export(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"
    with pytest.raises(OutputError, match=r"target' cannot be written: .*No such file"):
        stored.export(tmp_path / "none/target")


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("TAYLORSEER_STORE", "~/plans")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert EngineStore().folder == default_store() == pathlib.Path("/home/ada/plans")
    monkeypatch.setenv("TAYLORSEER_STORE", "")
    assert default_store() == pathlib.Path("/cache/taylorseer/engines")
    for value in ("", "relative"):  # relative paths there are to be ignored, by the XDG specification
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_store() == pathlib.Path("/home/ada/.cache/taylorseer/engines")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(StoreError, match="There is no home folder to keep engines in: set TAYLORSEER_STORE"):
        default_store()


def test_the_store_needs_neither_tensorrt_nor_onnx() -> None:
    source = "import sys; from taylorseer.engines import store; print([n for n in sys.modules if n.split('_')[0] in "
    source += "('tensorrt', 'onnx', 'torch', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_real_plan_of_tensorrt_rtx_is_built_once(store: EngineStore, tmp_path: pathlib.Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    graph, builds = matmul_graph(tmp_path), []
    logger = trt.Logger(trt.Logger.ERROR)

    def build() -> Any:
        builds.append(graph)
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        assert trt.OnnxParser(network, logger).parse_from_file(str(graph))
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        profile.set_shape("x", (1, 8), (2, 8), (4, 8))
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        return builder.build_serialized_network(network, config)

    real = recipe(
        graph_sha256=graph_digest(graph),
        weights_sha256=weights_digest(graph),
        profiles=(("x", (1, 8), (2, 8), (4, 8)),),
        tensorrt_version=trt.__version__,
    )
    first, second = store.get_or_build(real, build), store.get_or_build(real, build)
    assert (len(builds), first.built, second.built) == (1, True, False)
    assert first.bytes > 1000 and second.read() == bytes(build())


def matmul_graph(folder: pathlib.Path) -> pathlib.Path:
    weight = ir.tensor(np.eye(8, dtype=np.float32), name="weight")
    shape, kind = ir.Shape(["rows", 8]), ir.TensorType(ir.DataType.FLOAT)
    values = [ir.Value(name="x", shape=shape, type=kind), ir.Value(name="weight", const_value=weight, type=kind)]
    values[1].shape = weight.shape
    node = ir.node("MatMul", values)
    output = node.outputs[0]
    output.name, output.shape, output.type = "y", shape, kind
    graph = ir.Graph(values[:1], [output], nodes=[node], initializers=values[1:], opset_imports={"": 20}, name="graph")
    ir.save(ir.Model(graph, ir_version=10), folder / "graph.onnx", external_data="weights.data", size_threshold_bytes=0)
    return folder / "graph.onnx"
