"""The clips of the demo video model: every motion does what its name says."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.emoji_clips import (
    CAST,
    FRAMES,
    MOTIONS,
    cast_captions,
    cast_pictures,
    draw_clips,
    held_out_pairs,
    render_clip,
)

Course = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def dot(row: int = 16, column: int = 16) -> NDArray[np.uint8]:
    """Return a white picture with a black square of 8 pixels around a place."""
    picture = np.full((32, 32, 3), 255, np.uint8)
    picture[row - 4 : row + 4, column - 4 : column + 4] = 0
    return picture


def course_of(clip: NDArray[np.uint8]) -> Course:
    """Return the ink [8] of every frame, and the row [8] and column [8] of its center."""
    ink = 1 - clip.mean(-1) / 255
    total = ink.sum((1, 2))
    rows, columns = (np.moveaxis(ink, axis, -1).sum(1) @ np.arange(32) for axis in (1, 2))
    return total, rows / np.maximum(total, 1e-6), columns / np.maximum(total, 1e-6)


def rising(values: NDArray[Any]) -> bool:
    return bool((np.diff(values) > 0).all())


def test_standing_still_shows_one_picture_eight_times() -> None:
    clip = render_clip(dot(), "standing still")
    assert clip.shape == (FRAMES, 32, 32, 3)
    assert clip.dtype == np.uint8
    assert (clip == clip[0]).all()
    assert clip[0, 16, 16].max() < 10
    assert clip[0, 0].min() == 255


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving up", 1, -1), ("moving down", 1, 1), ("moving left", 2, -1), ("moving right", 2, 1)],
)
def test_moving_goes_where_it_says(motion: str, axis: int, sign: int) -> None:
    course = course_of(render_clip(dot(), motion))
    assert rising(sign * course[axis])
    assert np.ptp(course[axis]) == pytest.approx(0.72 * 16, abs=0.3)
    assert np.ptp(course[3 - axis]) < 0.05


def test_turning_right_is_clockwise_and_left_its_mirror() -> None:
    above = dot(row=8)
    _, right_rows, right_columns = course_of(render_clip(above, "turning right"))
    _, left_rows, left_columns = course_of(render_clip(above, "turning left"))
    assert rising(right_rows)  # from above the center, half a turn, to below it
    assert right_columns[3] > 18  # by way of the right
    np.testing.assert_allclose(left_rows, right_rows, atol=0.05)
    np.testing.assert_allclose(left_columns, 31 - right_columns, atol=0.05)


@pytest.mark.parametrize(("motion", "sign"), [("growing", 1), ("shrinking", -1), ("fading in", 1), ("fading out", -1)])
def test_growing_and_fading_change_the_ink(motion: str, sign: int) -> None:
    assert rising(sign * course_of(render_clip(dot(), motion))[0])


def test_bouncing_leaves_the_ground_twice() -> None:
    rows = course_of(render_clip(dot(), "bouncing"))[1]
    assert np.flatnonzero(rows > rows.max() - 0.5).tolist() == [0, 4]
    assert np.flatnonzero(rows < rows.min() + 0.5).tolist() == [2, 6]


def test_the_seed_decides_the_variation() -> None:
    one, again, other = (render_clip(dot(), "growing", seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_tenth_of_the_pairs_is_held_out_from_all_motions() -> None:
    pairs = held_out_pairs()
    assert pairs == held_out_pairs()
    assert len(set(pairs)) == len(pairs) == round(0.1 * len(CAST) * len(MOTIONS))
    assert {motion for _, motion in pairs} == set(range(len(MOTIONS)))
    assert max(emoji for emoji, _ in pairs) < len(CAST)


def data_of(**fields: Any) -> dict[str, NDArray[Any]]:
    count = len(CAST)
    images = np.arange(count, dtype=np.uint8)[::-1, None, None, None] + np.zeros((1, 32, 32, 3), np.uint8)
    return {"names": np.array(list(CAST.values())[::-1]), "images": images, **fields}


def test_pictures_follow_the_cast_not_the_data_set() -> None:
    assert cast_pictures(data_of())[:, 0, 0, 0].tolist() == list(range(len(CAST)))
    with pytest.raises(ValueError, match=r"lacks the emoji \['heavy black heart'\].*tools.emoji_dataset"):
        cast_pictures({"names": np.array(list(CAST.values())[1:])})


def test_captions_fall_back_to_names_and_aliases() -> None:
    written = np.array([f"word{row}" for row in range(len(CAST))])[::-1]
    assert cast_captions(data_of(captions=written))[:2] == [["red heart", "word0"], ["green heart", "word1"]]
    assert cast_captions(data_of())[0] == ["red heart", "heavy black heart", "heart", "love heart", "big red heart"]


def test_a_sheet_has_a_labelled_row_of_frames_for_each_clip() -> None:
    import torch

    page = draw_clips(torch.zeros(2, 3, FRAMES, 32, 32), ["one", "two"])
    assert page.size == (FRAMES * 66, 2 * 82)
    assert page.getpixel((30, 46)) == (128, 128, 128)
