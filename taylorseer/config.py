"""What a user chooses about forecasting, as one immutable record, and the published presets."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from taylorseer.errors import ScheduleError
from taylorseer.extrapolation import CONTRACTION, DECAY
from taylorseer.forecast_table import ForecastTable
from taylorseer.guard import LARGEST_SUM, Guard, check_spread, spread_warmup
from taylorseer.predictor import (
    PREDICTORS,
    check_predictor,
    derivative_coefficients,
    forecast_weights,
    refuse_derivatives,
)
from taylorseer.schedule import CacheSchedule, check_rule, interval_schedule, mask_schedule, modulo_schedule

__all__ = ["PRESETS", "CacheConfig", "Rule"]

Rule = Literal["interval", "modulo"]
"""How the interval counts: from the last full step, or from a fixed step after the warm-up (diffusers)."""

_TABLE = "table"
"""The predictor whose weights a config brings along."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """When and how to forecast; the strings under the fields are the manual.

    Raises :class:`ScheduleError` for a value of the wrong type or out of range; whether the values fit
    together is the question of :meth:`schedule`.
    """

    steps: int = 50
    """Number of denoising steps; 9 or more."""

    interval: int = 6
    """N: one step of every N is full after the warm-up; 2 or more."""

    order: int = 1
    """O: the highest derivative, and one less than the full steps that a forecast is made of; 0 reuses the last
    feature.  It is the degree for newton; least-squares fits one degree lower, but a line at least.  Each costs memory.
    """

    warmup_steps: int = 3
    """W: this many first steps are full; 1 or more."""

    cooldown_steps: int = 0
    """This many last steps are full."""

    predictor: str = "taylor"
    """``taylor`` (the paper's), ``reuse`` (the last feature unchanged), ``newton`` (interpolation), ``least-squares``
    (a lower degree through the same full steps), ``hermite`` (HiCache's), ``exponential`` (changes that die out) or
    ``table`` (the weights of the field ``table``)."""

    full_steps: tuple[int, ...] | None = None
    """The full steps one by one; rule, interval and warm-up then have no effect.  None: follow the rule."""

    rule: Rule = "interval"
    """``interval`` counts from the last full step (official), ``modulo`` from a fixed step (diffusers)."""

    derivatives_from: int = 0
    """First step at which derivatives beyond D_0 may be built; 0 builds each as soon as its inputs exist."""

    guard: Guard = "none"
    """What keeps the sum of |weights| at 3 or below, where the first window after the warm-up goes up to 2 N - 1:
    ``none`` nothing (official), ``lower-order`` a lower order at the forecast steps that would exceed it,
    ``spread-warmup`` the first full steps spread apart, as many as before."""

    contraction: float = CONTRACTION
    """Of hermite alone: above 0, below 1.  The less, the less a forecast moves from the last feature."""

    decay: float = DECAY
    """Of exponential alone: how large a change is beside that of the step before; above 0, below 1."""

    table: ForecastTable | None = None
    """Of the predictor ``table`` alone: the weights of every forecast step of this schedule."""

    def __post_init__(self) -> None:
        """Refuse a field that could not be right in any loop."""
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        check_rule(self.interval, self.warmup_steps, self.cooldown_steps)
        check_predictor(self.predictor, self.order, known=(*PREDICTORS, _TABLE))
        for kind, name, known in (("rule", self.rule, get_args(Rule)), ("guard", self.guard, get_args(Guard))):
            if name not in known:
                raise ScheduleError(_unknown(kind, name, known))
        _check_share("contraction", self.contraction)
        _check_share("decay", self.decay)
        if self.full_steps is not None and self.cooldown_steps:
            raise ScheduleError(
                f"full_steps already names every full step, so cooldown_steps={self.cooldown_steps} would "
                "have no effect; add the last steps to full_steps, or leave one of the two out."
            )
        self._check_guard()
        if self.predictor == _TABLE and self.table is None:
            raise ScheduleError("The predictor 'table' needs a table of weights; give one, or another predictor.")

    def _check_guard(self) -> None:
        """Refuse a guard that would change what is given one by one."""
        if self.full_steps is not None and self.guard == "spread-warmup":
            raise ScheduleError(
                "full_steps already names every full step, and the guard 'spread-warmup' would move them; name steps "
                "that lie apart, or use the guard 'lower-order' or 'none'."
            )
        if self.predictor == _TABLE and self.guard == "lower-order":
            raise ScheduleError(
                "The predictor 'table' gives every weight itself, and the guard 'lower-order' would change some; use "
                "the guard 'none'."
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """Return the preset ``name`` with fields replaced; overrides that are None are ignored.

        Raises :class:`ScheduleError` for an unknown preset, an unknown field and a value that is no good
        there.
        """
        if name not in PRESETS:
            raise ScheduleError(_unknown("preset", name, PRESETS))
        given = {key: value for key, value in overrides.items() if value is not None}
        return cls.from_json({**PRESETS[name].to_json(), **given})

    @classmethod
    def from_json(cls, mapping: Mapping[str, object]) -> Self:
        """Return the config of a mapping as :meth:`to_json` writes it; fields left out keep their default.

        Raises :class:`ScheduleError` for a key that is no field and for a value of the wrong type or range.
        """
        if not isinstance(mapping, Mapping):
            raise ScheduleError(f"A cache config is an object of fields, but this is {mapping!r}; write {{...}}.")
        values: dict[str, Any] = dict(mapping)
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ScheduleError(_unknown("cache config field", key, known))
        if isinstance(values.get("full_steps"), list):  # JSON has no tuples
            values["full_steps"] = tuple(values["full_steps"])
        if isinstance(values.get("table"), Mapping):
            values["table"] = ForecastTable.from_json(values["table"])
        return cls(**values)

    def to_json(self) -> dict[str, object]:
        """Return the fields as a plain dict that ``json.dumps`` accepts: ``full_steps`` a list, ``table`` a dict."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["table"] = self.table and self.table.to_json()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def schedule(self) -> CacheSchedule:
        """Return the cache schedule.

        Raises:
            ScheduleError: it could not run or would forecast nothing, the table is of another schedule, or the guard
                ``spread-warmup`` does not keep the weights small, as from order 2 on for most predictors.
        """
        if self.full_steps is not None:
            schedule = mask_schedule(self.steps, self.full_steps, self.derivatives_from)
        else:
            build = modulo_schedule if self.rule == "modulo" else interval_schedule
            schedule = build(self.steps, self.interval, self.warmup_steps, self.cooldown_steps, self.derivatives_from)
        if self.guard == "spread-warmup":
            schedule = spread_warmup(schedule)
            if self.predictor != _TABLE:  # whose weights are its own
                check_spread(
                    schedule, forecast_weights(schedule, **self._forecast()), f"{self.predictor} at order {self.order}"
                )
        if self.predictor == _TABLE and self.table is not None:
            self.table.check(schedule, order=self.order)
        return schedule

    def weights(self) -> dict[int, dict[int, float]]:
        """Return forecast step -> {full step: float64 weight}; raises what :meth:`schedule` raises."""
        schedule = self.schedule()
        if self.predictor == _TABLE and self.table is not None:
            return self.table.weights()
        return forecast_weights(schedule, **self._forecast())

    def coefficients(self) -> dict[int, npt.NDArray[np.float64]]:
        """Return forecast step -> float64 array [order + 1], the coefficient of each derivative.

        Raises:
            ScheduleError: as :meth:`schedule`, and a predictor that weighs features.
        """
        if self.predictor == _TABLE:
            refuse_derivatives(self.predictor)
        return derivative_coefficients(self.schedule(), **self._forecast())

    def _forecast(self) -> dict[str, Any]:
        """How to forecast, for a predictor that is a formula."""
        return {
            "order": self.order,
            "predictor": self.predictor,
            "contraction": self.contraction,
            "decay": self.decay,
            "largest_sum": LARGEST_SUM if self.guard == "lower-order" else math.inf,
        }


def _check_type(name: str, value: object) -> None:
    if name in ("predictor", "rule", "guard"):
        fits, wanted = isinstance(value, str), "a string"
    elif name in ("contraction", "decay"):
        fits, wanted = isinstance(value, float), "a number, such as 0.5"
    elif name == "table":
        fits, wanted = value is None or isinstance(value, ForecastTable), "a ForecastTable, or None"
    elif name == "full_steps":
        fits = value is None or (isinstance(value, tuple) and all(type(step) is int for step in value))
        wanted = "integers, such as 0, 1, 2, 8, or None"
    else:
        # By type, not isinstance: a bool is an int in Python, but an order of True is a mistake.
        fits, wanted = type(value) is int, "an integer"
    if not fits:
        raise ScheduleError(f"{name} is {value!r} of type {type(value).__name__}; give {wanted}.")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:  # NaN too
        raise ScheduleError(f"{name} is {value}; give a number above 0 and below 1.")


def _unknown(kind: str, name: object, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no {kind} {name!r}.{meant} Known: {', '.join(names)}."


PRESETS: Mapping[str, CacheConfig] = MappingProxyType(
    {
        "flux": CacheConfig(interval=6, order=1, warmup_steps=3, derivatives_from=2),
        "hunyuan-video": CacheConfig(interval=5, order=1, warmup_steps=1),
        "dit": CacheConfig(interval=4, order=4, warmup_steps=2, derivatives_from=1),
        "wan": CacheConfig(interval=5, order=1, warmup_steps=1),
        "hidream": CacheConfig(interval=4, order=2, warmup_steps=1),
        "diffusers": CacheConfig(interval=5, order=1, warmup_steps=3, rule="modulo", derivatives_from=1),
    }
)
"""The published settings for 50 steps: the authors' code by model, and the defaults of diffusers."""
