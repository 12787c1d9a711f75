"""Draw docs/folding.png: what a forecast step reads in the paper's way, and what it reads of a folded state.

    python -m tools.draw_folding docs/folding.png

The right half is `place_accumulators` itself at work: interval 4 at order 1, as few as a ring can show.
"""

import argparse
import math
import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Wedge

from taylorseer.accumulators import Accumulators, Placement, accumulators_of, place_accumulators
from taylorseer.config import CacheConfig

__all__ = ["draw", "main"]

INK, MUTED, PAPER = "#22262e", "#8a919e", "#ffffff"
FEATURE, KEPT, NEW, READ, ROOM = "#4f7cac", "#e9b872", "#d9822b", "#c8413b", "#eceef2"

CACHE = CacheConfig(steps=13, interval=4, order=1, warmup_steps=1)

FEATURES = 7
"""Drawn; FLUX has 76."""


def draw(path: pathlib.Path) -> None:
    """Write the picture as a PNG."""
    figure = Figure(figsize=(12.6, 5.6), facecolor=PAPER)
    left, right = figure.add_axes((0.005, 0, 0.41, 1)), figure.add_axes((0.425, 0, 0.57, 1))
    for axes, width in ((left, 41.0), (right, 57.0)):
        axes.set_xlim(0, width)
        axes.set_ylim(0, 56 * 100 / 126)
        axes.set_axis_off()
        axes.set_aspect("equal")
    _paper(left)
    _folded(right)
    figure.savefig(path, dpi=150, facecolor=PAPER)


def _text(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    axes.text(x, y, text, **{"color": INK, "fontsize": 10, "ha": "center", "va": "center", **style})  # type: ignore[arg-type]


def _box(axes: Axes, x: float, y: float, width: float, height: float, color: str, edge: str = "none") -> None:
    style = "round,pad=0,rounding_size=0.45"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor=edge, lw=1.1))


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    *,
    wide: float = 1.2,
) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, lw=wide))


def _paper(axes: Axes) -> None:
    """M features, order + 1 tensors of each, all read at every forecast step."""
    _text(axes, 1.5, 41.6, "as in the paper", fontsize=15, weight="bold", ha="left")
    _text(axes, 1.5, 39.2, "every module remembers; every forecast reads all of it", color=MUTED, ha="left")
    top, height, gap = 33.6, 2.5, 0.9
    for m in range(FEATURES):
        y = top - m * (height + gap)
        label = f"$F_{{{m + 1}}}$" if m < FEATURES - 1 else "$F_M$"
        _text(axes, 3.2, y + height / 2, label, fontsize=12)
        for order, color in enumerate((FEATURE, "#9db8d6")):
            _box(axes, 5.4 + order * 6.3, y, 5.7, height, color)
            _text(axes, 8.25 + order * 6.3, y + height / 2, f"$D_{order}$", color=PAPER if order == 0 else INK)
        _arrow(axes, (18.2, y + height / 2), (26.3, 24.4 + (3 - m) * 0.55), READ)
    _text(axes, 11.4, 37.0, "state: (O + 1) tensors per feature", fontsize=9, color=MUTED)
    _box(axes, 26.6, 20.8, 12.6, 7.2, PAPER, INK)
    _text(axes, 32.9, 25.9, "forecast step", weight="bold")
    _text(axes, 32.9, 23.2, r"$\sum_m g_m \sum_i c_i\, D_i$", fontsize=11)
    _arrow(axes, (32.9, 32.8), (32.9, 28.3), INK)
    _text(axes, 32.9, 33.9, "embedded latent")
    _arrow(axes, (32.9, 20.5), (32.9, 16.2), INK)
    _text(axes, 32.9, 15.0, "final layer")
    _text(axes, 20.5, 5.6, "reads  M (O + 1)  tensors", fontsize=12, color=READ, weight="bold")
    _text(axes, 20.5, 3.1, "FLUX at 1024 x 1024, order 1:  152 tensors, 3.83 GB a step", fontsize=9.5, color=MUTED)


def _folded(axes: Axes) -> None:
    """A full step adds its gated features to the accumulators of the forecasts to come; a forecast reads one."""
    built = accumulators_of(CACHE.schedule(), CACHE.order)
    placements = place_accumulators(CACHE.schedule(), CACHE.weights(), built)
    full = CACHE.schedule().full_steps[1]
    axes.plot([0, 0], [3, 41], color="#d5d8de", lw=1)
    _text(axes, 2.4, 41.6, "folded", fontsize=15, weight="bold", ha="left")
    _text(axes, 2.4, 39.2, "a full step already adds up what each forecast to come will need", color=MUTED, ha="left")
    top, height, gap = 31.3, 1.7, 0.75
    for m in range(FEATURES):
        y = top - m * (height + gap)
        _box(axes, 3.2, y, 5.2, height, FEATURE)
        label = f"$F_{{{m + 1}}}$" if m < FEATURES - 1 else "$F_M$"
        _text(axes, 5.8, y + height / 2, label, color=PAPER, fontsize=10)
        _arrow(axes, (8.6, y + height / 2), (13.4, 24.6 + (3 - m) * 0.5), FEATURE, wide=1.0)
    _text(axes, 5.8, 35.4, f"full step {full}", weight="bold")
    _text(axes, 5.8, 14.1, "features are gone\nafter the step", fontsize=9, color=MUTED)
    _box(axes, 13.6, 21.0, 8.4, 7.2, PAPER, INK)
    _text(axes, 17.8, 26.0, r"$w_{s,j}\,\sum_m g_m(s)\,F_m$", fontsize=10)
    _text(axes, 17.8, 22.9, "gates of step s", fontsize=8.5, color=MUTED)
    _ring(axes, placements[full], built, full)
    _text(axes, 28.5, 5.6, "reads  1  tensor", fontsize=12, color=READ, weight="bold")
    _text(
        axes,
        28.5,
        3.1,
        "FLUX at 1024 x 1024, order 1:  one fp32 accumulator, 0.05 GB a step",
        fontsize=9.5,
        color=MUTED,
    )


def _ring(axes: Axes, placed: Placement, built: Accumulators, full: int) -> None:
    """The slots around a circle, by what this full step does with each."""
    x, y, outer, inner = 33.9, 24.6, 9.6, 5.4
    steps = {built.slot(placed.base, index): (index, step) for index, step in enumerate(placed.steps)}
    angle = 360 / built.ring
    for slot in range(built.ring):
        index, step = steps.get(slot, (None, None))
        kept = index is not None and index < built.carried and placed.kept[index]
        color = ROOM if step is None else KEPT if kept else NEW
        first = angle / 2 - (slot - built.slot(placed.base, 0)) * angle
        axes.add_patch(Wedge((x, y), outer, first - angle + 1, first - 1, width=outer - inner, fc=color, ec="none"))
        middle = math.radians(first - angle / 2)
        where = (x + (outer + inner) / 2 * math.cos(middle), y + (outer + inner) / 2 * math.sin(middle))
        old = (slot - placed.base) % built.ring
        name, style = (step, INK) if step is not None else (placed.steps[old], MUTED)
        _text(axes, *where, f"$A_{{{name}}}$", fontsize=13, color=style)
        if step == full + 1:
            _read(axes, (x + outer + 0.3, y), step)
    axes.add_patch(Circle((x, y), inner - 0.5, fc=PAPER, ec="none"))
    _text(axes, x, y + 1.2, "ring of", fontsize=9, color=MUTED)
    _text(axes, x, y - 0.9, "accumulators", fontsize=9, color=MUTED)
    _arrow(axes, (22.2, 24.6), (x - outer - 0.3, 24.6), NEW, wide=2.2)
    _legend(axes, 10.6)


def _read(axes: Axes, start: tuple[float, float], step: int) -> None:
    left, width = 46.4, 10.2
    middle = left + width / 2
    _box(axes, left, 21.0, width, 7.2, PAPER, INK)
    _text(axes, middle, 26.0, f"forecast step {step}", weight="bold", fontsize=9.5)
    _text(axes, middle, 23.2, f"embed $+\\; A_{{{step}}}$", fontsize=11)
    _arrow(axes, start, (left - 0.2, start[1]), READ, wide=2.2)
    _arrow(axes, (middle, 32.8), (middle, 28.5), INK)
    _text(axes, middle, 33.9, "embedded latent")
    _arrow(axes, (middle, 20.7), (middle, 16.2), INK)
    _text(axes, middle, 15.0, "final layer")


def _legend(axes: Axes, y: float) -> None:
    entries = (
        (5.2, KEPT, "carried on and added to"),
        (20.6, NEW, "begun here"),
        (30.0, ROOM, "read here, written next"),
    )
    for left, color, text in entries:
        _box(axes, left + 4, y - 0.5, 1.2, 1.0, color)
        _text(axes, left + 5.8, y, text, fontsize=9, ha="left", color=MUTED)


def main() -> int:
    """Draw it where the first argument says."""
    parser = argparse.ArgumentParser(description="draw the picture of docs/folding.md")
    parser.add_argument("path", type=pathlib.Path, metavar="FILE.png")
    draw(parser.parse_args().path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
