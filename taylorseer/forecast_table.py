"""Weights given one by one, such as a calibration finds them, instead of a predictor's formula."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from taylorseer.errors import ScheduleError
from taylorseer.schedule import CacheSchedule

__all__ = ["ForecastTable"]

_FARTHEST = 0.5
"""How far from 1 the weights of a forecast step may sum: weights fitted to features may shrink them a little, but a
sum beyond this is no forecast of the same feature."""

_AGAIN = "calibrate again for this schedule, or use another predictor"


@dataclass(frozen=True, kw_only=True)
class ForecastTable:
    """The weight of each full step in each forecast step; immutable and hashable.

    Raises :class:`ScheduleError` for rows that do not ascend, a weight that is not finite or not on an earlier step,
    and a row that does not sum to 1 within 0.5; whether it fits a schedule is the question of :meth:`check`.
    """

    rows: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    """(forecast step, ((full step, weight), ...)), forecast steps and full steps strictly ascending."""

    def __post_init__(self) -> None:
        """Refuse what no schedule could use."""
        _check_ascending("forecast steps", [step for step, _ in self.rows])
        for step, row in self.rows:
            _check_ascending(f"full steps of the forecast step {step}", [full for full, _ in row])
            _check_row(step, row)

    @classmethod
    def from_weights(cls, weights: Mapping[int, Mapping[int, float]]) -> Self:
        """Return the table of forecast step -> {full step: weight}; zeros are left out."""
        rows = ((step, ((j, float(w)) for j, w in sorted(row.items()) if w)) for step, row in sorted(weights.items()))
        return cls(rows=tuple((step, tuple(row)) for step, row in rows))

    @classmethod
    def from_json(cls, mapping: object) -> Self:
        """Return the table of a mapping as :meth:`to_json` writes it; :class:`ScheduleError` if it is none."""
        wanted = 'write {"3": {"1": -1.0, "2": 2.0}, ...}'
        if not isinstance(mapping, Mapping) or not all(isinstance(row, Mapping) for row in mapping.values()):
            raise ScheduleError(f"A table is an object of a row for each forecast step; {wanted}.")
        try:
            return cls.from_weights(
                {int(step): {int(j): _number(w) for j, w in row.items()} for step, row in mapping.items()}
            )
        except (TypeError, ValueError) as error:
            raise ScheduleError(f"A table holds steps and weights, and {error}; {wanted}.") from error

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return a plain dict that ``json.dumps`` accepts, whose keys are strings."""
        return {str(step): {str(j): w for j, w in row} for step, row in self.rows}

    def weights(self) -> dict[int, dict[int, float]]:
        """Return forecast step -> {full step: weight}, as :func:`taylorseer.predictor.forecast_weights` does."""
        return {step: dict(row) for step, row in self.rows}

    def check(self, schedule: CacheSchedule, *, order: int) -> None:
        """Raise :class:`ScheduleError` if this is no table of ``schedule`` that remembers ``order + 1`` full steps."""
        forecast = tuple(step for step, _ in self.rows)
        if forecast != schedule.forecast_steps:
            step = min(set(forecast) ^ set(schedule.forecast_steps))
            held = "a row" if step in forecast else "no row"
            raise ScheduleError(
                f"The table has {held} for step {step}, which is {'full' if held == 'a row' else 'forecast'} in a "
                f"schedule of {schedule.steps} steps with the full steps {_listed(schedule.full_steps)}; {_AGAIN}."
            )
        for step, row in self.rows:
            remembered = [j for j in schedule.full_steps if j < step][-(order + 1) :]
            if outside := [j for j, _ in row if j not in remembered]:
                raise ScheduleError(
                    f"The table forecasts step {step} from step {outside[0]}, and order {order} remembers the full "
                    f"steps {_listed(remembered)} there; use a higher order, or {_AGAIN}."
                )


def _check_row(step: int, row: tuple[tuple[int, float], ...]) -> None:
    if late := [j for j, _ in row if not 0 <= j < step]:
        raise ScheduleError(f"The table forecasts step {step} from step {late[0]}; use full steps before it.")
    if wrong := [w for _, w in row if not math.isfinite(w)]:
        raise ScheduleError(f"The table has the weight {wrong[0]} at step {step}; give finite numbers.")
    total = math.fsum(w for _, w in row)
    if abs(total - 1) > _FARTHEST:
        raise ScheduleError(
            f"The weights of step {step} sum to {total:.4g}, and a forecast of the same feature sums to about 1 "
            f"({1 - _FARTHEST} to {1 + _FARTHEST}); calibrate again."
        )


def _check_ascending(what: str, steps: list[int]) -> None:
    if any(step >= later for step, later in itertools.pairwise(steps)):
        raise ScheduleError(f"In the table the {what} do not ascend: {_listed(steps)}; sort them, each once.")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _listed(steps: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, steps))
