"""The parts of the page on distributions, on speed and on what ``tune`` finds."""

import statistics
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from taylorseer.config import CacheConfig
from tools.quality_metrics import bootstrap_interval
from tools.quality_results import Record
from tools.quality_systems import System
from tools.quality_tables import table

__all__ = ["distribution", "largest", "speed", "speed_machine", "speedups", "tuning"]

_FEWEST_ROUNDS = 3
"""Below this a bootstrap over rounds says nothing."""


def largest(
    records: Iterable[Record], of: Callable[[Record], Hashable], size: Callable[[Record], int]
) -> dict[Hashable, Record]:
    """Return the record of the largest size for each thing that they are of, the later one of equals.

    The quick form leaves smaller ones of the same thing.
    """
    found: dict[Hashable, Record] = {}
    for record in records:
        if of(record) not in found or size(record) >= size(found[of(record)]):
            found[of(record)] = record
    return found


def distribution(records: Iterable[Record], systems: Sequence[System]) -> Iterator[str]:
    """Yield the distances to the real emoji and to every step full, and the share of right categories."""
    found = largest(records, lambda record: record["model"], lambda record: int(record["samples"]))
    rows: list[list[str]] = []
    words: list[str] = []
    for system in systems:
        record = found.get(system.model)
        if record is None:
            continue
        count = f"{record['samples']} clips" if system.is_video else f"{record['samples']} images"
        for row in record["rows"]:
            rows.append(
                [
                    f"{system.title}, {count}" if row is record["rows"][0] else "",
                    row["name"],
                    f"{row['full_steps']} of {record['steps']}",
                    _span(row["to_real"], row["to_real_interval"], 2),
                    "" if row["to_full"] is None else _span(row["to_full"], row["to_full_interval"], 3),
                    _span(100 * row["accuracy"], [100 * end for end in row["accuracy_interval"]], 1),
                ]
            )
        words += _closer(system, record)
    if rows:
        head = [
            "system",
            "forecasts",
            "full steps",
            "distance to real emoji",
            "to every step full",
            "right category, %",
        ]
        yield table(head, rows)
        yield " ".join(words)


def _closer(system: System, record: Record) -> Iterator[str]:
    """Yield which of the two is closer to every step full, and whether their intervals are apart."""
    ways = {row["name"]: row for row in record["rows"]}
    if not {"taylor", "reuse"} <= ways.keys():
        return
    near, far = sorted((ways["taylor"], ways["reuse"]), key=lambda row: float(row["to_full"]))
    apart = near["to_full_interval"][1] < far["to_full_interval"][0]
    times = far["to_full"] / near["to_full"] if near["to_full"] else float("inf")
    yield (
        f"{system.title}: the samples of {near['name']} are {times:.1f} times as close to every step full as those of "
        f"{far['name']}{'' if apart else ', though the intervals overlap'}."
    )


def speed(records: Sequence[Record], systems: Sequence[System]) -> Iterator[str]:
    """Yield the measured speed-ups beside their ideal, the preset's first."""
    rows: list[list[str]] = []
    words: list[str] = []
    for system in systems:
        timed = [record for record in records if record["model"] == system.model]
        preset = (system.preset.interval, system.preset.order)
        timed.sort(
            key=lambda record: ((record["interval"], record["order"]) != preset, record["order"], record["interval"])
        )
        for record in timed:
            is_preset = (record["interval"], record["order"]) == preset
            rows.append(_speed_row(system, record, is_preset=is_preset))
            if is_preset:
                words.append(_speed_word(system, record))
    if rows:
        yield table(
            [
                "system", "interval", "order", "full steps", "request ms, every step full", "forecasting",
                "forecast / full step", "speed-up", "eta", "eta beside history", "PSNR dB",
            ],
            rows,
        )  # fmt: skip
        yield " ".join(words)


def _speed_row(system: System, record: Record, *, is_preset: bool) -> list[str]:
    rounds = record["rounds"]
    speedup, eta, history = speedups(record)
    each: Callable[[str], float] = lambda name: statistics.median(round_[name] for round_ in rounds)  # noqa: E731
    return [
        f"{system.title}{', preset' if is_preset else ''}",
        str(record["interval"]),
        str(record["order"]),
        f"{record['full_steps']} of {record['steps']}",
        f"{each('full_ms'):.0f}",
        f"{each('forecast_ms'):.0f}",
        f"{each('forecast_step_ms') / each('full_step_ms'):.1%}",
        f"{speedup:.2f}x of {record['steps'] / record['full_steps']:.2f}x",
        _with_ends([_eta(record, round_, "full_ms") for round_ in rounds], eta),
        f"{history:.3f}",
        f"{each('psnr_db'):.1f}",
    ]


def _speed_word(system: System, record: Record) -> str:
    eta = speedups(record)[1]
    return f"{system.title}'s preset: eta {eta:.2f}, {'at or above' if eta >= 0.9 else 'below'} 0.90."


def speedups(record: Record) -> tuple[float, float, float]:
    """Return speed-up, eta, and eta beside the bundle that folds nothing: medians over rounds."""
    rounds = record["rounds"]
    speedup = statistics.median(round_["full_ms"] / round_["forecast_ms"] for round_ in rounds)
    eta, history = (statistics.median(_eta(record, r, name) for r in rounds) for name in ("full_ms", "history_ms"))
    return speedup, eta, history


def speed_machine(records: Sequence[Record]) -> str:
    """Return what the times were taken on; several machines are all named."""
    machines = [record["machine"] for record in records]
    named = dict.fromkeys(
        f"{each['processor']}, {each['cores']} cores, ONNX Runtime {each['onnxruntime']}" for each in machines
    )
    loads = [each["load"] for each in machines]
    return f"{'; '.join(named)}; load average {min(loads)} to {max(loads)} when a measurement ended" if machines else ""


def tuning(records: Iterable[Record], systems: Sequence[System]) -> Iterator[str]:
    """Yield what ``tune`` gained on held-out requests."""
    found = largest(records, lambda record: record["model"], lambda record: int(record["pairs"]))
    rows: list[list[str]] = []
    words: list[str] = []
    for system in systems:
        record = found.get(system.model)
        if record is None:
            continue
        preset = CacheConfig.from_json(record["preset"])
        best = CacheConfig.from_json(record["best"])
        low, high = record["interval_db"]
        rows.append(
            [
                system.title,
                f"interval {preset.interval}, order {preset.order}, warm-up {preset.warmup_steps}",
                record["chosen"],
                " ".join(map(str, best.schedule().full_steps)),
                f"{record['preset_db']:.2f}",
                f"{record['tuned_db']:.2f}",
                f"{record['gain_db']:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{record['improved']:.0%} of {record['pairs']}",
            ]
        )
        words.append(_tune_word(system, record))
    if rows:
        yield table(
            [
                "system",
                "preset at this budget",
                "found",
                "full steps",
                "preset, PSNR dB",
                "tuned",
                "gain dB",
                "improved",
            ],
            rows,
        )
        yield " ".join(words)


def _tune_word(system: System, record: Record) -> str:
    low = record["interval_db"][0]
    sure = "" if low > 0 else ", though the 95 % interval includes 0"
    verdict = f"beats the preset{sure}" if record["gain_db"] > 0 else "does not beat the preset"
    return f"{system.title}: the tuned schedule {verdict}."


def _eta(record: Record, round_: Record, baseline: str) -> float:
    return float(round_[baseline] / round_["forecast_ms"] * record["full_steps"] / record["steps"])


def _with_ends(values: list[float], median: float) -> str:
    if len(values) < _FEWEST_ROUNDS:
        return f"{median:.3f}"
    low, high = bootstrap_interval(values, statistics.median, rounds=500)
    return _span(median, (low, high), 3)


def _span(value: float, ends: Iterable[float], digits: int) -> str:
    low, high = ends
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
