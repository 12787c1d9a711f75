"""Contact sheets: a row for each way to forecast; clips take a row of frames for each."""

import numpy as np
import pytest

from tools.quality_plan import QUICK
from tools.quality_sheets import draw_sheet, sheet_cost
from tools.quality_systems import SYSTEMS
from tools.quality_tune import BUDGET, tune_cost

TITLES = ["every step full", "taylor", "reuse"]


def test_images_have_a_column_for_each_prompt() -> None:
    shades = [[np.full((8, 8, 3), 60 * way + 20 * column, np.uint8) for column in range(2)] for way in range(3)]
    sheet = np.asarray(draw_sheet(shades, TITLES, ["red heart", "rocket"]))
    for way, row in enumerate(shades):
        for column, image in enumerate(row):
            found = np.argwhere((sheet == image[0, 0]).all(-1))
            assert len(found) >= 24 * 24, (way, column)


def test_clips_have_a_row_for_each_way_and_prompt() -> None:
    made = [[np.zeros((4, 8, 8, 3), np.uint8) for _ in range(2)] for _ in range(3)]
    sheet = np.asarray(draw_sheet(made, TITLES, ["red heart growing", "rocket moving up"]))
    assert (sheet == 0).all(-1).sum() == 4 * 24 * 24 * 6  # titles are dark gray


@pytest.mark.parametrize("model", SYSTEMS)
def test_costs_follow_the_steps(model: str) -> None:
    system = SYSTEMS[model]
    shown = min(4 if system.is_video else 8, len(system.grid))
    full = len(system.preset.schedule().full_steps)
    assert sheet_cost(system) == pytest.approx(shown * (50 + 2 * full) * system.step_ms / 1e3)
    assert tune_cost(system, QUICK) >= (2 * 50 + 3 * (50 + 2 * BUDGET)) * system.step_ms / 1e3
