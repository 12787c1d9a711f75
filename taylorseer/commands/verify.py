"""``taylorseer verify``: schedules and weights against what is known, graphs against torch where it is installed."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.commands.options import add_json_option
from taylorseer.commands.progress import progress_bar
from taylorseer.config import PRESETS, CacheConfig
from taylorseer.errors import CheckpointError
from taylorseer.predictor import EXACT_ON_LINES, largest_weight_sum
from taylorseer.tensorrt_library import FLAVORS

if TYPE_CHECKING:
    from taylorseer.exporter.parity import TorchReference
    from taylorseer.runtime.session import Session
    from taylorseer.runtime.shadow_backend import Predict

__all__ = ["Check", "add_options", "run"]

Latent = NDArray[np.float32]

SUMMARY = "check a bundle: digests, golden schedules, linear series, and graphs against torch"

_GOLDEN = {
    "flux": (0, 1, 2, 8, 14, 20, 26, 32, 38, 44),
    "hunyuan-video": tuple(range(0, 50, 5)),
    "dit": (0, *range(1, 50, 4)),
    "wan": tuple(range(0, 50, 5)),
    "hidream": tuple(range(0, 50, 4)),
    "diffusers": (0, 1, 2, *range(4, 50, 5)),
}
"""The full steps of 50 that the authors' code takes (and, for ``diffusers``, that diffusers takes)."""

_LINEAR = 1e-12
"""float64 rounding of a sum whose |weights| add up to 11 at most."""

_PARITY = {"fp32": (1e-4, 1e-3), "fp16": (2e-3, 2e-2), "bf16": (1.6e-2, 1e-1)}
"""Relative error allowed for one graph and for a whole loop: rounding of the dtype, fed back through 50 steps.

A graph is compared together with the prepare graph that feeds it: two plans in a row, each of which may err as much as
``verify_plans`` allows one.  bf16 has three bits less than fp16, so it may err 8 times as much.
"""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    name: str
    passed: bool | None
    """None: not checked, for the reason in ``detail``."""
    detail: str


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random request that graphs are compared on")
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Run every check; exit code 1 if one fails."""
    bundle = open_bundle(options.bundle)
    checks = [Check("digests", True, f"{len(bundle.manifest.files)} files match the manifest")]
    checks += [_golden_schedules(), _linear_series(bundle)]
    with progress_bar("comparing with torch", quiet=options.json) as bar:
        for check in _parity(bundle, options.seed, bar.update):
            checks.append(check)
    if options.json:
        json.dump({"checks": [dataclasses.asdict(check) for check in checks]}, sys.stdout, indent=1)
        print()
    else:
        for check in checks:
            word = {True: "ok", False: "FAILED", None: "not run"}[check.passed]
            print(f"{word:8} {check.name}: {check.detail}")
    return 1 if any(check.passed is False for check in checks) else 0


def _golden_schedules() -> Check:
    wrong = [name for name, steps in _GOLDEN.items() if PRESETS[name].schedule().full_steps != steps]
    return Check("golden schedules", not wrong, ", ".join(wrong) or f"{len(_GOLDEN)} presets at 50 steps")


def _linear_series(bundle: Bundle) -> Check:
    """A feature linear in s is forecast exactly once a difference is known (order 1 or more)."""
    config = CacheConfig.from_json(bundle.manifest.cache)
    schedule = config.schedule()
    if config.order == 0 or config.predictor not in EXACT_ON_LINES:
        asked = "order 0" if config.order == 0 else f"the predictor {config.predictor}"
        return Check("linear series", None, f"{asked} is not made to be exact on lines")
    worst, count = 0.0, 0
    for step, row in config.weights().items():
        if len(row) > 1:
            value = sum(weight * (3.0 + 2.0 * source) for source, weight in row.items())
            worst, count = max(worst, abs(value / (3.0 + 2.0 * step) - 1)), count + 1
    if count == 0:
        return Check("linear series", None, "no forecast step of this schedule knows two full steps")
    detail = f"{count} of {len(schedule.forecast_steps)} forecast steps extrapolate; relative error {worst:.1e}"
    return Check("linear series", worst <= _LINEAR, detail)


def _parity(bundle: Bundle, seed: int, progress: Callable[[str, float], None]) -> Iterator[Check]:
    """The graphs on the loop's own inputs, then the whole loop with feedback, both against torch."""
    if bundle.manifest.weights == "none":
        yield Check("parity with torch", None, "the bundle has graphs only")
        return
    try:
        if bundle.manifest.engine.backend not in FLAVORS:
            import onnxruntime  # noqa: F401  the backend would say so too late

        import torch

        from taylorseer.exporter.parity import reference_from_bundle
    except ImportError as error:
        yield Check("parity with torch", None, f"{error.name} is not installed")
        return
    from taylorseer.runtime.open_backend import open_backend
    from taylorseer.runtime.session import LoadedModel
    from taylorseer.runtime.shadow_backend import ShadowBackend

    config = CacheConfig.from_json(bundle.manifest.cache)
    if config.predictor != "taylor" or config.guard == "lower-order":
        found = config.predictor if config.predictor != "taylor" else f"the guard {config.guard}"
        yield Check(
            "parity with torch", None, f"the official recurrence is taylor at one order, this bundle has {found}"
        )
        return
    progress("building the torch reference", 0.0)
    # In float32 whatever the bundle's precision, so that the difference is the engines' own error.
    device = "cuda" if bundle.manifest.engine.backend in FLAVORS and torch.cuda.is_available() else "cpu"
    try:
        reference = reference_from_bundle(bundle, config, dtype=torch.float32, device=device)
    except CheckpointError as error:
        yield Check("parity with torch", None, str(error))
        return
    backend = open_backend(bundle)
    shadow = ShadowBackend(backend, _predictor(bundle, config, seed, reference))
    with LoadedModel(bundle.manifest, shadow).session(steps=config.steps) as session:
        with_torch = _loop(session, config, seed, progress)
    graph_limit = _PARITY[bundle.manifest.precision][0]
    for kind, limit in (("full", graph_limit), ("forecast", graph_limit * _amplification(bundle, config))):
        worst = float(np.max([error for graph, error in shadow.errors if graph == kind]))  # NaN if one is
        yield Check(f"{kind} graph", worst <= limit, f"relative error {worst:.1e}, at most {limit:.1e}")
    with LoadedModel(bundle.manifest, backend).session(steps=config.steps) as session:
        yield from _whole_loop(session, bundle, config, seed, progress, with_torch)


def _whole_loop(
    session: "Session",
    bundle: Bundle,
    config: CacheConfig,
    seed: int,
    progress: Callable[[str, float], None],
    with_torch: Latent,
) -> Iterator[Check]:
    """The loop with feedback against torch's latent and, on its way, every plan against ONNX Runtime in float32."""
    from taylorseer.commands.verify_plans import PlanComparison
    from taylorseer.runtime.shadow_backend import relative_error

    plans = PlanComparison(session, bundle, config) if bundle.manifest.engine.backend in FLAVORS else None
    ours = _loop(session, config, seed, progress, plans.after_step if plans else None)
    gap, limit = relative_error(ours, with_torch), _PARITY[bundle.manifest.precision][1]
    yield Check(f"loop of {config.steps} steps", gap <= limit, f"relative error {gap:.1e}, at most {limit:.1e}")
    yield from _plans(plans.errors if plans else {}, bundle.manifest.precision)


def _amplification(bundle: Bundle, config: CacheConfig) -> float:
    """How much a forecast may magnify the rounding of the features that our full engine remembered; 1 in float32."""
    return 1.0 if bundle.manifest.precision == "fp32" else largest_weight_sum(config.weights())[1]


def _predictor(bundle: Bundle, config: CacheConfig, seed: int, reference: "TorchReference") -> "Predict":
    """Give the reference the same request that :func:`_loop` makes, and the latent as the engines read it: rounded.

    A prediction of the noise has the latent divided by what is left of the noise in it, and the latent's rounding too:
    at the last steps that is most of the error of any engine, and none of ours.
    """
    import torch

    from taylorseer.exporter.tracing import TORCH_DTYPES
    from taylorseer.runtime.generation import random_conditions, sampler_of
    from taylorseer.runtime.step_table import prepare_table

    manifest = bundle.manifest
    conditions, rows = random_conditions(manifest, seed), manifest.rows_per_image
    steps = prepare_table(manifest, sampler_of(manifest, config.steps), guidance=manifest.pipeline.guidance)
    (latent_name,) = (spec.name for spec in manifest.graphs["full"].inputs if spec.role == "latent")

    def predict(step: int, latent: Latent) -> Latent:
        numbers = {name: np.repeat(values[step], rows) for name, values in steps.items()}
        rounded = torch.from_numpy(latent).to(TORCH_DTYPES[manifest.precision]).float().numpy()
        prediction: Latent = reference.predict(step, {**conditions, **numbers, latent_name: rounded})
        return prediction

    return predict


def _plans(errors: Mapping[str, Mapping[str, float]], precision: str) -> Iterator[Check]:
    """Every output of every plan against ONNX Runtime in float32."""
    from taylorseer.commands.verify_plans import TOLERANCE

    limit = TOLERANCE[precision]
    for kind, found in sorted(errors.items()):
        name = max(found, key=lambda n: math.inf if math.isnan(found[n]) else found[n])
        detail = f"{len(found)} tensors against ONNX Runtime in fp32, the worst is {name!r}: relative error "
        yield Check(f"{kind} plan", found[name] <= limit, f"{detail}{found[name]:.1e}, at most {limit:.1e}")


def _loop(
    session: "Session",
    config: CacheConfig,
    seed: int,
    progress: Callable[[str, float], None],
    after_step: Callable[[int], None] | None = None,
) -> Latent:
    """Denoise random noise under random conditions; return the final latent."""
    from taylorseer.runtime.generation import random_conditions, sampler_for
    from taylorseer.runtime.latents import initial_noise

    def on_step(step: int, full: bool) -> None:
        progress("comparing with torch", (step + 1) / config.steps)
        if after_step is not None:
            after_step(step)

    result = session.denoise(
        initial_noise(session.latent_shape, seed),
        random_conditions(session.manifest, seed),
        sampler=sampler_for(session, config.steps),
        cache=config,
        guidance=session.manifest.pipeline.guidance,
        on_step=on_step,
    )
    latent: Latent = result.latent
    return latent
