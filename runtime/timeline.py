"""A denoising loop as a picture: one bar per step, full and forecast steps in two colors, and the same as JSON."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import DependencyError, InputError, OutputError
from taylorseer.runtime.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_timeline"]

_FULL, _FORECAST = "#0072b2", "#e69f00"
"""Told apart by every kind of color vision, and in gray."""

_CROWDED = 4
"""A full step this many times as long as a forecast step makes the forecast bars hard to compare on its scale."""

_DPI = 150

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def draw_timeline(
    step_seconds: Sequence[float] | Floats, full_steps: Sequence[bool] | Flags, path: Path, title: str
) -> Path:
    """Draw a loop to the PNG file ``path`` and write its numbers beside it, with the suffix ``.json``.

    Above, the steps one after another on the loop's time axis; below, how long each took.  Where full steps dwarf the
    forecasts, a third panel shows the durations again with the axis cut above the forecasts: bars stay comparable by
    their length, which on a logarithmic axis they are not.

    Args:
        step_seconds: [steps] wall time of each denoising step.
        full_steps: [steps] which of them were full.
        path: ends in ``.png``.
        title: what was measured: model, device, schedule.

    Returns:
        Where the JSON lies.

    Raises:
        DependencyError: matplotlib is not installed.
        InputError: no steps, times that are not positive numbers, or not one flag for each time.
        OutputError: a path that ends otherwise, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError(f"{str(path)!r} is no picture: give a path that ends in .png.")
    step_ms, full = _checked(step_seconds, full_steps)
    figure = _figure(step_ms, full, title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    numbers = path.with_suffix(".json")
    write_whole(path, picture.getvalue())
    write_whole(numbers, json.dumps(_numbers(step_ms, full, title), indent=1, allow_nan=False).encode())
    return numbers


def _checked(step_seconds: Sequence[float] | Floats, full_steps: Sequence[bool] | Flags) -> tuple[Floats, Flags]:
    step_ms, full = np.asarray(step_seconds, np.float64) * 1e3, np.asarray(full_steps, np.bool_)
    if step_ms.ndim != 1 or step_ms.shape != full.shape or not step_ms.size:
        raise InputError(
            f"A timeline needs a time and a flag for each step: got shapes {step_ms.shape} and {full.shape}."
        )
    if not (np.isfinite(step_ms).all() and (step_ms > 0).all()):
        raise InputError("A timeline needs positive, finite times: the loop was not timed to its end.")
    return step_ms, full


def _numbers(step_ms: Floats, full: Flags, title: str) -> dict[str, Any]:
    starts = np.cumsum(step_ms) - step_ms
    return {
        "title": title,
        "loop_ms": float(step_ms.sum()),
        "full_ms": _median(step_ms[full]),
        "forecast_ms": _median(step_ms[~full]),
        "steps": [
            {"step": step, "kind": "full" if is_full else "forecast", "start_ms": float(start), "ms": float(ms)}
            for step, (is_full, start, ms) in enumerate(zip(full, starts, step_ms, strict=True))
        ],
    }


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if values.size else None


def _figure(step_ms: Floats, full: Flags, title: str) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("The timeline needs matplotlib: `pip install 'taylorseer-trt[profile]'`.") from error
    crowded = bool(full.any() and (~full).any() and np.median(step_ms[full]) > _CROWDED * np.median(step_ms[~full]))
    heights = [0.8, 3.0, 2.2] if crowded else [0.8, 3.0]
    figure = Figure(figsize=(11, 1.4 + sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    strip, *panels = figure.subplots(len(heights), 1, height_ratios=heights)
    _draw_strip(strip, step_ms, full)
    _draw_durations(panels[0], step_ms, full)
    if crowded:
        forecasts = step_ms[~full]  # one that was interrupted must not flatten all others
        _draw_durations(panels[1], step_ms, full, cut_ms=float(min(1.25 * forecasts.max(), 2 * np.median(forecasts))))
    panels[-1].set_xlabel("denoising step")
    return figure


def _draw_strip(axes: "Axes", step_ms: Floats, full: Flags) -> None:
    """Draw the steps one after another, where they lie in time."""
    starts = np.cumsum(step_ms) - step_ms
    axes.barh(np.zeros(len(step_ms)), step_ms, left=starts, height=1.0, color=_colors(full))
    axes.set_xlim(0, float(step_ms.sum()))
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])
    axes.set_xlabel(f"ms since the first step; the loop took {step_ms.sum():.4g} ms")


def _draw_durations(axes: "Axes", step_ms: Floats, full: Flags, cut_ms: float | None = None) -> None:
    """Draw each step's duration over its index; above ``cut_ms`` the bars are cut off, which the axis says."""
    steps = np.arange(len(step_ms))
    for kind, mask, color in (("full", full, _FULL), ("forecast", ~full, _FORECAST)):
        if mask.any():
            label = f"{mask.sum()} {kind} steps, median {np.median(step_ms[mask]):.4g} ms"
            axes.bar(steps[mask], step_ms[mask], width=0.8, color=color, label=label)
    axes.set_xlim(-0.6, len(step_ms) - 0.4)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if cut_ms is None:
        axes.set_ylabel("ms")
        # below the strip and above the bars, so that no bar is behind it
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    else:
        axes.set_ylim(0, cut_ms)
        axes.set_ylabel(f"ms, cut at {cut_ms:.2g}")


def _colors(full: Flags) -> list[str]:
    return [_FULL if is_full else _FORECAST for is_full in full]
