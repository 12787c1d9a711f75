"""Fuzz the reader of manifests: whatever it is given, it gives a manifest that it reads back alike, or a BundleError.

    python -m tools.fuzz_manifest BUNDLE [BUNDLE ...] --minutes 10

With atheris (``pip install atheris``, Linux) the coverage of the reader leads the mutations, half of them by the
manifest's grammar and half of the bytes; without it, which is said, they are random.  Each input is read as it is and,
if it is a JSON object, once more with its digest written anew: the digest hides everything behind it otherwise.
"""

import argparse
import json
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["main", "read_both"]

_LONGEST = 2**18
"""Bytes of an input."""


def read_both(data: bytes) -> int:
    """Read an input as it is and with a right digest; return how often it was a manifest.

    Raises:
        AssertionError: a manifest is not read back alike.
        Exception: anything but BundleError is a bug of the reader.
    """
    from taylorseer.bundle_files import check_names
    from taylorseer.errors import BundleError
    from taylorseer.manifest_json import manifest_from_json, manifest_to_json, sealed

    texts = [data.decode("utf-8", "replace")]
    try:
        parsed = json.loads(texts[0])
        if isinstance(parsed, dict):
            texts.append(json.dumps(sealed(parsed)))
    except (ValueError, RecursionError):
        pass
    accepted = 0
    for text in texts:
        try:
            manifest = manifest_from_json(text)
            check_names(manifest.files)
        except BundleError:
            continue
        accepted += 1
        again = manifest_from_json(manifest_to_json(manifest))
        assert again == manifest, "it is not read back alike"
    return accepted


def main() -> int:
    """Fuzz for so many minutes; return 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=pathlib.Path, metavar="BUNDLE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seeds = [(bundle / "manifest.json").read_bytes() for bundle in options.bundles]
    try:
        import atheris  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        print("atheris is not installed: the mutations are random, and coverage does not lead them")
        return _random(seeds, options.minutes, options.seed)
    return _atheris(atheris, seeds, options.minutes, options.seed)


def _random(seeds: Sequence[bytes], minutes: float, seed: int) -> int:
    from tools.manifest_grammar import mutated_text

    numbers, manifests = random.Random(seed), [json.loads(text) for text in seeds]
    stop, count, accepted = time.monotonic() + 60 * minutes, 0, 0
    while time.monotonic() < stop:
        accepted += read_both(mutated_text(numbers.choice(manifests), numbers))
        count += 1
    print(f"{count} inputs in {minutes:g} minutes, {accepted} of them manifests: nothing was found")
    return 0


def _atheris(atheris: Any, seeds: Sequence[bytes], minutes: float, seed: int) -> int:
    """Run libFuzzer, which ends the process itself: with 0, or with its report of an input that failed."""
    with atheris.instrument_imports(include=["taylorseer", "json"]):
        import taylorseer.bundle_files
        import taylorseer.manifest_json  # noqa: F401
    from tools.manifest_grammar import mutated_text

    def mutate(data: bytes, most: int, number: int) -> bytes:
        numbers = random.Random(number)
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            parsed = None
        if numbers.random() < 0.5 or not isinstance(parsed, dict) or not parsed:
            return bytes(atheris.Mutate(data, most))
        return mutated_text(parsed, numbers)[:most]

    with tempfile.TemporaryDirectory() as corpus:
        for number, text in enumerate(seeds):
            pathlib.Path(corpus, str(number)).write_bytes(json.dumps(json.loads(text)).encode())
        flags = [f"-max_total_time={round(60 * minutes)}", f"-seed={seed}", f"-max_len={_LONGEST}", "-timeout=20"]
        flags += ["-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={tempfile.gettempdir()}/"]
        atheris.Setup([sys.argv[0], *flags, corpus], read_both_quietly, custom_mutator=mutate)
        atheris.Fuzz()
    return 0


def read_both_quietly(data: bytes) -> None:
    """As :func:`read_both`, for a fuzzer that takes no result."""
    read_both(data)


if __name__ == "__main__":
    sys.exit(main())
