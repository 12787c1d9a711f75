"""The plots of the page: quality against compute, and against the speed that was measured."""

import pathlib
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.quality_grid import INTERVALS, STEPS, Forecast
from tools.quality_page_samples import speedups
from tools.quality_results import Record
from tools.quality_systems import System
from tools.quality_tables import Measured

__all__ = ["draw_compute", "draw_predictors", "draw_speed"]

_INK, _PAPER = "#22262e", "#ffffff"
_COLORS = ("#8a919e", "#4f7cac", "#c8413b", "#3f9b6c", "#d9822b", "#7d5ba6", "#22262e")

_WAYS = (
    ("reuse", 0),
    ("taylor", 1),
    ("taylor", 2),
    ("taylor", 3),
    ("taylor", 4),
)


def draw_compute(path: pathlib.Path, measured: Measured, systems: Sequence[System]) -> None:
    """Write the median PSNR against the share of full steps: reuse, and Taylor at each order.

    The bands are the 95 % intervals.
    """
    figure, panels = _panels(systems)
    for axes, system in zip(panels, systems, strict=True):
        for color, (predictor, order) in zip(_COLORS, _WAYS, strict=False):
            _curve(axes, measured, system, predictor, order, color, band=order <= 1)
        _finish(axes, system, f"full steps / {STEPS} steps")
    _save(figure, panels, path)


def draw_predictors(path: pathlib.Path, measured: Measured, systems: Sequence[System], order: int = 2) -> None:
    """Write the median PSNR against the share of full steps: every predictor at one order."""
    figure, panels = _panels(systems)
    ways = ["reuse", "taylor", "newton", "least-squares", "hermite", "exponential"]
    for axes, system in zip(panels, systems, strict=True):
        for color, predictor in zip(_COLORS, ways, strict=False):
            _curve(axes, measured, system, predictor, 0 if predictor == "reuse" else order, color, band=False)
        _finish(axes, system, f"full steps / {STEPS} steps")
    _save(figure, panels, path)


def draw_speed(path: pathlib.Path, measured: Measured, systems: Sequence[System], records: Iterable[Record]) -> None:
    """Write the median PSNR against the speed-up of whole requests, each point with its interval and its eta."""
    timed = list(records)
    figure, panels = _panels(systems)
    for axes, system in zip(panels, systems, strict=True):
        mine = sorted((r for r in timed if r["model"] == system.model), key=lambda r: float(r["interval"]))
        for color, order in zip(_COLORS[1:], dict.fromkeys((1, system.preset.order)), strict=False):
            points = [(r, _psnr(measured, system, r, order)) for r in mine if r["order"] == order]
            shown = [(speedups(r), r["interval"], psnr) for r, psnr in points if psnr is not None]
            if not shown:
                continue
            axes.plot([s[0] for s, _, _ in shown], [y for _, _, y in shown], "o-", color=color, label=f"taylor {order}")
            for (speedup, eta, _), interval, psnr in shown:
                label = f"N={interval}, {eta:.2f}"
                axes.annotate(label, (speedup, psnr), (4, 3), textcoords="offset points", fontsize=7, color=_INK)
        _finish(axes, system, "measured speed-up of a whole request\n(beside each point: interval, eta)")
    _save(figure, panels, path)


def _psnr(measured: Measured, system: System, record: Record, order: int) -> float | None:
    forecast = Forecast(steps=STEPS, interval=record["interval"], order=order, predictor="taylor")
    return measured.median(system, forecast)


def _curve(
    axes: Axes, measured: Measured, system: System, predictor: str, order: int, color: str, *, band: bool
) -> None:
    forecasts = [Forecast(steps=STEPS, interval=n, order=order, predictor=predictor) for n in INTERVALS]
    found = [(f, measured.estimate(system, f) if band else measured.median(system, f)) for f in forecasts]
    shown = [(len(f.cache(system).schedule().full_steps) / STEPS, value) for f, value in found if value is not None]
    if not shown:
        return
    shares = [share for share, _ in shown]
    medians = [value if isinstance(value, float) else value.value for _, value in shown]
    label = predictor if order == 0 else f"{predictor}, order {order}"
    axes.plot(shares, medians, "o-", color=color, markersize=3, linewidth=1.4, label=label)
    ends = [(value.low, value.high) for _, value in shown if not isinstance(value, float) and value.count > 1]
    if len(ends) == len(shares):
        axes.fill_between(shares, [low for low, _ in ends], [high for _, high in ends], color=color, alpha=0.15, lw=0)


def _panels(systems: Sequence[System]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.2 * len(systems), 3.6), facecolor=_PAPER, layout="constrained")
    return figure, list(figure.subplots(1, len(systems), squeeze=False)[0])


def _finish(axes: Axes, system: System, across: str) -> None:
    axes.set_title(f"{system.title} ({system.model})", fontsize=9, color=_INK)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel("PSNR to every step full, dB", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _save(figure: Figure, panels: list[Axes], path: pathlib.Path) -> None:
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor=_PAPER)
