"""The part of the page on the first window after the warm-up: how far it amplifies, and what guards do about it."""

from collections.abc import Iterator, Sequence

from taylorseer.guard import LARGEST_SUM
from tools.quality_grid import GUARD_INTERVALS, GUARD_WARMUP, Forecast, guard_grid, weight_sum
from tools.quality_systems import System
from tools.quality_tables import Measured, gain, table

__all__ = ["amplification", "guard_effects"]


def amplification(system: System) -> Iterator[str]:
    """Yield the largest sums of |weights| under each guard, which follow from the schedules alone."""
    rows = []
    for forecast in guard_grid(GUARD_INTERVALS):
        cache = forecast.cache(system)
        step, largest = weight_sum(cache)
        full = cache.schedule().full_steps
        rows.append(
            [
                str(forecast.interval),
                str(forecast.order),
                forecast.guard,
                f"{largest:.2f} (step {step})",
                f"{2 * forecast.interval - 1}" if forecast.guard == "none" and forecast.order == 1 else "",
                f"{len(full)}",
                " ".join(map(str, full[:5])) + " ...",
            ]
        )
    head = ["interval", "order", "guard", "largest sum of weights", "2 N - 1", "full steps", "the first of them"]
    yield table(head, rows)
    largest = max(weight_sum(f.cache(system))[1] for f in guard_grid(GUARD_INTERVALS) if f.guard != "none")
    kept = "keep" if largest <= LARGEST_SUM * (1 + 1e-9) else "do not keep"
    yield f"The guards {kept} every sum at {LARGEST_SUM:g} or below, with as many full steps as without."


def guard_effects(measured: Measured, systems: Sequence[System]) -> Iterator[str]:
    """Yield what each guard does to the PSNR at the same number of full steps, and say it in words."""
    rows: list[list[str]] = []
    words: list[str] = []
    for system in systems:
        for forecast in guard_grid(GUARD_INTERVALS):
            if forecast.guard == "none":
                bare = forecast
                continue
            row, word = _effect(measured, system, forecast, bare)
            if row:
                rows.append(row)
                words.append(word)
    if rows:
        head = ["system", "interval", "order", "guard", "requests", "no guard, PSNR dB", "gain dB", "better on"]
        yield table(head, rows)
        counts = ", ".join(f"{words.count(word)} {word}" for word in ("better", "worse", "not told apart"))
        yield f"Of {len(words)} comparisons with {GUARD_WARMUP} warm-up steps, by the 95 % interval: {counts}."


def _effect(measured: Measured, system: System, guarded: Forecast, bare: Forecast) -> tuple[list[str], str]:
    """Return a row and one word of it; nothing where it was not measured."""
    gains = measured.gains(system, guarded, bare, system.guard)
    over = gain(gains)
    if over is None:
        return [], ""
    alone = gain(measured.values(system, bare, "psnr_db", system.guard))
    word = "better" if over.is_positive else "worse" if over.is_negative else "not told apart"
    improved = sum(value > 0 for value in gains.values()) / len(gains)
    row = [system.title, str(guarded.interval), str(guarded.order), guarded.guard, str(over.count)]
    return [*row, alone.text() if alone else "", over.text(2, signed=True), f"{improved:.0%}"], word
