"""What a user chooses about forecasting, as one immutable record, and the published presets."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from taylorseer.errors import ScheduleError
from taylorseer.predictor import check_predictor, forecast_weights
from taylorseer.schedule import CacheSchedule, check_rule, interval_schedule, mask_schedule, modulo_schedule

__all__ = ["PRESETS", "CacheConfig", "Rule"]

Rule = Literal["interval", "modulo"]
"""How the interval counts: from the last full step, or from a fixed step after the warm-up (diffusers)."""


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
    """O: the highest derivative, or the degree for newton; 0 reuses the last feature.  Each costs memory."""

    warmup_steps: int = 3
    """W: this many first steps are full; 1 or more."""

    cooldown_steps: int = 0
    """This many last steps are full."""

    predictor: str = "taylor"
    """``taylor`` (the paper's), ``reuse`` (the last feature unchanged) or ``newton`` (interpolation)."""

    full_steps: tuple[int, ...] | None = None
    """The full steps one by one; rule, interval and warm-up then have no effect.  None: follow the rule."""

    rule: Rule = "interval"
    """``interval`` counts from the last full step (official), ``modulo`` from a fixed step (diffusers)."""

    derivatives_from: int = 0
    """First step at which derivatives beyond D_0 may be built; 0 builds each as soon as its inputs exist."""

    def __post_init__(self) -> None:
        """Refuse a field that could not be right in any loop."""
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        check_rule(self.interval, self.warmup_steps, self.cooldown_steps)
        check_predictor(self.predictor, self.order)
        if self.rule not in get_args(Rule):
            raise ScheduleError(_unknown("rule", self.rule, get_args(Rule)))
        if self.full_steps is not None and self.cooldown_steps:
            raise ScheduleError(
                f"full_steps already names every full step, so cooldown_steps={self.cooldown_steps} would "
                "have no effect; add the last steps to full_steps, or leave one of the two out."
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
        return cls(**values)

    def to_json(self) -> dict[str, object]:
        """Return the fields as a plain dict that ``json.dumps`` accepts; ``full_steps`` becomes a list."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def schedule(self) -> CacheSchedule:
        """Return the cache schedule; :class:`ScheduleError` if it could not run or would forecast nothing."""
        if self.full_steps is not None:
            return mask_schedule(self.steps, self.full_steps, self.derivatives_from)
        build = modulo_schedule if self.rule == "modulo" else interval_schedule
        return build(self.steps, self.interval, self.warmup_steps, self.cooldown_steps, self.derivatives_from)

    def weights(self) -> dict[int, dict[int, float]]:
        """Return forecast step -> {full step: float64 weight}; raises what :meth:`schedule` raises."""
        return forecast_weights(self.schedule(), order=self.order, predictor=self.predictor)


def _check_type(name: str, value: object) -> None:
    if name in ("predictor", "rule"):
        fits, wanted = isinstance(value, str), "a string"
    elif name == "full_steps":
        fits = value is None or (isinstance(value, tuple) and all(type(step) is int for step in value))
        wanted = "integers, such as 0, 1, 2, 8, or None"
    else:
        # By type, not isinstance: a bool is an int in Python, but an order of True is a mistake.
        fits, wanted = type(value) is int, "an integer"
    if not fits:
        raise ScheduleError(f"{name} is {value!r} of type {type(value).__name__}; give {wanted}.")


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
