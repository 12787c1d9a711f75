"""The schedule file: a cache configuration tuned for one model, what it was calibrated on, and what it gained."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from taylorseer.config import CacheConfig
from taylorseer.errors import ScheduleError

__all__ = ["FORMAT", "FORMAT_VERSION", "ScheduleFile", "load_schedule"]

FORMAT = "taylorseer schedule"
"""What the file says it is."""

FORMAT_VERSION = 1
"""Rises when an older reader would misunderstand the file."""


_FIELDS = {"model": str, "steps": int, "budget": int, "cache": Mapping, "calibration": Mapping, "measured": Mapping}


@dataclass(frozen=True, kw_only=True)
class ScheduleFile:
    """What ``taylorseer tune`` writes; the steps and the number of full steps follow from ``cache``.

    Raises :class:`ScheduleError` for a schedule that could not run.
    """

    model: str
    """The model that it was tuned for, as the bundle names it."""
    cache: CacheConfig
    """When and how to forecast."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """What it was calibrated on; for people, nothing here reads it."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """What it gained; likewise."""

    def __post_init__(self) -> None:
        """Refuse what no loop could run."""
        self.cache.schedule()

    @property
    def budget(self) -> int:
        """Number of full steps."""
        return len(self.cache.schedule().full_steps)

    def check_model(self, model: str, path: str | os.PathLike[str]) -> None:
        """Raise :class:`ScheduleError` if this, read from ``path``, was tuned for another model than ``model``."""
        if model != self.model:
            raise ScheduleError(
                f"{os.fspath(path)} was tuned for {self.model}, and this is {model}: run `taylorseer tune` on a bundle "
                f"of {model}."
            )

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that ``json.dumps`` accepts."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "steps": self.cache.steps,
            "budget": self.budget,
            "cache": self.cache.to_json(),
            "calibration": dict(self.calibration),
            "measured": dict(self.measured),
        }

    @classmethod
    def from_json(cls, mapping: object) -> Self:
        """Return what :meth:`to_json` wrote.

        Raises:
            ScheduleError: it is no schedule file, one of another format version, or its parts contradict each other.
        """
        if not isinstance(mapping, Mapping) or mapping.get("format") != FORMAT:
            raise ScheduleError(f'it has no "format": "{FORMAT}"; give a file that `taylorseer tune` wrote')
        if mapping.get("format_version") != FORMAT_VERSION:
            raise ScheduleError(
                f"it has the format version {mapping.get('format_version')!r}, this taylorseer reads {FORMAT_VERSION}; "
                "tune again, or use the version that wrote it"
            )
        texts = {
            "model": str,
            "steps": int,
            "budget": int,
            "cache": Mapping,
            "calibration": Mapping,
            "measured": Mapping,
        }
        for name, kind in texts.items():
            if not isinstance(mapping.get(name), kind) or isinstance(mapping[name], bool):
                raise ScheduleError(f"its {name!r} is {mapping.get(name)!r}; give a file that `taylorseer tune` wrote")
        read = cls(
            model=mapping["model"],
            cache=CacheConfig.from_json(mapping["cache"]),
            calibration=mapping["calibration"],
            measured=mapping["measured"],
        )
        read._check_summary(mapping["steps"], mapping["budget"])
        return read

    def _check_summary(self, steps: int, budget: int) -> None:
        if (steps, budget) != (self.cache.steps, self.budget):
            raise ScheduleError(
                f"it says {budget} of {steps} steps are full, and its cache has {self.budget} of {self.cache.steps}; "
                "tune again instead of editing one of them"
            )


def load_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """Read a schedule file; its ``cache`` is what ``Generator.generate`` and ``Session.denoise`` take.

    Raises:
        ScheduleError: the file cannot be read, or is no schedule file of this format version.
    """
    try:
        return ScheduleFile.from_json(json.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise ScheduleError(f"{os.fspath(path)} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ScheduleError(f"{os.fspath(path)} is no schedule file: it holds no JSON ({error}).") from error
    except ScheduleError as error:
        raise ScheduleError(f"{os.fspath(path)} is no schedule file to use: {str(error).rstrip('.')}.") from error
