"""The timeline: a picture with both colors at their places, the same numbers as JSON, and every refusal."""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from taylorseer.errors import DependencyError, InputError, OutputError
from taylorseer.runtime.timeline import draw_timeline

BLUE, ORANGE = (0, 114, 178), (230, 159, 0)

SECONDS = [0.2, 0.2, 0.002, 0.002, 0.2, 0.003]
FULL = [True, True, False, False, True, False]


def drawn(folder: pathlib.Path, seconds: Any = SECONDS, full: Any = FULL) -> NDArray[np.uint8]:
    path = folder / "timeline.png"
    draw_timeline(seconds, full, path, "a title")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def share(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> float:
    return float((picture == color).all(axis=-1).mean())


def test_the_numbers_beside_the_picture(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new folder" / "timeline.png"
    numbers = draw_timeline(np.array(SECONDS), np.array(FULL), path, "a title")
    values = json.loads(numbers.read_text("utf-8"))
    assert numbers == path.with_suffix(".json") and path.is_file()
    assert values["title"] == "a title"
    assert values["loop_ms"] == pytest.approx(607)
    assert values["full_ms"] == pytest.approx(200) and values["forecast_ms"] == pytest.approx(2)
    assert [step["kind"] for step in values["steps"]] == ["full", "full", "forecast", "forecast", "full", "forecast"]
    assert [step["ms"] for step in values["steps"]] == pytest.approx([200, 200, 2, 2, 200, 3])
    assert [step["start_ms"] for step in values["steps"]] == pytest.approx([0, 200, 400, 402, 404, 604])
    assert [step["step"] for step in values["steps"]] == [0, 1, 2, 3, 4, 5]


def test_forecasts_of_one_percent_can_be_seen(tmp_path: pathlib.Path) -> None:
    """A hundredth in height would be a line of pixels: 40 such bars have a tenth of the picture to themselves."""
    picture = drawn(tmp_path, [0.2] * 10 + [0.002] * 40, [True] * 10 + [False] * 40)
    assert share(picture, ORANGE) > 0.1


def test_an_interrupted_forecast_does_not_flatten_the_others(tmp_path: pathlib.Path) -> None:
    seconds, full = [0.2] + [0.002] * 20, [True] + [False] * 20

    def lowest_panel() -> float:
        picture = drawn(tmp_path, seconds, full)
        return share(picture[2 * len(picture) // 3 :], ORANGE)

    calm = lowest_panel()
    seconds[7] = 0.15
    assert lowest_panel() > 0.5 * calm


def test_comparable_steps_need_no_cut_axis(tmp_path: pathlib.Path) -> None:
    cut, whole = drawn(tmp_path), drawn(tmp_path, [0.2, 0.2, 0.1, 0.1, 0.2, 0.1])
    assert whole.shape[0] < cut.shape[0] and whole.shape[1] == cut.shape[1]


def test_the_strip_shows_when_each_step_was(tmp_path: pathlib.Path) -> None:
    """Half of the loop full, then half forecast: the strip's two halves have the two colors."""
    picture = drawn(tmp_path, [0.1, 0.1, 0.1, 0.1], [True, True, False, False])
    both = (picture == BLUE).all(-1).any(1) & (picture == ORANGE).all(-1).any(1)
    row = picture[int(np.flatnonzero(both)[0]) + 20]
    blue, orange = np.flatnonzero((row == BLUE).all(-1)), np.flatnonzero((row == ORANGE).all(-1))
    assert blue.max() < orange.min()
    assert len(blue) == pytest.approx(len(orange), rel=0.02)


@pytest.mark.parametrize(("flag", "present", "absent"), [(True, BLUE, ORANGE), (False, ORANGE, BLUE)])
def test_steps_of_one_kind(tmp_path: pathlib.Path, flag: bool, present: Any, absent: Any) -> None:
    picture = drawn(tmp_path, [0.1, 0.2], [flag, flag])
    assert share(picture, present) > 0.1 and share(picture, absent) == 0
    values = json.loads((tmp_path / "timeline.json").read_text("utf-8"))
    assert (values["full_ms"] is None) == (not flag) and (values["forecast_ms"] is None) == flag


@pytest.mark.parametrize(("seconds", "full"), [([], []), ([0.1], [True, False]), ([[0.1]], [[True]])])
def test_not_one_flag_for_each_time(tmp_path: pathlib.Path, seconds: Any, full: Any) -> None:
    with pytest.raises(InputError, match="needs a time and a flag for each step: got shapes"):
        drawn(tmp_path, seconds, full)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none(tmp_path: pathlib.Path, seconds: float) -> None:
    with pytest.raises(InputError, match="needs positive, finite times: the loop was not timed to its end"):
        drawn(tmp_path, [0.1, seconds], [True, False])
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_no_png(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OutputError, match=r"timeline.pdf' is no picture: give a path that ends in \.png"):
        draw_timeline(SECONDS, FULL, tmp_path / "timeline.pdf", "")


def test_without_matplotlib(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"needs matplotlib: `pip install 'taylorseer-trt\[profile\]'`"):
        drawn(tmp_path)
    assert not list(tmp_path.iterdir())
