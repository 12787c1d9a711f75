"""What folding costs and gives: a folded bundle beside a history bundle of the same model, in one process, interleaved.

    build-engines --model flux-emoji --state folded --output bundles/folded
    build-engines --model flux-emoji --state history --output bundles/history
    python -m tools.benchmark_folding bundles/folded bundles/history

The baseline is the history bundle with every step full: its full engine folds nothing.  Loops are whole requests, with
prepare on both sides.  Prints medians and one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from taylorseer.bundle import open_bundle
from taylorseer.config import CacheConfig
from taylorseer.runtime.engine_timing import time_engine
from taylorseer.runtime.generation import random_conditions, sampler_for
from taylorseer.runtime.latents import initial_noise
from taylorseer.runtime.open_backend import open_backend
from taylorseer.runtime.session import LoadedModel, Session


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folded", help="a bundle with the folded state")
    parser.add_argument("history", help="the same model with the state history")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    models = []
    for folder in (options.folded, options.history):
        bundle = open_bundle(folder)
        models.append(LoadedModel(bundle.manifest, open_backend(bundle)))
    with models[0].session() as folded, models[1].session() as history:
        result = measure(folded, history, options.rounds)
    print(json.dumps(result, indent=1))
    return 0


def measure(folded: Session, history: Session, rounds: int) -> dict[str, Any]:
    """Return medians over ``rounds``; milliseconds but for the ratios."""
    config = CacheConfig.from_json(history.manifest.cache)
    loops: dict[str, Callable[[], float]] = {
        "every step full": lambda: denoise(history, config, every_step_full=True),
        "folded": lambda: denoise(folded, config),
        "history": lambda: denoise(history, config),
    }
    taken: dict[str, list[float]] = {name: [] for name in loops}
    kinds = ("prepare", "full", "forecast", "update")
    engines: dict[tuple[str, str], list[float]] = {(n, kind): [] for n in ("folded", "history") for kind in kinds}
    for number in range(rounds + 1):  # the first to warm up
        for name, loop in loops.items():
            loop()  # as in a service, the request before was of the same model, and its weights are in the cache
            seconds = loop()
            if number:
                taken[name].append(seconds * 1e3)
        for (name, kind), times in engines.items():
            session = folded if name == "folded" else history
            # One at a time: two engines in turns, so that both meet the machine as it is then.
            times.append(float(np.median(time_engine(session, kind, 2 if kind == "full" else 4)[0])))
    loop_ms = {name: statistics.median(times) for name, times in taken.items()}
    engine_ms = {f"{name} {kind}": statistics.median(times) for (name, kind), times in engines.items()}
    steps, full = config.steps, len(config.schedule().full_steps)
    full_ms, step_ms = engine_ms["history full"], engine_ms["folded forecast"] + engine_ms["folded update"]
    return {
        "model": f"{folded.manifest.model} {folded.manifest.precision}",
        "schedule": f"{full} of {steps} steps full, order {config.order}",
        "loop_ms": loop_ms,
        "engine_ms": engine_ms,
        "speedup": loop_ms["every step full"] / loop_ms["folded"],
        "eta": loop_ms["every step full"] / loop_ms["folded"] * full / steps,
        "eta_history": loop_ms["every step full"] / loop_ms["history"] * full / steps,
        "forecast_step_over_full_step": step_ms / (full_ms + engine_ms["history update"]),
        "folding_overhead": engine_ms["folded full"] / full_ms - 1,
        "prepare_over_full_step": engine_ms["folded prepare"] * -(-steps // chunk(folded)) / full_ms,
        "state_bytes": {"folded": folded.state_bytes, "history": history.state_bytes},
    }


def chunk(session: Session) -> int:
    """Return the steps that prepare takes at once."""
    return max(1, session.manifest.prepare_rows // session.manifest.rows_per_image)


def denoise(session: Session, config: CacheConfig, *, every_step_full: bool = False) -> float:
    """Run a whole request; return its seconds."""
    manifest = session.manifest
    noise, conditions = initial_noise(session.latent_shape, 0), random_conditions(manifest, 0)
    sampler = sampler_for(session, config.steps)
    start = time.perf_counter()
    session.denoise(
        noise,
        conditions,
        sampler=sampler,
        cache=config,
        guidance=manifest.pipeline.guidance,
        every_step_full=every_step_full,
    )
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
