"""``store``: plans are listed, checked and removed from the command line, and a mistake is one message."""

import datetime
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from taylorseer.engines.fingerprint import PlanRecipe
from taylorseer.engines.store import EngineStore
from taylorseer.engines.stored_plan import StoredPlan

Run = Callable[..., Any]


@pytest.fixture
def store(tmp_path: pathlib.Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


def add(store: EngineStore, name: str, size: int, *, unused_days: float = 0.0) -> StoredPlan:
    recipe = PlanRecipe(
        graph_sha256=name,
        weights_sha256="",
        profiles=(),
        precision="bf16",
        options={},
        flavor="tensorrt",
        tensorrt_version="10.13.3",
        compute_capability="9.0",
        tool_version="0.0.1",
    )
    stored = store.get_or_build(recipe, lambda: name.encode() * size)
    used = time.time() - unused_days * 86400
    os.utime(stored.path.with_name("recipe.json"), (used, used))
    return stored


def damage(plan: StoredPlan) -> None:
    content = bytearray(plan.path.read_bytes())
    content[0] ^= 1
    plan.path.chmod(0o644)
    plan.path.write_bytes(content)


def test_list_names_every_plan(run: Run, store: EngineStore) -> None:
    plans = [add(store, "a", 1000, unused_days=2), add(store, "b", 200_000)]
    outcome = run("store", "list", "--store", store.folder, "--json")
    assert outcome.code == 0 and outcome.json["store"] == str(store.folder)
    listed = {entry["fingerprint"]: entry for entry in outcome.json["plans"]}
    assert listed.keys() == {plan.fingerprint for plan in plans}
    first = listed[plans[0].fingerprint]
    assert (first["bytes"], first["sha256"], first["damage"]) == (1000, plans[0].sha256, "")
    assert first["recipe"]["graph_sha256"] == "a"
    used = datetime.datetime.fromisoformat(first["used"])
    assert abs((datetime.datetime.now(datetime.UTC) - used).total_seconds() / 86400 - 2) < 0.1
    text = run("store", "list", "--store", store.folder).out
    assert text.startswith(f"{store.folder}: 2 plans, 0.2 MB\n")
    assert all(plan.fingerprint in text for plan in plans) and text.count("tensorrt 10.13.3 sm 9.0 bf16") == 2


def test_listing_does_not_count_as_use(run: Run, store: EngineStore) -> None:
    add(store, "a", 10, unused_days=9)
    before = store.entries()
    for action in ("list", "verify"):
        run("store", action, "--store", store.folder)
    assert store.entries() == before


def test_verify_ends_with_1_if_a_plan_is_damaged(run: Run, store: EngineStore) -> None:
    sound, damaged = add(store, "a", 10), add(store, "b", 10)
    outcome = run("store", "verify", "--store", store.folder)
    assert outcome.code == 0 and outcome.out.endswith("every digest is right\n")
    damage(damaged)
    assert run("store", "list", "--store", store.folder).code == 0
    outcome = run("store", "verify", "--store", store.folder)
    assert outcome.code == 1 and outcome.err == ""
    assert "    DAMAGED: its content does not match its digest\n" in outcome.out
    assert outcome.out.endswith("1 damaged: `taylorseer store prune` removes them\n")
    outcome = run("store", "verify", "--store", store.folder, "--json")
    assert outcome.code == 1
    assert {entry["fingerprint"]: bool(entry["damage"]) for entry in outcome.json["plans"]} == {
        sound.fingerprint: False,
        damaged.fingerprint: True,
    }


def test_a_plan_without_its_record_is_still_shown(run: Run, store: EngineStore) -> None:
    plan = add(store, "a", 10)
    plan.path.with_name("recipe.json").unlink()
    outcome = run("store", "verify", "--store", store.folder)
    assert outcome.code == 1 and "DAMAGED: its recipe.json cannot be read" in outcome.out


@pytest.mark.parametrize(
    ("limits", "removed"),
    [
        ((), "d"),
        (("--max-bytes", "2k"), "da"),
        (("--max-bytes", "1999"), "dab"),
        (("--max-bytes", "0.002M"), "da"),
        (("--max-bytes", "1G"), "d"),
        (("--unused-days", "4"), "dab"),
        (("--unused-days", "5.5", "--max-bytes", "1000"), "dab"),
    ],
)
def test_prune(run: Run, store: EngineStore, limits: tuple[str, ...], removed: str) -> None:
    plans = {name: add(store, name, 1000, unused_days=days) for name, days in [("a", 6), ("b", 5), ("c", 1), ("d", 2)]}
    damage(plans["d"])
    outcome = run("store", "prune", "--store", store.folder, *limits, "--json")
    assert outcome.code == 0
    assert [entry["fingerprint"] for entry in outcome.json["removed"]] == [plans[name].fingerprint for name in removed]
    kept = {plan.fingerprint for name, plan in plans.items() if name not in removed}
    assert {entry.fingerprint for entry in store.verify()} == kept


def test_prune_says_what_it_removed(run: Run, store: EngineStore) -> None:
    plan = add(store, "a", 10**6)
    text = run("store", "prune", "--store", store.folder, "--max-bytes", 0).out
    assert text.startswith(f"{store.folder}: 1 plan removed, 1.0 MB\n  {plan.fingerprint} ")


def test_the_default_store(run: Run, store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAYLORSEER_STORE", str(store.folder))
    assert run("store", "list").out == f"{store.folder}: 0 plans, 0.0 MB\n"
    add(store, "a", 10)
    assert len(run("store", "list", "--json").json["plans"]) == 1


def test_a_store_that_is_not_there(run: Run, tmp_path: pathlib.Path) -> None:
    outcome = run("store", "verify", "--store", tmp_path / "none")
    assert outcome.refused("There is no store in", "none'", "give --store the folder that engines were built with")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: ACTION"),
        (("clean",), "invalid choice: 'clean'"),
        (("prune", "--max-bytes", "much"), "argument --max-bytes: 'much' is no number of 0 or more"),
        (("prune", "--max-bytes", "-1"), "argument --max-bytes: '-1' is no number of 0 or more"),
        (("prune", "--max-bytes", ""), "argument --max-bytes: '' is no number of 0 or more"),
        (("prune", "--unused-days", "nan"), "argument --unused-days: 'nan' is no number of 0 or more"),
        (("list", "--max-bytes", "1"), "unrecognized arguments: --max-bytes 1"),
    ],
)
def test_bad_options(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert run("store", *arguments).refused(message, "--help`)")


def test_without_filelock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "taylorseer.engines.store")
    monkeypatch.setitem(sys.modules, "filelock", None)  # type: ignore[arg-type]
    assert run("store", "list").refused("The store needs filelock: `pip install 'taylorseer-trt[tensorrt-rtx]'`")
