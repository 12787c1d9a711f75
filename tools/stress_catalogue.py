"""The requests of the stress campaign: drawn at random from one number, so that any process makes the same ones."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.config import CacheConfig
from taylorseer.errors import ScheduleError
from taylorseer.manifest import Manifest
from taylorseer.runtime.batching import merged
from taylorseer.runtime.generation import random_request
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.request import Request
from taylorseer.runtime.session import LoadedModel, Result
from taylorseer.runtime.step_plan import BuiltState, plan_steps

__all__ = ["catalogue", "digest", "diverging", "fresh_digest", "references"]

_LARGEST_BATCH = 3
_MOST_STEPS = 50


def catalogue(manifest: Manifest, count: int, seed: int) -> list[Request]:
    """Return requests of random noise and conditions, orders, schedules, steps, guidance and batches."""
    random = np.random.default_rng(seed)
    return [_request(manifest, random, seed * 1_000_003 + number * 16) for number in range(count)]


def _request(manifest: Manifest, random: np.random.Generator, seed: int) -> Request:
    cache = _cache(manifest, random)
    most = min(_LARGEST_BATCH, manifest.sizes["max_batch"] // manifest.rows_per_image)
    images = int(random.integers(1, most + 1))
    request = merged(
        [random_request(manifest, seed + image, cache=cache) for image in range(images)], manifest.rows_per_image
    )
    guidance = float(random.uniform(0.5, 1.5)) * request.guidance
    return dataclasses.replace(request, guidance=guidance, every_step_full=bool(random.random() < 0.05))


def _cache(manifest: Manifest, random: np.random.Generator) -> CacheConfig:
    """Draw until the bundle can serve it: a folded one has so many accumulators and no more."""
    while True:
        try:
            cache = CacheConfig(
                steps=int(random.integers(9, _MOST_STEPS + 1)),
                interval=int(random.integers(2, 7)),
                order=int(random.integers(0, manifest.order + 1)),
                warmup_steps=int(random.integers(1, 5)),
                cooldown_steps=int(random.integers(0, 3)),
                predictor=str(random.choice(["taylor", "reuse"])),
                guard=random.choice(["none", "lower-order"]),
            )
            plan_steps(cache, BuiltState.of_bundle(manifest))
        except ScheduleError:
            continue
        return cache


def diverging(request: Request, step: int) -> Request:
    """Return a request whose latent is NaN after a step, as of a model that diverges."""
    updates = request.sampler.updates.copy()
    updates[step] = np.nan
    return dataclasses.replace(request, sampler=dataclasses.replace(request.sampler, updates=updates))


def digest(result: Result) -> str:
    """Return the SHA-256 of a latent's bytes."""
    return hashlib.sha256(np.ascontiguousarray(result.latent).tobytes()).hexdigest()


def fresh_digest(bundle: Bundle, request: Request) -> str:
    """Return the digest of a request that is the first of engines that were loaded for it alone."""
    model = LoadedModel(bundle.manifest, open_backend(bundle, threads=1))
    with model.session(request.shape.batch, steps=request.shape.steps) as session:
        return digest(session.denoise(**request.arguments()))


def references(folder: pathlib.Path, count: int, seed: int, processes: int = 2) -> list[str]:
    """Return the digest of every request of the catalogue, each made by a process that makes nothing else."""

    def one(number: int) -> str:
        command = [sys.executable, "-m", "tools.stress_catalogue", str(folder), str(count), str(seed), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout))

    with ThreadPoolExecutor(processes) as threads:
        return list(threads.map(one, range(count)))


def main(arguments: Sequence[str]) -> int:
    """Print the digest of one request: folder, count, seed, number."""
    bundle = open_bundle(arguments[0])
    count, seed, number = (int(argument) for argument in arguments[1:])
    print(json.dumps(fresh_digest(bundle, catalogue(bundle.manifest, count, seed)[number])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
