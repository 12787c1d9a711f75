"""Clips in files: every frame comes back, at its rate, in every format, and a file is whole or not there."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taylorseer.errors import DependencyError, InputError, OutputError, ShapeError
from taylorseer.runtime.clips import CLIP_FORMATS, check_clip_file, save_clip, side_by_side
from taylorseer.runtime.pictures import grid

FAKE_FFMPEG = f"""#!{sys.executable}
import pathlib, sys
pathlib.Path(sys.argv[0]).with_name("asked").write_text("\\n".join(sys.argv[1:]))
content = sys.stdin.buffer.read()
pathlib.Path(sys.argv[-1]).write_bytes(content)
if b"\\x07" in content:
    sys.exit("no such encoder")
"""
"""Writes the frames' bytes as the clip, and its arguments beside itself; a byte 7 makes it fail halfway."""


def clip(seed: int = 0, frames: int = 3, height: int = 6, width: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(8, 256, (frames, height, width, 3)).astype(np.uint8)


def pictures(made: np.ndarray[Any, np.dtype[np.uint8]]) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in made]


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a program of that name, which keeps what it was asked."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "ffmpeg").write_text(FAKE_FFMPEG)
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_an_animated_png_keeps_every_pixel(tmp_path: Path) -> None:
    made, path = clip(), tmp_path / "new/clip.png"
    save_clip(pictures(made), path)
    with Image.open(path) as read:
        assert (read.format, getattr(read, "n_frames", 1), read.info["loop"], read.info["duration"]) == (
            "PNG",
            3,
            0,
            125,
        )
        for number, frame in enumerate(made):
            read.seek(number)
            np.testing.assert_array_equal(np.asarray(read.convert("RGB")), frame)
    assert os.listdir(path.parent) == ["clip.png"]


def test_a_gif_keeps_few_colors_and_its_rate(tmp_path: Path) -> None:
    made = np.repeat(clip(height=3), 4, axis=1)  # 12 colors a frame: a GIF has room for 256
    path = tmp_path / "clip.GIF"
    save_clip(pictures(made), path, frame_rate=20)
    with Image.open(path) as read:
        assert (read.format, getattr(read, "n_frames", 1), read.info["loop"], read.info["duration"]) == (
            "GIF",
            3,
            0,
            50,
        )
        for number, frame in enumerate(made):
            read.seek(number)
            np.testing.assert_array_equal(np.asarray(read.convert("RGB")), frame)


def test_a_gif_counts_hundredths_of_a_second(tmp_path: Path) -> None:
    save_clip(pictures(clip()), tmp_path / "clip.gif", frame_rate=30)  # 33.3 ms
    with Image.open(tmp_path / "clip.gif") as read:
        assert read.info["duration"] == 30


def test_ffmpeg_gets_the_frames_in_even_sizes(tmp_path: Path, ffmpeg: Path) -> None:
    made, path = clip(height=5, width=7), tmp_path / "clip.mp4"
    save_clip(pictures(made), path, frame_rate=12.5)
    expected = np.full((3, 6, 8, 3), 255, np.uint8)
    expected[:, :5, :7] = made
    assert path.read_bytes() == expected.tobytes()
    asked = (ffmpeg / "asked").read_text().splitlines()
    for option, value in (("-s", "8x6"), ("-r", "12.5"), ("-f", "rawvideo"), ("-i", "-")):
        assert asked[asked.index(option) + 1] == value
    assert [asked[at + 1] for at, each in enumerate(asked) if each == "-pix_fmt"] == ["rgb24", "yuv420p"]
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "programs"]


def test_an_ffmpeg_that_fails_leaves_the_older_clip(tmp_path: Path, ffmpeg: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")
    with pytest.raises(OutputError, match=r"ffmpeg made no MP4: no such encoder\. Give --output FILE\.png"):
        save_clip(pictures(np.full((2, 2, 2, 3), 7, np.uint8)), path)
    assert path.read_bytes() == b"older" and sorted(os.listdir(tmp_path)) == ["clip.mp4", "programs"]
    (ffmpeg / "ffmpeg").write_text("#!/nowhere/interpreter\n")
    with pytest.raises(OutputError, match=r"ffmpeg cannot be run: No such file or directory"):
        save_clip(pictures(clip()), path)


def test_without_ffmpeg_an_mp4_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match=r"needs the program ffmpeg, which is not on the PATH: install it"):
        check_clip_file(tmp_path / "clip.mp4")
    check_clip_file(tmp_path / "clip.gif")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_real_mp4_is_one(tmp_path: Path) -> None:
    save_clip(pictures(clip(height=31, width=33)), tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes()[4:8] == b"ftyp"


def test_clips_stand_side_by_side_in_every_frame() -> None:
    clips = [clip(seed) for seed in range(3)]
    made = side_by_side(clips, scale=2)
    assert len(made) == 3
    for number, picture in enumerate(made):
        assert picture.tobytes() == grid([each[number] for each in clips], scale=2).tobytes()


@pytest.mark.parametrize(
    "clips", [[], [clip(), clip(frames=2)], [clip(), clip(width=5)], [clip()[0]], [np.zeros((0, 6, 4, 3), np.uint8)]]
)
def test_what_does_not_fit_side_by_side(clips: Any) -> None:
    with pytest.raises(ShapeError, match=r"clips side by side must be \[F, H, W, 3\], all of one size; got"):
        side_by_side(clips)


def test_frames_of_one_size_and_at_least_one(tmp_path: Path) -> None:
    for frames in ([], [*pictures(clip()), *pictures(clip(width=5))]):
        with pytest.raises(ShapeError, match="a clip needs frames of one size; got"):
            save_clip(frames, tmp_path / "clip.png")
    assert list(tmp_path.iterdir()) == []


def test_other_names_and_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"is to be a clip: give it a name that ends with \.png, \.gif, \.mp4"):
        check_clip_file(tmp_path / "clip.webm")
    for name in CLIP_FORMATS:
        for rate in (0, -1, 1000, float("nan")):
            with pytest.raises(InputError, match=rf"frames per second are no rate for a {name}: give from 0\.1 to"):
                check_clip_file(tmp_path / f"clip{name}", rate)
    with pytest.raises(InputError, match=r"60 frames per second are no rate for a \.gif: give from 0\.1 to 50"):
        check_clip_file(tmp_path / "clip.gif", 60)
