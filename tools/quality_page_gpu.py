"""The part of the page on a GPU: what `tools.benchmark_gpu` measured there, as its file says."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from tools.quality_systems import System
from tools.quality_tables import table

__all__ = ["GPU_FILE", "gpu_speed"]

GPU_FILE = "gpu.json"
"""What ``python -m tools.benchmark_gpu`` writes as benchmark.json, put beside the page; without it the page has no such
part."""


def gpu_speed(folder: pathlib.Path, systems: Sequence[System]) -> Iterator[str]:
    """Yield the speed-ups of the demo models on a GPU, those that were measured, by CUDA events of whole loops."""
    path = folder / GPU_FILE
    rows = json.loads(path.read_text("utf-8")) if path.exists() else []
    measured: dict[str, dict[str, Any]] = {row["model"]: row for row in rows}
    found = [(system, measured[system.model]) for system in systems if system.model in measured]
    if found:
        devices = "; ".join(dict.fromkeys(f"{row['device']}, {row['engine']}" for _, row in found))
        yield f"The same models on a GPU ({devices}), by `python -m tools.benchmark_gpu`:"
        head = ["system", "state", "precision", "full step ms", "forecast step ms", "speed-up", "eta"]
        yield table(head, [_row(system, row) for system, row in found])


def _row(system: System, row: dict[str, Any]) -> list[str]:
    loop, speedup, eta = row["forecasting"], row["speedup"], row["eta"]
    return [
        f"{system.title}, preset",
        row["state"],
        row["precision"],
        f"{loop['full_ms']:.3f}",
        f"{loop['forecast_ms']:.3f}",
        f"{speedup:.2f}x of {speedup / eta:.2f}x",
        f"{eta:.3f}",
    ]
