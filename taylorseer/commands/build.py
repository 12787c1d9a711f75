"""``build-engines``: from a model's name to a bundle with engines."""

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any, get_args

from taylorseer.bundle import Bundle, check_target, draft_bundle
from taylorseer.commands.backends import BuildEngines, add_backend_options, choose_backend
from taylorseer.commands.options import add_cache_options, add_fold_options, add_json_option, cache_config, check_fold
from taylorseer.commands.progress import progress_bar
from taylorseer.config import PRESETS
from taylorseer.errors import CheckpointError, DependencyError, ModelError
from taylorseer.manifest import Layout
from taylorseer.tensorrt_library import FLAVORS

if TYPE_CHECKING:
    from taylorseer.exporter.workflow import ExportRequest

__all__ = ["add_options", "run"]

SUMMARY = "export a diffusion transformer, split it and build engines"

_SIZES = ("height", "width", "frames", "text_length", "batch")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--model", required=True, metavar="NAME", help="flux, hunyuan-video, dit, flux-emoji, ...")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="PATH", help="a local diffusers folder, or a hub id")
    source.add_argument("--random-weights", action="store_true", help="random weights of the model's size")
    source.add_argument("--graphs-only", action="store_true", help="no weights and no engines: only to inspect")
    parser.add_argument("--onnx", type=pathlib.Path, metavar="FILE", help="split this exported model, with its weights")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "bf16"), help="of weights and state")
    parser.add_argument(
        "--residual",
        default="model",
        choices=("model", "fp32"),
        help="dtype of the residual stream (default: as PRECISION)",
    )
    parser.add_argument("--height", type=int, help="pixels")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--frames", type=int, help="frames of a clip")
    parser.add_argument("--text-length", type=int, help="text tokens")
    parser.add_argument("--batch", type=int, help="largest batch that the engines serve")
    parser.add_argument(
        "--state",
        default="auto",
        choices=("auto", *reversed(get_args(Layout))),
        help="what is remembered (default auto: folded where that is proven to be exact, otherwise history)",
    )
    add_fold_options(parser)
    parser.add_argument("--output", metavar="DIR", help="the bundle's folder (default: bundles/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")
    add_backend_options(parser)
    add_cache_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Build the bundle and say what is in it."""
    output = check_target(options.output or pathlib.Path("bundles") / options.model, overwrite=options.overwrite)
    request, build_engines = _request(options)
    with progress_bar("building", quiet=options.json) as bar:
        bundle = _build(request, build_engines, output, options, bar.update)
    _report(bundle, options)
    return 0


def _request(options: argparse.Namespace) -> "tuple[ExportRequest, BuildEngines | None]":
    """Check everything that can be checked before the long work starts."""
    if options.onnx is not None and (options.checkpoint or options.random_weights):
        raise CheckpointError("--onnx FILE brings its own weights: leave out --checkpoint and --random-weights.")
    _check_state(options)
    from taylorseer.exporter.families import load_model

    model = load_model(options.model)
    try:
        from taylorseer.exporter.checkpoints import find_checkpoint
        from taylorseer.exporter.workflow import ExportRequest
    except ImportError as error:
        raise DependencyError(
            f"Exporting needs {error.name}: `pip install 'taylorseer-trt[export,onnxruntime]'`."
        ) from error
    build_engines = choose_backend(options, options.precision)
    cache = cache_config(options, PRESETS[model.preset])
    weightless = options.random_weights or options.graphs_only or options.onnx is not None
    request = ExportRequest(
        model=model,
        sizes=dataclasses.replace(model.sizes, **_given_sizes(options)),
        precision=options.precision,
        residual=options.residual,
        layout=options.state,
        accumulators=options.accumulators or "fp32",
        flush_group=options.flush_group,
        fold_form="chains" if options.backend in FLAVORS or options.provider == "cuda" else "channels",
        cache=cache,
        checkpoint=None if weightless else find_checkpoint(model, options.checkpoint),
        onnx=options.onnx,
        graphs_only=options.graphs_only,
    )
    _refuse_unservable(request)
    return request, build_engines


def _check_state(options: argparse.Namespace) -> None:
    """Refuse options about folding where nothing is folded."""
    check_fold(options)
    for name in ("accumulators", "flush_group"):
        if getattr(options, name) is not None and options.state not in ("auto", "folded"):
            raise ModelError(
                f"--{name.replace('_', '-')} says how a state is folded, and --state {options.state} folds nothing: "
                "leave one of the two out."
            )


def _refuse_unservable(request: "ExportRequest") -> None:
    """Refuse what would build but could not run: the bundle's own defaults have to work."""
    from taylorseer.runtime.samplers import sampler_from_config
    from taylorseer.runtime.step_plan import BuiltState, plan_steps

    pipeline = request.model.pipeline
    if pipeline.guidance_mode == "classifier-free" and request.sizes.max_batch < 2:
        raise ModelError(f"{request.model.name} takes two rows per image (classifier-free guidance): give --batch 2.")
    layout = "history" if request.layout == "auto" else request.layout  # what holds for it holds for folded
    plan_steps(request.cache, BuiltState.for_config(layout, request.cache))
    scheduler = request.checkpoint.scheduler if request.checkpoint else None
    sampler_from_config(scheduler or pipeline.scheduler, request.cache.steps, tokens=1)


def _given_sizes(options: argparse.Namespace) -> dict[str, int]:
    """Return the sizes that were asked for, by their field in ``Sizes``."""
    given = {}
    for name in _SIZES:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ModelError(f"--{name.replace('_', '-')} {value} is no size: give 1 or more.")
        if value is not None:
            given["max_batch" if name == "batch" else name] = value
    return given


def _build(
    request: "ExportRequest",
    build_engines: BuildEngines | None,
    output: pathlib.Path,
    options: argparse.Namespace,
    progress: Any,
) -> Bundle:
    from taylorseer.exporter.workflow import export

    with draft_bundle(output, overwrite=options.overwrite) as draft:
        manifest = export(request, draft, lambda what, fraction: progress(what, 0.6 * fraction))
        if build_engines is not None:
            progress("proving the engines", 0.6)
            engine = build_engines(draft.folder, manifest, lambda what, done: progress(what, 0.6 + 0.35 * done))
            manifest = dataclasses.replace(manifest, engine=engine)
        return draft.commit(manifest)


def _report(bundle: Bundle, options: argparse.Namespace) -> None:
    manifest = bundle.manifest
    facts: dict[str, Any] = {
        "bundle": str(bundle.folder),
        "model": manifest.model,
        "backend": manifest.engine.backend,
        "precision": manifest.precision,
        "state": manifest.layout,
        "state_reason": manifest.layout_reason,
        "order": manifest.order,
        "features": len(manifest.features),
        "bytes": sum(file.bytes for file in manifest.files.values()),
    }
    if options.json:
        json.dump(facts, sys.stdout, indent=1)
        print()
        return
    why = f" (auto: {manifest.layout_reason})" if options.state == "auto" else ""
    print(f"{bundle.folder}: {manifest.model}, {manifest.precision}, {manifest.engine.backend}")
    print(f"  state {manifest.layout}{why}, order {manifest.order}, {len(manifest.features)} live features")
    print(f"  {len(manifest.dead_features)} features dead at a forecast step; {facts['bytes'] / 1e6:.1f} MB on disk")
