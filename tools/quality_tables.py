"""The study's numbers: what was measured of a way to forecast, as medians with 95 % intervals over requests."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tools.quality_grid import Forecast, forecast_digest
from tools.quality_metrics import bootstrap_interval
from tools.quality_results import Record
from tools.quality_systems import Request, System

__all__ = ["Estimate", "Measured", "error_levels", "gain", "growth", "table"]

Floats = NDArray[np.float64]

_ROUNDS = 1000
"""Of the bootstrap: the ends of an interval then vary by some hundredths of its width."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Requests behind it."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Return the median of ``values``; of a single one there is no interval, and its ends are infinite."""
        if len(values) < 2:
            return cls(values[0], -np.inf, np.inf, 1)
        low, high = bootstrap_interval(values, np.median, rounds=_ROUNDS)
        return cls(float(np.median(values)), low, high, len(values))

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0

    def text(self, digits: int = 1, *, signed: bool = False) -> str:
        """Return it for a table: value [low, high]."""
        form = f"{'+' if signed else ''}.{digits}f"
        if self.count < 2:
            return f"{self.value:{form}} [one request]"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


class Measured:
    """The fidelity records, found by system and way to forecast."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Sort ``records``, of which others than of fidelity are left out."""
        self._found: dict[tuple[str, str], dict[Request, Record]] = defaultdict(dict)
        for record in records:
            if record["kind"] == "fidelity":
                self._found[record["model"], record["forecast"]][record["prompt"], record["seed"]] = record

    def values(
        self, system: System, forecast: Forecast, what: str, requests: Sequence[Request]
    ) -> dict[Request, float]:
        """Return what was measured of each request, of those of ``requests`` that were.

        Args:
            system: of the model.
            forecast: the way to forecast.
            what: ``psnr_db``, ``ssim``, ``temporal_difference``, or ``error``, the root mean square error in levels.
            requests: whose results are wanted.
        """
        found = self._found.get((system.model, forecast_digest(forecast.cache(system))), {})
        return {request: _number(found[request], what) for request in requests if request in found}

    def median(self, system: System, forecast: Forecast, what: str = "psnr_db") -> float | None:
        """Return the median over the grid's requests, None where there are none."""
        values = self.values(system, forecast, what, system.grid)
        return float(np.median(list(values.values()))) if values else None

    def estimate(self, system: System, forecast: Forecast, what: str = "psnr_db") -> Estimate | None:
        """Return the median over the grid's requests with its interval, None where there are none."""
        values = self.values(system, forecast, what, system.grid)
        return Estimate.of(list(values.values())) if values else None

    def requests(self, system: System) -> int:
        """Return the number of the grid's requests that anything was measured of."""
        seen = {request for (model, _), found in self._found.items() if model == system.model for request in found}
        return len(seen & set(system.grid))

    def gains(
        self, system: System, ours: Forecast, theirs: Forecast, requests: Sequence[Request], what: str = "psnr_db"
    ) -> dict[Request, float]:
        """Return ours minus theirs for every request that has both."""
        first, second = (self.values(system, forecast, what, requests) for forecast in (ours, theirs))
        return {request: first[request] - second[request] for request in first if request in second}


def gain(differences: Mapping[Request, float]) -> Estimate | None:
    """Return the median of paired differences, None of none."""
    return Estimate.of(list(differences.values())) if differences else None


def growth(early: Mapping[Request, float], late: Mapping[Request, float]) -> Estimate | None:
    """Return the median over requests of ``late`` minus ``early``, None where no request has both."""
    return gain({request: late[request] - early[request] for request in early if request in late})


def _number(record: Record, what: str) -> float:
    return error_levels(record["psnr_db"]) if what == "error" else float(record[what])


def error_levels(psnr_db: float) -> float:
    """Return the root mean square error, in levels of 0 to 255, that a PSNR says."""
    return float(255.0 * 10.0 ** (-psnr_db / 20.0))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(_lines([list(head), ["---"] * len(head), *(list(row) for row in rows)]))


def _lines(rows: list[list[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |"
