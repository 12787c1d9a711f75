"""Damage bundles in ten thousand ways: no silent wrong image, no crash, no parser before the digest check.

    python -m tools.inject_faults BUNDLE [BUNDLE ...] --faults 10000 --fuzz-minutes 10

Faults run in a process of their own, many in one; one that ends it by a signal, or works for a minute, is counted as a
crash or a hang, and the next process goes on after it.  The first bundles are damaged in turn, and files are swapped in
from all others.  Every attack on a path is tried as well, and the reader of manifests is fuzzed (see
:mod:`tools.fuzz_manifest`).  The exit code is 0 if nothing bad was found.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from taylorseer.bundle import open_bundle
from taylorseer.errors import TaylorSeerError
from tools.bundle_faults import FAULTS
from tools.fault_trial import BAD, Request, Trial, answer, request_of, run_trial
from tools.parser_watch import ParserWatch
from tools.path_attacks import ATTACKS, copy_linked

__all__ = ["attack", "campaign", "main"]

_PATIENCE, _WORK = 600, 60
"""Seconds of one trial by the clock, and of its own work; an image of a tiny bundle takes less than one."""

_MEMORY = 8 * 2**30
"""Bytes of address space of a process that runs trials: a manifest that asks for more must get a typed error."""

_EACH = 250
"""Trials in one process."""


def campaign(
    bundles: Sequence[pathlib.Path], count: int, *, seed: int = 0, kinds: Sequence[str] = tuple(FAULTS)
) -> Iterator[Trial]:
    """Yield what came of ``count`` faults; kinds and bundles take turns."""
    with tempfile.TemporaryDirectory(dir=bundles[0].parent, prefix=".faults-") as place:
        number = 0
        while number < count:
            last = min(count, number + _EACH)
            for trial in _in_child(bundles, range(number, last), seed, kinds, pathlib.Path(place)):
                number += 1
                yield trial


def _in_child(
    bundles: Sequence[pathlib.Path], numbers: range, seed: int, kinds: Sequence[str], place: pathlib.Path
) -> Iterator[Trial]:
    """Yield the trials of one process; if it dies, the trial that it died of is the last."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            _run_all(bundles, numbers, seed, kinds, place, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    done = 0
    with open(reading, encoding="utf-8") as lines:
        for line in lines:
            done += 1
            yield Trial(**json.loads(line))
    _, status = os.waitpid(pid, 0)
    if status:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        fault, _ = _turn(numbers[done], kinds, bundles)
        how = signal.Signals(status & 127).name if os.WIFSIGNALED(status) else f"exit code {status >> 8}"
        verdict = "hang" if how in ("SIGALRM", "SIGPROF") else "crash"
        yield Trial(fault=fault, what=f"number {numbers[done]}", verdict=verdict, detail=how, parsed={})


def _run_all(
    bundles: Sequence[pathlib.Path], numbers: range, seed: int, kinds: Sequence[str], place: pathlib.Path, pipe: int
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sound: dict[pathlib.Path, tuple[Request, str]] = {}
    for number in numbers:
        fault, bundle = _turn(number, kinds, bundles)
        signal.alarm(_PATIENCE)
        signal.setitimer(signal.ITIMER_PROF, _WORK)
        if bundle not in sound:
            opened = open_bundle(bundle)
            request = request_of(opened)
            sound[bundle] = request, answer(opened, request)
        others = [other for other in bundles if other != bundle] or [bundle]
        trial = run_trial(bundle, others, *sound[bundle], fault, hash((seed, number)), place)
        signal.alarm(0)
        os.write(pipe, (trial.to_json() + "\n").encode())


def _turn(number: int, kinds: Sequence[str], bundles: Sequence[pathlib.Path]) -> tuple[str, pathlib.Path]:
    return kinds[number % len(kinds)], bundles[number // len(kinds) % len(bundles)]


def attack(bundle: pathlib.Path, name: str, place: pathlib.Path) -> Trial:
    """Try one way out of a bundle; the parser of the manifest is the only one that may see anything of it.

    Graphs and plans that are refused when they are loaded count as refused, for nothing has parsed them by then.
    """
    folder = copy_linked(bundle, place / "bundle")
    ATTACKS[name](folder)
    watch = ParserWatch(folder)
    verdict, detail = "crash", "it was not refused"
    with watch.watching():
        try:
            opened = open_bundle(folder)
            for kind in opened.manifest.graphs:
                opened.graph_path(kind)
        except TaylorSeerError as error:
            verdict, detail = "refused", f"{type(error).__name__}: {error}"
        except BaseException as error:
            detail = f"{type(error).__name__}: {error}"
    if watch.early:
        verdict, detail = "parsed early", ", ".join(watch.early)
    return Trial(fault=name, what="path attack", verdict=verdict, detail=detail, parsed=watch.calls)


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=pathlib.Path, metavar="BUNDLE")
    parser.add_argument("--faults", type=int, default=10_000, help="how many (default 10000)")
    parser.add_argument("--fuzz-minutes", type=float, default=0.0, help="of the manifest's reader (default: none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, metavar="FAULT", help=f"one kind: {', '.join(FAULTS)}")
    options = parser.parse_args()
    bundles = [path.resolve() for path in options.bundles]
    start = time.monotonic()
    bad = _report_attacks(bundles[0])
    bad += _report_faults(bundles, options.faults, options.seed, (options.only,) if options.only else tuple(FAULTS))
    print(f"{time.monotonic() - start:.0f} s")
    if options.fuzz_minutes:
        bad += _fuzz(bundles, options.fuzz_minutes)
    return 1 if bad else 0


def _report_attacks(bundle: pathlib.Path) -> int:
    refused = 0
    for name in ATTACKS:
        with tempfile.TemporaryDirectory(dir=bundle.parent, prefix=".attack-") as place:
            trial = attack(bundle, name, pathlib.Path(place))
        refused += trial.verdict == "refused"
        if trial.verdict != "refused":
            print(f"NOT REFUSED {name}: {trial.verdict}, {trial.detail}")
    print(f"{refused} of {len(ATTACKS)} attacks on paths are refused")
    return len(ATTACKS) - refused


def _report_faults(bundles: Sequence[pathlib.Path], count: int, seed: int, kinds: Sequence[str]) -> int:
    table: dict[str, collections.Counter[str]] = {fault: collections.Counter() for fault in FAULTS}
    errors: collections.Counter[str] = collections.Counter()
    parsed: collections.Counter[str] = collections.Counter()
    bad = 0
    for number, trial in enumerate(campaign(bundles, count, seed=seed, kinds=kinds)):
        table[trial.fault][trial.verdict] += 1
        errors[trial.detail] += trial.verdict == "refused"
        parsed.update(trial.parsed)
        if trial.verdict in BAD:
            bad += 1
            print(f"BAD {number}: {trial.fault}, {trial.what}: {trial.verdict} {trial.detail}", flush=True)
        if number % 1000 == 999:
            print(f"  {number + 1} faults, {bad} bad", file=sys.stderr, flush=True)
    _print_table(table, errors, parsed)
    return bad


def _print_table(table: dict[str, Any], errors: dict[str, int], parsed: dict[str, int]) -> None:
    verdicts = ["refused", "same image", "another image", *BAD]
    print(f"{'fault':18}" + "".join(f"{verdict:>15}" for verdict in verdicts))
    total: collections.Counter[str] = collections.Counter()
    for fault, counts in table.items():
        total.update(counts)
        print(f"{fault:18}" + "".join(f"{counts[verdict]:15}" for verdict in verdicts))
    print(f"{'all':18}" + "".join(f"{total[verdict]:15}" for verdict in verdicts))
    print("refused as: " + ", ".join(f"{name} {count}" for name, count in sorted(errors.items()) if count))
    print("parsed after the digest: " + ", ".join(f"{name} {count}" for name, count in sorted(parsed.items())))


def _fuzz(bundles: Sequence[pathlib.Path], minutes: float) -> int:
    command = [sys.executable, "-m", "tools.fuzz_manifest", "--minutes", str(minutes), *map(str, bundles)]
    return int(subprocess.run(command, check=False).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
