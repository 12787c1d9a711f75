"""What a profile says: each engine's times by our timers and by trtexec, and both against the device's roofline."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taylorseer.engines.engine_times import EngineTimes, LayerTime, TimesSummary
from taylorseer.engines.inspector import EngineLayer, LayerRow, layer_table
from taylorseer.engines.work import Bound, Work

__all__ = ["EngineReport", "LoopReport", "ProfileReport", "Roofline", "engine_report", "loop_report"]

AGREEMENT_PERCENT = 5.0
"""Medians this close agree: two processes on one device differ by a few percent in clocks and temperature alone."""

MOST_LAYERS = 15
"""Layers printed per engine; the JSON has all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """What this very device was measured to do at best."""

    copy_gb_per_second: float
    """A large copy on the device, bytes read plus bytes written."""
    gemm_tflop_per_second: float
    """A large matrix product in the engines' precision."""
    copy_method: str
    """How the copy was measured, in words: sizes, repetitions, timer."""
    gemm_method: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineReport:
    """One engine; :func:`engine_report` computes it."""

    kind: str
    """``prepare``, ``full``, ``forecast`` or ``update``."""
    command: tuple[str, ...]
    """The trtexec arguments that time it."""
    work: Work
    session: TimesSummary
    """By our own timers, in the session."""
    trtexec: TimesSummary | None
    """None: trtexec was not run."""
    difference_percent: float | None
    """The session's median above trtexec's, as a share of the latter."""
    tflop_per_second: float
    """Achieved in the session's median time."""
    gb_per_second: float
    """Achieved, counting the fewest bytes that must move."""
    floor_ms: float
    """The roofline's shortest time for the work."""
    bound: Bound
    """What sets the floor."""
    roofline_share: float
    """floor / median: 1 is all that the device can do."""
    layers: tuple[LayerRow, ...]
    """In the engine's order; times from a run of its own, which profiling slows down."""

    @property
    def layers_ms(self) -> float | None:
        """Sum of the layers' median times; None: no layer was timed."""
        times = [row.time.median_ms for row in self.layers if row.time]
        return sum(times) if times else None

    def verdict(self) -> str:
        """Say in words whether the two timers agree."""
        if self.trtexec is None or self.difference_percent is None:
            return "trtexec was not run: times are by our own timers alone"
        direction = "slower" if self.difference_percent > 0 else "faster"
        apart = f"the session is {abs(self.difference_percent):.1f} % {direction}"
        if abs(self.difference_percent) <= AGREEMENT_PERCENT:
            return f"agree: {apart}, within {AGREEMENT_PERCENT:g} %"
        return f"DISAGREE: {apart}; compare clocks, batch and use of CUDA graphs, and profile again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopReport:
    """One denoising loop; :func:`loop_report` computes it."""

    steps: int
    full_steps: tuple[int, ...]
    loop_ms: float
    full_ms: float
    """Median full step."""
    forecast_ms: float | None
    """Median forecast step; None: every step was full."""
    outside_engines_ms: float | None
    """The loop's time less its engines' medians: launches, copies; None: an engine was not timed."""
    step_ms: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """Everything ``taylorseer profile`` found."""

    bundle: str
    hardware: Mapping[str, Any]
    """Device, driver, library versions, clocks: what a reader needs to judge the numbers."""
    roofline: Roofline
    engines: tuple[EngineReport, ...]
    loop: LoopReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return every number, and the commands as lines for a shell."""
        values = dataclasses.asdict(self)
        for entry, engine in zip(values["engines"], self.engines, strict=True):
            entry |= {"command": shlex.join(engine.command), "layers_ms": engine.layers_ms, "verdict": engine.verdict()}
        return values

    def to_text(self) -> str:
        """Return the report for a terminal, the most expensive layers first."""
        lines = [f"{self.bundle} on {', '.join(f'{name} {value}' for name, value in self.hardware.items())}"]
        lines += [
            f"roofline  {self.roofline.copy_gb_per_second:8.1f} GB/s copy        {self.roofline.copy_method}",
            f"          {self.roofline.gemm_tflop_per_second:8.1f} TFLOP/s product  {self.roofline.gemm_method}",
        ]
        for engine in self.engines:
            lines += ["", *_engine_lines(engine)]
        if self.loop is not None:
            lines += ["", *_loop_lines(self.loop)]
        return "\n".join(lines)


def engine_report(
    kind: str,
    *,
    command: Sequence[str],
    work: Work,
    session: EngineTimes,
    roofline: Roofline,
    trtexec: EngineTimes | None = None,
    layers: Sequence[EngineLayer] = (),
    times: Sequence[LayerTime] = (),
) -> EngineReport:
    """Set one engine's times against each other and against the roofline.

    Args:
        kind: which engine.
        command: from :func:`taylorseer.engines.trtexec.trtexec_command`, run or not.
        work: of the engine's graph, at the batch that was timed.
        session: what our own timers measured.
        roofline: of the device that was timed on.
        trtexec: what trtexec measured, if it was run.
        layers: from the engine inspector.
        times: of the layers, from trtexec or from our own profiler.
    """
    ours, theirs = session.summary(), trtexec.summary() if trtexec else None
    seconds = ours.median_ms / 1e3
    floor = work.floor_seconds(roofline.copy_gb_per_second * 1e9, roofline.gemm_tflop_per_second * 1e12)
    return EngineReport(
        kind=kind,
        command=tuple(command),
        work=work,
        session=ours,
        trtexec=theirs,
        difference_percent=100 * (ours.median_ms / theirs.median_ms - 1) if theirs else None,
        tflop_per_second=work.flops / seconds / 1e12,
        gb_per_second=work.total_bytes / seconds / 1e9,
        floor_ms=floor.seconds * 1e3,
        bound=floor.bound,
        roofline_share=floor.seconds / seconds,
        layers=layer_table(layers, times),
    )


def loop_report(
    step_seconds: Sequence[float], full_steps: Sequence[bool], engines: Sequence[EngineReport] = ()
) -> LoopReport:
    """Summarize a denoising loop, and how much of it the engines do not explain.

    Args:
        step_seconds: [steps] wall time of each step.
        full_steps: [steps] which of them were full.
        engines: the reports of ``full`` and ``forecast``, timed at the loop's batch.
    """
    step_ms, full = np.asarray(step_seconds, np.float64) * 1e3, np.asarray(full_steps, np.bool_)
    medians = {engine.kind: engine.session.median_ms for engine in engines}
    runs = {"full": int(full.sum()), "forecast": int((~full).sum())}
    updates = {"update": len(full)} if "update" in medians else {}
    timed = all(kind in medians for kind, count in runs.items() if count)
    inside = sum(medians[kind] * count for kind, count in (runs | updates).items() if count) if timed else 0.0
    return LoopReport(
        steps=len(step_ms),
        full_steps=tuple(int(step) for step in np.flatnonzero(full)),
        loop_ms=float(step_ms.sum()),
        full_ms=float(np.median(step_ms[full])),
        forecast_ms=float(np.median(step_ms[~full])) if runs["forecast"] else None,
        outside_engines_ms=float(step_ms.sum()) - inside if timed else None,
        step_ms=tuple(float(value) for value in step_ms),
    )


def _engine_lines(engine: EngineReport) -> list[str]:
    work = engine.work
    lines = [f"{engine.kind} engine", *([f"  $ {shlex.join(engine.command)}"] if engine.command else [])]
    lines.append(f"  {'':9} {'median':>12} {'p10':>12} {'p90':>12} {'runs':>6}")
    for name, times in (("session", engine.session), ("trtexec", engine.trtexec)):
        if times:
            lines.append(
                f"  {name:9} {times.median_ms:9.3f} ms {times.p10_ms:9.3f} ms {times.p90_ms:9.3f} ms {times.runs:6d}"
            )
    lines += [
        f"  {engine.verdict()}",
        f"  work      {work.flops / 1e9:.3f} GFLOP, {work.weight_bytes / 1e6:.3f} MB weights, "
        f"{work.io_bytes / 1e6:.3f} MB inputs and outputs",
        f"  achieved  {engine.tflop_per_second:.2f} TFLOP/s, {engine.gb_per_second:.1f} GB/s",
        f"  floor     {engine.floor_ms:.4f} ms, set by {engine.bound}: {engine.roofline_share:.1%} of the roofline",
    ]
    return lines + _layer_lines(engine)


def _layer_lines(engine: EngineReport) -> list[str]:
    timed = [(row.time.median_ms, row.time.percent, row) for row in engine.layers if row.time]
    timed.sort(key=lambda entry: -entry[0])
    if not timed:
        return [f"  layers    {len(engine.layers)}, none of them timed"] if engine.layers else []
    lines = [f"  layers    {len(timed)} timed one by one, {engine.layers_ms or 0:.3f} ms together"]
    for milliseconds, percent, row in timed[:MOST_LAYERS]:
        kind = row.layer.kind if row.layer else ""
        lines.append(f"  {milliseconds:9.4f} ms {percent:5.1f} %  {kind:14.14}  {_shortened(row.name)}")
    rest = timed[MOST_LAYERS:]
    if rest:
        lines.append(
            f"  {sum(entry[0] for entry in rest):9.4f} ms {sum(entry[1] for entry in rest):5.1f} %  {len(rest)} others"
        )
    return lines


def _shortened(name: str, width: int = 70) -> str:
    """Cut the middle out of a name: fused layers differ at their ends, and can have thousands of letters."""
    return name if len(name) <= width else f"{name[: width // 2 - 2]}...{name[-(width - width // 2 - 1) :]}"


def _loop_lines(loop: LoopReport) -> list[str]:
    lines = [f"loop      {loop.steps} steps, {len(loop.full_steps)} full, {loop.loop_ms:.2f} ms"]
    lines.append(f"  full step      {loop.full_ms:.3f} ms")
    if loop.forecast_ms is not None:
        lines.append(
            f"  forecast step  {loop.forecast_ms:.3f} ms, {loop.forecast_ms / loop.full_ms:.1%} of a full step"
        )
    if loop.outside_engines_ms is not None:
        share = loop.outside_engines_ms / loop.loop_ms
        lines.append(f"  outside the engines  {loop.outside_engines_ms:.2f} ms, {share:.1%} of the loop")
    return lines
