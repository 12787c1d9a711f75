"""``taylorseer profile``: every engine by our timers and by trtexec, layer by layer, against what the device can do."""

import argparse
import json
import pathlib
import platform
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from taylorseer.bundle import Bundle, open_bundle
from taylorseer.commands.options import add_cache_options, add_json_option, cache_config
from taylorseer.commands.progress import progress_bar
from taylorseer.config import CacheConfig
from taylorseer.errors import BackendError, InputError, OutputError

if TYPE_CHECKING:
    from taylorseer.engines.profile_report import EngineReport, ProfileReport, Roofline
    from taylorseer.runtime.session import Result, Session

__all__ = ["add_options", "run"]

SUMMARY = "time every engine, layer by layer, against what this device can do"

_GEMM_SIZE = 8192


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each engine (default 30)")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="folder of the report (default out/profile)")
    parser.add_argument("--trtexec", action="store_true", help="insist on trtexec; otherwise it runs where it is found")
    add_cache_options(parser)
    add_json_option(parser)


def run(options: argparse.Namespace) -> int:
    """Profile the bundle, print the report and write it with the step timeline."""
    from taylorseer.runtime.step_plan import BuiltState, plan_steps

    if options.runs < 1:
        raise InputError(f"--runs is {options.runs}: give 1 or more.")
    bundle = open_bundle(options.bundle)
    output: pathlib.Path = options.output or pathlib.Path("out/profile")
    config = cache_config(options, CacheConfig.from_json(bundle.manifest.cache))
    plan_steps(config, BuiltState.of_bundle(bundle.manifest))
    _make_folder(output)
    with progress_bar("profiling", quiet=options.json) as bar:
        report = _profile(bundle, config, options, output, bar.update)
    _write(output / "report.json", report.to_json())
    if options.json:
        json.dump(report.to_json(), sys.stdout, indent=1)
        print()
    else:
        print(report.to_text())
        print(f"timeline and report in {output}")
    return 0


def _profile(
    bundle: Bundle, config: CacheConfig, options: argparse.Namespace, output: pathlib.Path, progress: Any
) -> "ProfileReport":
    from taylorseer.engines.profile_report import ProfileReport, loop_report
    from taylorseer.runtime.open_backend import open_backend
    from taylorseer.runtime.session import LoadedModel
    from taylorseer.runtime.timeline import draw_timeline

    if options.trtexec:
        _require_trtexec(bundle)
    backend = open_backend(bundle)
    with LoadedModel(bundle.manifest, backend).session(steps=config.steps) as session:
        progress("measuring the device", 0.05)
        roofline = _roofline(backend, bundle)
        progress("running a loop", 0.2)
        results = [_loop(session, config) for _ in range(3)]
        result = sorted(results, key=lambda one: float(one.step_seconds.sum()))[1]
        engines = []
        for number, kind in enumerate(sorted(bundle.manifest.graphs)):
            progress(f"timing the {kind} engine", 0.4 + 0.2 * number)
            engines.append(_engine(session, bundle, kind, roofline, options.runs, output))
        title = f"{bundle.manifest.model}, {bundle.manifest.precision}, {bundle.manifest.engine.backend}"
        draw_timeline(result.step_seconds, result.full_steps, output / "timeline.png", title)
        steps = loop_report(result.step_seconds.tolist(), result.full_steps.tolist(), engines)
        return ProfileReport(
            bundle=str(bundle.folder),
            hardware=_hardware(backend, bundle, session),
            roofline=roofline,
            engines=tuple(engines),
            loop=steps,
        )


def _loop(session: "Session", config: CacheConfig) -> "Result":
    from taylorseer.runtime.generation import random_conditions, sampler_for
    from taylorseer.runtime.latents import initial_noise

    return session.denoise(
        initial_noise(session.latent_shape, 0),
        random_conditions(session.manifest, 0),
        sampler=sampler_for(session, config.steps),
        cache=config,
        guidance=session.manifest.pipeline.guidance,
    )


def _engine(
    session: "Session", bundle: Bundle, kind: str, roofline: "Roofline", runs: int, output: pathlib.Path
) -> "EngineReport":
    """Time one engine with our timers, and with trtexec where it is found, and put its files beside the report."""
    from taylorseer.engines.engine_times import EngineTimes, layer_times
    from taylorseer.engines.inspector import read_engine_layers
    from taylorseer.engines.profile_report import engine_report
    from taylorseer.engines.trtexec_reports import write_layers, write_times
    from taylorseer.engines.work import graph_work
    from taylorseer.runtime.engine_timing import inspector_text, layer_reports, time_engine

    manifest = bundle.manifest
    ours = EngineTimes.from_durations(*time_engine(session, kind, runs))
    layers = layer_times(layer_reports(session, kind, runs), runs)
    write_times(output / f"{kind}-times.json", ours)
    write_layers(output / f"{kind}-layers.json", layers, runs=runs)
    command, theirs = _trtexec(session, bundle, kind, output)
    text = inspector_text(session, kind)
    return engine_report(
        kind,
        command=command,
        work=graph_work(bundle.path(manifest.graphs[kind].file), **_rows(session, kind)),
        session=ours,
        roofline=roofline,
        trtexec=theirs,
        layers=read_engine_layers(text) if text else (),
        times=layers,
    )


def _rows(session: "Session", kind: str) -> dict[str, int]:
    """Return the symbolic sizes of a graph's inputs, as the session's engine is given them."""
    tensors, inputs = session.tensors(kind), session.manifest.graphs[kind].inputs
    return {
        name: size
        for spec in inputs
        for name, size in zip(spec.shape, tensors[spec.name].shape, strict=True)
        if isinstance(name, str)
    }


def _trtexec(session: "Session", bundle: Bundle, kind: str, output: pathlib.Path) -> tuple[list[str], Any]:
    """Return trtexec's line for an engine and, where the tool is found, what it measured."""
    from taylorseer.engines.trtexec import find_trtexec, run_trtexec, trtexec_command
    from taylorseer.engines.trtexec_reports import read_times
    from taylorseer.runtime.tensorrt_backend import TensorRTBackend, plan_for

    backend = session.model.backend
    if not isinstance(backend, TensorRTBackend):
        return [], None
    flavor = backend.library.flavor
    plan = plan_for(bundle.manifest.engine.plans, kind, backend.device, backend.library)
    tool = find_trtexec(flavor)
    times, layers = output / f"{kind}-trtexec-times.json", output / f"{kind}-trtexec-layers.json"
    shapes = {
        spec.name: session.tensors(kind)[spec.name].shape
        for spec in bundle.manifest.graphs[kind].inputs
        if any(isinstance(size, str) for size in spec.shape)
    }
    command = trtexec_command(
        tool,
        bundle.path(plan.file),
        shapes,
        flavor=flavor,
        times=times,
        layers=layers,
    )
    if tool is None:
        return command, None
    run_trtexec(command)
    return command, read_times(times)


def _require_trtexec(bundle: Bundle) -> None:
    from taylorseer.engines.trtexec import require_trtexec
    from taylorseer.tensorrt_library import FLAVORS

    backend = bundle.manifest.engine.backend
    flavor = next((name for name in FLAVORS if name == backend), None)
    if flavor is None:
        raise BackendError(f"The bundle was built for {backend}, which trtexec does not run: leave out --trtexec.")
    require_trtexec(flavor)


def _roofline(backend: Any, bundle: Bundle) -> "Roofline":
    from taylorseer.engines.profile_report import Roofline
    from taylorseer.runtime import roofline
    from taylorseer.runtime.tensorrt_backend import TensorRTBackend

    if not isinstance(backend, TensorRTBackend):
        return Roofline(
            copy_gb_per_second=roofline.host_copy(),
            gemm_tflop_per_second=roofline.host_gemm(),
            copy_method="NumPy, 256 MiB, median of 7",
            gemm_method="NumPy in fp32, 1024 x 1024, median of 7",
        )
    precision = bundle.manifest.precision
    return Roofline(
        copy_gb_per_second=roofline.device_copy(backend),
        gemm_tflop_per_second=_device_gemm(backend, precision),
        copy_method="on the device, 1 GiB, median of 20",
        gemm_method=f"{backend.library.flavor} in {precision}, {_GEMM_SIZE} x {_GEMM_SIZE}, median of 20",
    )


def _device_gemm(backend: Any, precision: str) -> float:
    """Build and time one product; it is small work, and the ceiling is that of this very TensorRT."""
    from taylorseer.engines.gemm_graph import write_gemm_graph
    from taylorseer.engines.options import TensorRTOptions
    from taylorseer.engines.tensorrt_builder import build_plan
    from taylorseer.runtime.roofline import device_gemm

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "gemm.onnx"
        graph = write_gemm_graph(file, _GEMM_SIZE, precision)
        plan = build_plan(backend.library, file, (), TensorRTOptions(), backend.device.compute_capability)
    return device_gemm(backend, backend.engine_of("gemm", bytes(plan), graph), _GEMM_SIZE, dtype=graph.inputs[0].dtype)


def _hardware(backend: Any, bundle: Bundle, session: "Session") -> dict[str, Any]:
    from taylorseer.runtime.tensorrt_backend import TensorRTBackend

    common = {"engine": f"{bundle.manifest.engine.backend} {bundle.manifest.engine.version}", "batch": session.batch}
    if not isinstance(backend, TensorRTBackend):
        return {"processor": platform.processor() or platform.machine(), **common}
    device = backend.device
    return {
        "device": device.name,
        "capability": device.compute_capability,
        "driver CUDA": device.driver_version,
        **common,
    }


def _make_folder(output: pathlib.Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {str(output)!r} cannot be made: {error}. Give another --output.") from error


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    from taylorseer.runtime.whole_file import write_whole

    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
