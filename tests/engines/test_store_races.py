"""The store among processes: who races builds once, and who is killed leaves nothing that is not whole.

Processes are forked from a small one that has loaded the store alone; it prints what it saw as JSON.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

PATIENCE = 120
"""Seconds until a test is given up, on however busy a machine."""

PRELUDE = """
import json, os, pathlib, random, shutil, signal, sys, time
from taylorseer.engines import durable_files, store_entry
from taylorseer.engines import store as module
from taylorseer.engines.fingerprint import PlanRecipe, fingerprint

FIELDS = dict.fromkeys(PlanRecipe.__dataclass_fields__, "") | {"profiles": (), "options": {}}
store = module.EngineStore(sys.argv[1])

def recipe(number=0):
    return PlanRecipe(**FIELDS | {"options": {"number": number}})

def plan(number=0):
    return random.Random(number).randbytes(2**20)

def fork(function):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = function() or 0
        finally:
            os._exit(code)
    return pid

def damages():
    return [entry.damage for entry in store.verify() if entry.damage]

def partials():
    return [path.name for path in store.folder.glob(".*.partial")]
"""


def python(source: str, folder: pathlib.Path, *arguments: str) -> Any:
    command = [sys.executable, "-c", PRELUDE + source, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


RACE = """
log = store.folder.parent / "log"

def build():
    with open(log, "a") as file:
        print(os.getpid(), file=file)
    time.sleep(0.5)
    return plan()

def race(index):
    messages = []
    stored = store.get_or_build(recipe(), build, report=messages.append)
    result = {"built": stored.built, "right": stored.read() == plan(), "messages": messages}
    (store.folder.parent / f"result-{index}").write_text(json.dumps(result))

pids = [fork(lambda: race(index)) for index in range(8)]
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
results = [json.loads(path.read_text()) for path in store.folder.parent.glob("result-*")]
print(json.dumps({"codes": codes, "results": results, "builders": log.read_text().split(), "pids": pids}))
"""


def test_eight_processes_build_a_plan_once(tmp_path: pathlib.Path) -> None:
    seen = python(RACE, tmp_path / "store")
    assert seen["codes"] == [0] * 8
    assert len(seen["builders"]) == 1 and int(seen["builders"][0]) in seen["pids"]
    assert sorted(result["built"] for result in seen["results"]) == [False] * 7 + [True]
    assert all(result["right"] for result in seen["results"])
    messages = {message for result in seen["results"] for message in result["messages"]}
    assert len(messages) == 1 and messages.pop().startswith("Another process is building the plan ")


KILLED_HOLDER = """
started = store.folder.parent / "started"

def never_ends():
    started.touch()
    time.sleep(1000)

def take_over():
    return 0 if store.get_or_build(recipe(), plan).built else 1

holder = fork(lambda: store.get_or_build(recipe(), never_ends))
while not started.exists():
    time.sleep(0.01)
waiters = [fork(take_over) for _ in range(3)]
time.sleep(0.2)
early = os.waitpid(-1, os.WNOHANG)[0]
os.kill(holder, signal.SIGKILL)
os.waitpid(holder, 0)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in waiters]
print(json.dumps({"early": early, "codes": codes, "damages": damages(), "partials": partials()}))
"""


def test_one_of_those_who_wait_takes_over_from_a_killed_builder(tmp_path: pathlib.Path) -> None:
    seen = python(KILLED_HOLDER, tmp_path / "store")
    assert seen["early"] == 0  # nobody went on before the holder was killed
    assert sorted(seen["codes"]) == [0, 1, 1]
    assert seen["damages"] == seen["partials"] == []


RANDOM_KILLS = """
module.BLOCK = 2**16  # many writes

def build(number):
    time.sleep(0.004)
    return plan(number)

def life(number):
    store.get_or_build(recipe(number), lambda: build(number))

def measure(number):
    start = time.monotonic()
    os.waitpid(fork(lambda: life(number)), 0)
    return time.monotonic() - start

moments = random.Random(50)
longest = sorted(measure(1000 + number) for number in range(9))[4]
seen = {"killed": 0, "absent": 0, "whole": 0, "left": 0, "damages": [], "wrong": []}
for number in range(50):
    pid = fork(lambda: life(number))
    time.sleep(moments.uniform(0, longest))
    os.kill(pid, signal.SIGKILL)
    seen["killed"] += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    whole = (store.folder / fingerprint(recipe(number))).exists()
    seen["whole" if whole else "absent"] += 1
    seen["left"] += len(partials())
    seen["damages"] += damages()
    again = store.get_or_build(recipe(number), lambda: plan(number))
    if again.built == whole or again.read() != plan(number):
        seen["wrong"].append(number)
    if number % 10 == 9:
        store.prune(max_bytes=0)
seen["remains"] = partials()
print(json.dumps(seen))
"""


def test_a_kill_at_fifty_random_moments_leaves_each_plan_absent_or_whole(tmp_path: pathlib.Path) -> None:
    seen = python(RANDOM_KILLS, tmp_path / "store")
    assert seen["damages"] == seen["wrong"] == seen["remains"] == []
    assert seen["absent"] + seen["whole"] == 50
    assert seen["killed"] >= 10 and seen["left"] >= 1  # the moments lay in the life of a build


EVERY_LINE = """
module.BLOCK = 2**15
os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written

def plan(number=0):
    return random.Random(number).randbytes(2**16)

def kill_at(line, work):
    count, files = 0, [traced.__file__ for traced in (module, store_entry, durable_files, shutil)]

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work()

def build_new():
    store.get_or_build(recipe(), plan)

def damage():
    stored = store.get_or_build(recipe(), plan)
    stored.path.chmod(0o644)
    os.truncate(stored.path, 1000)

PREPARE, WORK = {
    "build": (lambda: None, build_new),
    "rebuild": (damage, build_new),
    "prune": (build_new, lambda: store.prune(max_bytes=0)),
}[sys.argv[2]]

seen = {"lines": 0, "states": {}, "wrong": []}
while True:
    PREPARE()
    seen["lines"] += 1
    pid = fork(lambda: kill_at(seen["lines"], WORK))
    if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
        break
    entries = store.verify()
    state = (entries[0].damage or "whole") if entries else "absent"
    seen["states"][state] = seen["states"].get(state, 0) + 1
    if store.get_or_build(recipe(), plan).read() != plan() or damages() or (state != "whole" and partials()):
        seen["wrong"].append(seen["lines"])
    store.prune(max_bytes=0)
    if partials() or store.entries():
        seen["wrong"].append(seen["lines"])
print(json.dumps(seen))
"""


@pytest.mark.parametrize(
    ("work", "states"),
    [
        ("build", {"absent", "whole"}),
        ("rebuild", {"it has 1000 bytes instead of 65536", "absent", "whole"}),
        ("prune", {"absent", "whole"}),
    ],
)
def test_a_kill_at_every_line_of_the_store_leaves_each_plan_absent_or_whole(
    tmp_path: pathlib.Path, work: str, states: set[str]
) -> None:
    """Lines of shutil count too.  A rebuild may also leave what it found: the damaged plan, still known as such."""
    seen = python(EVERY_LINE, tmp_path / "store", work)
    assert seen["wrong"] == []
    assert seen["states"].keys() == states
    assert seen["lines"] > 50


PRUNE_RACE = """
def use(seed):
    numbers = random.Random(seed)
    for _ in range(60):
        number = numbers.randrange(3)
        stored = store.get_or_build(recipe(number), lambda: plan(number)[:5000])
        try:
            if stored.read() != plan(number)[:5000]:
                return 2
        except module.StoreError as error:
            if "was pruned or moved meanwhile" not in str(error):
                return 3

def prune():
    for _ in range(60):
        store.prune(max_bytes=5000)

pids = [fork(lambda: use(seed)) for seed in range(3)] + [fork(prune)]
print(json.dumps([[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], damages(), partials()]))
"""


def test_pruning_while_others_build_and_read_gives_right_plans_or_a_clear_error(tmp_path: pathlib.Path) -> None:
    assert python(PRUNE_RACE, tmp_path / "store") == [[0] * 4, [], []]
