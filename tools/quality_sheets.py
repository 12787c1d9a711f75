"""Contact sheets: requests of the study as pictures, every step full and with forecasts.

    python -m tools.quality_study --only sheets

Rows of images are ways to forecast and columns are prompts.  A clip takes a row of frames for each way.
"""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from taylorseer.config import CacheConfig
from taylorseer.runtime.generation import Generator
from taylorseer.runtime.pictures import Picture, contact_sheet, save_png
from tools.quality_plan import Setting
from tools.quality_systems import Request, System
from tools.quality_workers import Progress

__all__ = ["draw_sheet", "make_sheet", "sheet_cost", "sheet_path"]

_IMAGES, _CLIPS = 8, 4
"""Requests on a sheet."""

_COLORS = 256
"""A palette: the pictures of a page should not weigh more than its words."""


def sheet_path(pictures: pathlib.Path, system: System) -> pathlib.Path:
    """Return where the sheet of a system is written."""
    return pictures / f"quality-{system.model}.png"


def sheet_cost(system: System) -> float:
    """Return about how many seconds it takes."""
    full = len(system.preset.schedule().full_steps)
    return len(_shown(system)) * (system.preset.steps + 2 * full) * system.step_ms / 1e3


def make_sheet(setting: Setting, progress: Progress) -> None:
    """Make the pictures of a system on the bundle that its preset builds, and write the sheet."""
    system = setting.system
    rows = _ways(system)
    with Generator(setting.folded, threads=setting.threads) as generator:
        made = [
            [_generated(generator, request, cache, full=full) for request in _shown(system)] for _, cache, full in rows
        ]
    prompts = [prompt for prompt, _ in _shown(system)]
    sheet = draw_sheet(made, [title for title, _, _ in rows], prompts)
    save_png(sheet.quantize(_COLORS), sheet_path(setting.pictures, system))
    progress.advance(sheet_cost(system), f"{system.model}, sheet")


def draw_sheet(made: list[list[Picture]], titles: list[str], prompts: list[str]) -> Image.Image:
    """Return the sheet of ``made``: a list of images [H, W, 3] or clips [F, H, W, 3] for each way to forecast."""
    if made[0][0].ndim == 3:
        return contact_sheet(made, row_titles=titles, column_titles=prompts, scale=3)
    rows = [list(row[number]) for number in range(len(prompts)) for row in made]
    along = [f"{prompt}\n{titles[0]}" if way == 0 else titles[way] for prompt in prompts for way in range(len(titles))]
    frames = [f"frame {number}" for number in range(len(made[0][0]))]
    return contact_sheet(rows, row_titles=along, column_titles=frames, scale=3)


def _ways(system: System) -> list[tuple[str, CacheConfig, bool]]:
    """Return title, schedule and whether every step is full: the preset, and reuse on the preset's full steps."""
    preset = system.preset
    share = f"{len(preset.schedule().full_steps)} of {preset.steps} full"
    return [
        ("every step full", preset, True),
        (f"{preset.predictor}, order {preset.order}\n{share}", preset, False),
        (f"reuse\n{share}", dataclasses.replace(preset, predictor="reuse"), False),
    ]


def _shown(system: System) -> tuple[Request, ...]:
    return system.grid[: _CLIPS if system.is_video else _IMAGES]


def _generated(generator: Generator, request: Request, cache: CacheConfig, *, full: bool) -> Picture:
    prompt, seed = request
    image = generator.generate(prompt, seed=seed, cache=cache, every_step_full=full).image
    return np.asarray(image, np.uint8)
