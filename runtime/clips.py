"""Clips for people: moving pictures as APNG, GIF or MP4, in files that are whole or not there.

A clip is uint8 [F, H, W, 3].  APNG keeps every pixel, GIF 256 colors a frame, MP4 what video coding keeps.  APNG and
GIF start over without end; whether an MP4 does is up to the player.
"""

import io
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import DependencyError, InputError, OutputError, ShapeError
from taylorseer.runtime.pictures import grid
from taylorseer.runtime.whole_file import write_whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["CLIP_FORMATS", "FRAME_RATE", "check_clip_file", "save_clip", "side_by_side"]

CLIP_FORMATS = (".png", ".gif", ".mp4")
"""How the name of a clip's file ends."""

FRAME_RATE = 8.0
"""Frames per second unless asked otherwise: one second for the demo model's clips."""

_SLOWEST = 0.1
_FASTEST = {".png": 100.0, ".gif": 50.0, ".mp4": 100.0}
"""Frames per second.  Viewers slow a GIF of more than 50 down to 10."""

Clip = NDArray[np.uint8]


def check_clip_file(path: Path, frame_rate: float = FRAME_RATE) -> None:
    """Refuse, before a clip is made, what could not be written after it.

    Raises:
        OutputError: the name has none of the endings of :data:`CLIP_FORMATS`.
        InputError: a frame rate that the format does not have.
        DependencyError: an MP4 without ffmpeg.
    """
    suffix = path.suffix.lower()
    if suffix not in CLIP_FORMATS:
        raise OutputError(f"{str(path)!r} is to be a clip: give it a name that ends with {', '.join(CLIP_FORMATS)}.")
    if not _SLOWEST <= frame_rate <= _FASTEST[suffix]:
        raise InputError(
            f"{frame_rate:g} frames per second are no rate for a {suffix}: give from {_SLOWEST:g} to "
            f"{_FASTEST[suffix]:g}."
        )
    if suffix == ".mp4":
        _ffmpeg()


def side_by_side(clips: Sequence[Clip], scale: int = 4) -> "list[Image.Image]":
    """Return one picture a frame, with that frame of every clip in a grid.

    Raises ShapeError unless all are uint8 [F, H, W, 3] of one size, and ``scale`` is at least 1.
    """
    found = sorted({clip.shape for clip in clips})
    if len(found) != 1 or len(found[0]) != 4 or 0 in found[0]:
        listed = ", ".join(str(list(shape)) for shape in found) or "none"
        raise ShapeError(f"clips side by side must be [F, H, W, 3], all of one size; got {listed}.")
    return [grid(frames, scale=scale) for frames in zip(*clips, strict=True)]


def save_clip(frames: "Sequence[Image.Image]", path: Path, *, frame_rate: float = FRAME_RATE) -> None:
    """Write ``frames`` to ``path``, in the format that its name ends with.

    The file appears complete or not at all, and replaces an older one; missing folders are created.

    Raises what :func:`check_clip_file` raises; ShapeError for no frames or frames of several sizes; OutputError
    when the file cannot be written or ffmpeg fails.
    """
    check_clip_file(path, frame_rate)
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) != 1:
        raise ShapeError(f"a clip needs frames of one size; got {', '.join(map(str, sizes)) or 'none'}.")
    suffix = path.suffix.lower()
    encoded = _mp4(frames, frame_rate) if suffix == ".mp4" else _animation(frames, frame_rate, suffix)
    write_whole(path, encoded)


def _animation(frames: "Sequence[Image.Image]", frame_rate: float, suffix: str) -> bytes:
    """Return an APNG or a GIF."""
    kind, unit = {".png": ("PNG", 1), ".gif": ("GIF", 10)}[suffix]
    # In milliseconds; a GIF counts hundredths of a second, and Pillow would cut the rest off.
    duration = max(round(1000 / frame_rate / unit), 1) * unit
    encoded = io.BytesIO()
    first, *others = frames
    first.save(encoded, format=kind, save_all=True, append_images=others, duration=duration, loop=0)
    return encoded.getvalue()


def _mp4(frames: "Sequence[Image.Image]", frame_rate: float) -> bytes:
    """Return an MP4 with the pixel format that every player shows, yuv420p."""
    pixels = [_even(np.asarray(frame.convert("RGB"))) for frame in frames]
    height, width, _ = pixels[0].shape
    content = b"".join(frame.tobytes() for frame in pixels)
    with tempfile.TemporaryDirectory() as folder:  # not through a pipe: the head of an MP4 is written last
        made = Path(folder) / "clip.mp4"
        _encode(
            [
                *(_ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
                *("-r", f"{frame_rate:g}", "-i", "-", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(made)),
            ],
            content,
        )
        return made.read_bytes()


def _encode(command: Sequence[str], content: bytes) -> None:
    """Run ffmpeg on the frames' bytes.  Raises OutputError when it fails."""
    try:
        subprocess.run(command, input=content, capture_output=True, check=True)
    except OSError as error:
        raise OutputError(f"{command[0]} cannot be run: {error.strerror}. Give --output FILE.png or .gif.") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-500:] or f"exit status {error.returncode}"
        raise OutputError(f"ffmpeg made no MP4: {said}. Give --output FILE.png or .gif.") from error


def _even(frame: Clip) -> Clip:
    """Return uint8 [H, W, 3] with a white row or column more where a side is odd, which yuv420p cannot be."""
    height, width, _ = frame.shape
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)


def _ffmpeg() -> str:
    found = shutil.which("ffmpeg")
    if found is None:
        raise DependencyError(
            "An MP4 needs the program ffmpeg, which is not on the PATH: install it (apt install ffmpeg, brew install "
            "ffmpeg), or give --output FILE.png or FILE.gif."
        )
    return found
