"""Sheets keep every pixel and stay inside their margins; files are whole or not there."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taylorseer.errors import OutputError, ShapeError
from taylorseer.runtime.pictures import contact_sheet, grid, save_png

WHITE = (255, 255, 255)


def image(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)


def found_at(sheet: Image.Image, picture: np.ndarray, scale: int) -> tuple[int, int]:
    """Return the (left, top) at which the enlarged ``picture`` is in ``sheet``, pixel for pixel."""
    pixels, enlarged = np.asarray(sheet), np.kron(picture, np.ones((scale, scale, 1), np.uint8))
    height, width = enlarged.shape[:2]
    for top, left in np.argwhere((pixels == enlarged[0, 0]).all(axis=-1)):
        if np.array_equal(pixels[top : top + height, left : left + width], enlarged):
            return int(left), int(top)
    raise AssertionError("the picture is not in the sheet")


def sheet_of(rows: list[list[np.ndarray]], across: list[str], along: list[str], scale: int = 4) -> Image.Image:
    return contact_sheet(rows, row_titles=along, column_titles=across, scale=scale)


@pytest.mark.parametrize("scale", [1, 4])
def test_a_sheet_shows_every_image_in_its_place(scale: int) -> None:
    rows = [[image(3 * row + column, 16, 20) for column in range(3)] for row in range(2)]
    sheet = sheet_of(rows, ["one", "two", "three"], ["full", "forecast"], scale)
    places = [[found_at(sheet, picture, scale) for picture in row] for row in rows]
    lefts, tops = [place[0] for place in places[0]], [row[0][1] for row in places]
    assert [[(left, top) for left in lefts] for top in tops] == places
    gap = lefts[1] - lefts[0] - 20 * scale
    assert lefts[2] - lefts[1] == 20 * scale + gap
    assert tops[1] - tops[0] == 16 * scale + gap
    assert sheet.size == (lefts[2] + 20 * scale + gap, tops[1] + 16 * scale + gap)


LONG = "a blue car on a road with many trees and antidisestablishmentarianism-without-end " + "y" * 90


@pytest.mark.parametrize("title", ["jaguar", LONG, "two\nlying"])
def test_titles_never_touch_images_nor_edges(title: str) -> None:
    plain = np.full((16, 16, 3), 255, np.uint8)
    sheet = sheet_of([[plain, plain], [plain, plain]], [title, "b"], [title, ""])
    untitled = sheet_of([[plain, plain], [plain, plain]], ["", ""], ["", ""])
    ink = np.argwhere((np.asarray(sheet) != 255).any(axis=-1))
    assert len(ink) > 20
    assert ink.min() >= 4 and (ink.max(axis=0) < np.array(sheet.size[::-1]) - 4).all()
    left, top = sheet.width - untitled.width + 6, sheet.height - untitled.height + 6
    assert not ((ink[:, 0] >= top) & (ink[:, 1] >= left)).any()


def test_a_long_title_keeps_all_its_letters() -> None:
    wide, narrow = (
        sheet_of([[np.full((16, 16 * w, 3), 255, np.uint8)]], ["antidisestablishment " * 2], [""]) for w in (8, 1)
    )
    assert narrow.height > wide.height
    assert (np.asarray(narrow) != 255).any(axis=-1).sum() > 0.5 * (np.asarray(wide) != 255).any(axis=-1).sum()


@pytest.mark.parametrize(
    ("rows", "across", "along"),
    [
        ([], [], []),
        ([[]], [], [""]),
        ([[image(0)], [image(1), image(2)]], ["a", "b"], ["", ""]),
        ([[image(0), image(1, 8, 8)]], ["a", "b"], [""]),
        ([[image(0).astype(np.float32)]], ["a"], [""]),
        ([[image(0)[..., 0]]], ["a"], [""]),
        ([[image(0)]], ["a", "b"], [""]),
        ([[image(0)]], ["a"], []),
    ],
)
def test_a_sheet_refuses_what_does_not_fit(rows: Any, across: list[str], along: list[str]) -> None:
    with pytest.raises(ShapeError, match="a sheet needs"):
        sheet_of(rows, across, along)


def test_a_grid_is_square_unless_told() -> None:
    pictures = [image(seed) for seed in range(7)]
    square, wide = grid(pictures, scale=1), grid(pictures, columns=7, scale=1)
    assert square.width == square.height
    assert wide.width > 6 * wide.height - 7 * 4
    places = [found_at(square, picture, 1) for picture in pictures]
    assert places == sorted(places, key=lambda place: (place[1], place[0]))
    assert len({left for left, _ in places}) == 3
    assert square.getpixel((square.width - 8, square.height - 8)) == WHITE


def test_a_grid_refuses_nothing_and_no_columns() -> None:
    with pytest.raises(ShapeError, match="got none"):
        grid([])
    with pytest.raises(ShapeError, match="column"):
        grid([image(0)], columns=0)
    with pytest.raises(ShapeError, match="scale"):
        grid([image(0)], scale=0)


def test_a_saved_picture_is_the_same_with_its_text(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "picture.png"
    save_png(image(1), path, text={"prompt": "a red apple, 赤", "seed": "7"})
    with Image.open(path) as loaded:
        assert np.array_equal(np.asarray(loaded), image(1))
        assert loaded.info["prompt"] == "a red apple, 赤"
        assert loaded.info["seed"] == "7"
    assert os.listdir(path.parent) == ["picture.png"]


def test_saving_replaces_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save_png(image(1), path)
    save_png(Image.fromarray(image(2)), path)
    with Image.open(path) as loaded:
        assert np.array_equal(np.asarray(loaded), image(2))


def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "picture.png"
    save_png(image(1), path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device\. Free some space"):
        save_png(image(2), path)
    assert os.listdir(tmp_path) == ["picture.png"]
    with Image.open(path) as loaded:
        assert np.array_equal(np.asarray(loaded), image(1))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "picture.png", tmp_path / "folder.png"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_png(image(0), path)
    with pytest.raises(OutputError, match=r"ends with \.png"):
        save_png(image(0), tmp_path / "picture.jpg")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_only_pictures_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="float32"):
        save_png(image(0).astype(np.float32), tmp_path / "picture.png")
