"""One fault and what came of it: a bundle is damaged, opened and asked for an image, with every parser watched."""

import dataclasses
import hashlib
import json
import pathlib
import random
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.errors import TaylorSeerError
from taylorseer.plan_trust import require_trusted_plan
from taylorseer.runtime.generation import Generator, random_conditions
from taylorseer.tensorrt_library import FLAVORS
from tools.bundle_faults import Injection, apply
from tools.parser_watch import ParserWatch
from tools.path_attacks import copy_linked

__all__ = ["BAD", "Request", "Trial", "answer", "request_of", "run_trial"]

BAD = ("wrong image", "crash", "hang", "parsed early")
"""Verdicts that must not be."""

_SEED = 3

_PROMPT = "red heart"
"""Words of the demo models that have a word table."""

Request = str | Mapping[str, Any]
"""A prompt, or the condition inputs by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of one fault."""

    fault: str
    """Its name."""
    what: str
    """What was changed."""
    verdict: str
    """``refused``, ``same image``, ``another image`` (of a forged manifest) or one of :data:`BAD`."""
    detail: str
    """The error's type, or what went wrong."""
    parsed: Mapping[str, int]
    """Calls of each parser."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def request_of(bundle: Bundle) -> Request:
    """Return a request that fits the sound bundle; a damaged one is asked for the same."""
    if bundle.manifest.pipeline.text == "words":
        return _PROMPT
    return random_conditions(bundle.manifest, _SEED)


def answer(bundle: Bundle, request: Request) -> str:
    """Return the digest of the latent that the bundle makes of a request, with its own default schedule.

    Plans need a GPU to run: of a bundle of plans it is the digest of what would be loaded.

    Raises:
        TaylorSeerError: the bundle or the request is refused.
    """
    if bundle.manifest.engine.backend in FLAVORS:
        paths = [require_trusted_plan(bundle, plan.file) for plan in bundle.manifest.engine.plans]
        content = repr(bundle.manifest).encode() + b"".join(path.read_bytes() for path in paths)
        return hashlib.sha256(content).hexdigest()
    with Generator(bundle, threads=1) as generator:
        latent = generator.generate(request, seed=_SEED).latent
    return hashlib.sha256(latent.tobytes()).hexdigest()


def run_trial(
    source: pathlib.Path,
    others: Sequence[pathlib.Path],
    request: Request,
    expected: str,
    fault: str,
    seed: int,
    place: pathlib.Path,
) -> Trial:
    """Damage a copy of a bundle and judge what it gives.

    Args:
        source: the sound bundle.
        others: sound bundles to swap files with.
        request: what is asked.
        expected: what the sound bundle answers.
        fault: a key of :data:`tools.bundle_faults.FAULTS`.
        seed: of all that is random in it.
        place: an empty folder on the file system of ``source``; it is empty afterwards.
    """
    folder = copy_linked(source, place / source.name)
    watch = ParserWatch(folder)
    try:
        what = apply(fault, Injection(folder, others, random.Random(seed)))
        with watch.watching():
            verdict, detail = _judge(folder, request, expected, forged=fault == "forged manifest")
    finally:
        shutil.rmtree(folder)
    if watch.early:
        verdict, detail = "parsed early", ", ".join(sorted(set(watch.early)))
    return Trial(fault=fault, what=what, verdict=verdict, detail=detail, parsed=watch.calls)


def _judge(folder: pathlib.Path, request: Request, expected: str, *, forged: bool) -> tuple[str, str]:
    try:
        found = answer(open_bundle(folder), request)
    except TaylorSeerError as error:
        return "refused", type(error).__name__
    except BaseException as error:  # whatever else comes is what is looked for
        return "crash", f"{type(error).__name__}: {error}"[:300]
    if found == expected:
        return "same image", ""
    return ("another image" if forged else "wrong image"), ""
