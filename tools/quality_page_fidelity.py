"""The part of the page on fidelity: reuse against Taylor, orders, predictors, shorter loops.

Its sentences follow from the results: a claim is confirmed, or it is not, by the intervals.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from tools.quality_grid import INTERVALS, SHORT_LOOPS, STEPS, Forecast, forecast_digest, grid, short_grid
from tools.quality_systems import System
from tools.quality_tables import Estimate, Measured, error_levels, gain, growth, table

__all__ = ["best_choices", "every_cell", "order_claims", "reuse_against_taylor", "shorter_loops"]


def reuse_against_taylor(measured: Measured, system: System) -> Iterator[str]:
    """Yield the table at the preset's order, and at order 1 where that is another, each with what it says."""
    for order in dict.fromkeys((system.preset.order, 1)):
        pairs = _pairs(measured, system, order)
        if pairs:
            yield f"**{system.title}**, `{system.model}`, order {order}{_preset_note(system, order)}:"
            yield table(_head(system), (_row(measured, system, taylor, reuse) for taylor, reuse in pairs))
            yield " ".join(order_claims(measured, system, order))


def order_claims(measured: Measured, system: System, order: int) -> Iterator[str]:
    """Yield what the results say of the paper's order of things: Taylor above reuse, a gap that grows."""
    pairs = _pairs(measured, system, order)
    gaps = {taylor.interval: measured.gains(system, taylor, reuse, system.grid) for taylor, reuse in pairs}
    estimates = {interval: gain(gaps[interval]) for interval in gaps if gaps[interval]}
    above = [n for n, estimate in estimates.items() if estimate and estimate.is_positive]
    below = [n for n, estimate in estimates.items() if estimate and estimate.is_negative]
    open_ = [n for n in estimates if n not in above and n not in below]
    if len(above) == len(estimates):
        yield f"*Taylor above reuse: confirmed* at every interval from {above[0]} to {above[-1]}."
    else:
        parts = [("above", above), ("below", below), ("not told apart from it", open_)]
        found = "; ".join(f"{word} at {_listed(numbers)}" for word, numbers in parts if numbers)
        yield f"*Taylor above reuse: not at every interval.* The 95 % interval of its gain puts it {found}."
    yield _growth_claim(measured, system, pairs)
    yield from _inversions(measured, system, [taylor for taylor, _ in pairs])


def _growth_claim(measured: Measured, system: System, pairs: Sequence[tuple[Forecast, Forecast]]) -> str:
    (first, first_reuse), (last, last_reuse) = pairs[0], pairs[-1]
    changes = {}
    for what, sign in (("psnr_db", 1), ("error", -1)):
        early = measured.gains(system, first, first_reuse, system.grid, what)
        late = measured.gains(system, last, last_reuse, system.grid, what)
        changes[what] = growth(*({r: sign * gap for r, gap in gaps.items()} for gaps in (early, late)))
    decibels, levels = changes["psnr_db"], changes["error"]
    if decibels is None or levels is None:
        return ""
    span = f"from interval {first.interval} to {last.interval}"
    verdicts = {"in decibels": decibels, "in levels of 255": levels}
    grown = [where for where, change in verdicts.items() if change.is_positive]
    title = {0: "not confirmed", 1: f"confirmed {grown[0] if grown else ''}, not otherwise", 2: "confirmed"}[len(grown)]
    text = (
        f"*The gap grows with the interval: {title}.* {span.capitalize()} it changes by "
        f"{decibels.text(signed=True)} dB, and as a root mean square error by {levels.text(2, signed=True)} levels of "
        "255."
    )
    if decibels.is_negative and levels.is_positive:
        text += (
            " Decibels are a ratio of errors: both ways lose more the longer the interval, and while what Taylor saves "
            "becomes more, it becomes a smaller share."
        )
    return text


def _inversions(measured: Measured, system: System, ways: Sequence[Forecast]) -> Iterator[str]:
    """Yield the intervals that come closer than the next shorter one, and where their last full steps lie."""
    found = []
    for shorter, longer in itertools.pairwise(ways):
        over = gain(measured.gains(system, longer, shorter, system.grid))
        if over is not None and over.is_positive:
            found.append(
                f"{longer.interval} than {shorter.interval} by {over.text(signed=True)} dB (last full step "
                f"{_last(system, longer)} instead of {_last(system, shorter)})"
            )
    if found:
        yield (
            "*A longer interval is not always worse:* with Taylor, closer to every step full are the intervals "
            f"{'; '.join(found)}. After the last full step only forecasts follow."
        )


def _last(system: System, forecast: Forecast) -> int:
    return forecast.cache(system).schedule().full_steps[-1]


def best_choices(measured: Measured, system: System) -> Iterator[str]:
    """Yield a table of the best order and predictor at each interval, and its gain over Taylor at the preset's."""
    rows = []
    for interval in INTERVALS:
        tried = {f: measured.median(system, f) for f in _distinct(system, grid((interval,)))}
        known = {forecast: median for forecast, median in tried.items() if median is not None}
        if not known:
            continue
        best = max(known, key=lambda forecast: known[forecast])
        preset = Forecast(steps=STEPS, interval=interval, order=system.preset.order, predictor="taylor")
        over = gain(measured.gains(system, best, preset, system.grid))
        full = len(best.cache(system).schedule().full_steps)
        rows.append(
            [
                str(interval),
                f"{full} of {STEPS}",
                f"{best.predictor}, order {best.order}",
                _text(measured.estimate(system, best)),
                over.text(signed=True) if over else "",
            ]
        )
    if rows:
        yield f"**{system.title}**:"
        head = ["interval", "full steps", "best of all tried", "PSNR dB", f"over taylor, order {system.preset.order}"]
        yield table(head, rows)


def every_cell(measured: Measured, system: System) -> Iterator[str]:
    """Yield the median PSNR of every interval, order and predictor, folded away."""
    columns = [f for f in _distinct(system, grid((4,))) if measured.median(system, f) is not None]
    if not columns:
        return
    rows = []
    for interval in INTERVALS:
        values = [measured.median(system, dataclasses.replace(column, interval=interval)) for column in columns]
        if any(value is not None for value in values):
            rows.append([str(interval), *("" if value is None else f"{value:.1f}" for value in values)])
    heads = [f"{column.predictor} {column.order}" for column in columns]
    yield f"<details><summary>{system.title}: median PSNR in dB of everything that was tried</summary>\n"
    yield table(["interval", *heads], rows)
    yield "</details>"


def shorter_loops(measured: Measured, systems: Iterable[System]) -> Iterator[str]:
    """Yield the reduced grids: Taylor's order 1 and 2, the exponential predictor and reuse in loops of fewer steps."""
    for system in systems:
        # At an interval with hardly any full steps, more of them are equal than elsewhere.
        columns = _distinct(system, short_grid(SHORT_LOOPS[0], (4,)))
        rows = []
        for steps in SHORT_LOOPS:
            for interval in INTERVALS:
                here = [dataclasses.replace(column, steps=steps, interval=interval) for column in columns]
                estimates = [measured.estimate(system, forecast) for forecast in here]
                if any(estimates):
                    full = len(here[0].cache(system).schedule().full_steps)
                    texts = [_text(estimate) for estimate in estimates]
                    rows.append([str(steps), str(interval), str(full), *texts])
        if rows:
            heads = [f"{column.predictor}, order {column.order}" for column in columns]
            yield f"**{system.title}**, PSNR in dB:"
            yield table(["steps", "interval", "full", *heads], rows)


def _pairs(measured: Measured, system: System, order: int) -> list[tuple[Forecast, Forecast]]:
    """Return (taylor, reuse) of every interval that was measured."""
    pairs = []
    for interval in INTERVALS:
        reuse = Forecast(steps=STEPS, interval=interval, order=0, predictor="reuse")
        taylor = Forecast(steps=STEPS, interval=interval, order=order, predictor="taylor")
        if measured.gains(system, taylor, reuse, system.grid):
            pairs.append((taylor, reuse))
    return pairs


def _head(system: System) -> list[str]:
    head = ["interval", "full steps", "reuse, PSNR dB", "taylor, PSNR dB", "gain dB", "error, levels of 255"]
    return [*head, "SSIM", *(["changes between frames"] if system.is_video else [])]


def _row(measured: Measured, system: System, taylor: Forecast, reuse: Forecast) -> list[str]:
    """Return a row: medians with intervals; where two stand together, reuse is the first."""
    over = gain(measured.gains(system, taylor, reuse, system.grid))
    full = len(taylor.cache(system).schedule().full_steps)
    both = [measured.estimate(system, forecast) for forecast in (reuse, taylor)]
    row = [
        f"{taylor.interval}",
        f"{full} of {STEPS}, last {_last(system, taylor)}",
        *(_text(estimate) for estimate in both),
    ]
    row.append(over.text(signed=True) if over else "")
    row.append(" / ".join(f"{error_levels(estimate.value):.2f}" for estimate in both if estimate))
    row.append(_two(measured, system, (reuse, taylor), "ssim"))
    if system.is_video:
        row.append(_two(measured, system, (reuse, taylor), "temporal_difference"))
    return row


def _two(measured: Measured, system: System, forecasts: Iterable[Forecast], what: str) -> str:
    estimates = [measured.estimate(system, forecast, what) for forecast in forecasts]
    return " / ".join(estimate.text(3) for estimate in estimates if estimate)


def _distinct(system: System, forecasts: Iterable[Forecast]) -> list[Forecast]:
    """Return those whose weights differ, the first of equals."""
    found: dict[str, Forecast] = {}
    for forecast in forecasts:
        found.setdefault(forecast_digest(forecast.cache(system)), forecast)
    return list(found.values())


def _preset_note(system: System, order: int) -> str:
    return " as in its preset" if order == system.preset.order else ""


def _text(estimate: Estimate | None) -> str:
    return estimate.text() if estimate else ""


def _listed(intervals: Iterable[int]) -> str:
    return "the intervals " + ", ".join(map(str, intervals))
