"""Pictures for people: sheets of small images with titles, and PNG files that are whole or not there.

Images are uint8 [H, W, 3] in 0 to 255; they are enlarged by whole factors, pixel by pixel, so that nothing is
smoothed away.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taylorseer.errors import DependencyError, OutputError, ShapeError
from taylorseer.runtime.whole_file import write_whole

try:
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo
except ImportError as missing:
    raise DependencyError("pictures need Pillow; install it: pip install 'pillow>=10.1'") from missing

__all__ = ["contact_sheet", "grid", "save_png"]

_PAPER = (255, 255, 255)
_INK = (38, 38, 38)
_LARGEST_FONT, _SMALLEST_FONT = 17, 12
"""Sizes of the titles in pixels: comfortable at the largest, still legible at the smallest."""

Picture = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: Sequence[Sequence[Picture]],
    *,
    row_titles: Sequence[str],
    column_titles: Sequence[str],
    scale: int = 4,
) -> Image.Image:
    """Return an RGB sheet of ``rows`` of images, titled at the left and at the top, on white.

    Long titles are wrapped, all in a smaller font if a word is wider than its column.
    Raises ShapeError unless all images have one size, all rows one length, and there is a title for each.
    """
    cells = _checked(rows, scale)
    if len(row_titles) != len(cells) or any(len(column_titles) != len(row) for row in cells):
        raise ShapeError(
            f"a sheet needs one title a row and a column: got {len(row_titles)} and {len(column_titles)} for "
            f"rows of {[len(row) for row in cells]} images."
        )
    height, width = (side * scale for side in cells[0][0].shape[:2])
    gap, beside = _gap(height, width), max(width * 3 // 2, 120)
    font = _font([*((title, width) for title in column_titles), *((title, beside) for title in row_titles)])
    across = [_wrapped(title, font, width) for title in column_titles]
    along = [_wrapped(title, font, beside) for title in row_titles]
    left = _after(max((_extent(text, font)[0] for text in along), default=0), gap, gap)
    top = _after(max((_extent(text, font)[1] for text in across), default=0), gap, gap // 2)
    sheet = _mosaic(cells, scale, gap, left, top)
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(across):
        center = left + column * (width + gap) + width / 2
        pen.multiline_text((center, top - gap // 2), text, _INK, font, anchor="md", align="center")
    for row, text in enumerate(along):
        middle = top + row * (height + gap) + height / 2
        pen.multiline_text((left - gap, middle), text, _INK, font, anchor="rm", align="right")
    return sheet


def grid(images: Sequence[Picture], columns: int | None = None, scale: int = 4) -> Image.Image:
    """Return an RGB sheet of ``images`` in reading order, on white, without titles.

    ``columns``: images a row; unless given, the smallest square holds them all.  The last row may be short.
    Raises ShapeError unless all images have one size and ``columns`` is at least 1.
    """
    columns = math.isqrt(max(len(images) - 1, 0)) + 1 if columns is None else columns
    if columns < 1:
        raise ShapeError(f"a grid needs at least 1 column; got {columns}.")
    cells = _checked([images[first : first + columns] for first in range(0, len(images), columns)], scale)
    gap = _gap(*(side * scale for side in cells[0][0].shape[:2]))
    return _mosaic(cells, scale, gap, gap, gap)


def save_png(image: Image.Image | Picture, path: Path, *, text: Mapping[str, str] | None = None) -> None:
    """Write ``image`` (a picture, or uint8 [H, W, 3]) to ``path``, with ``text`` as PNG metadata.

    The file appears complete or not at all, and replaces an older one; missing folders are created.
    Raises OutputError when it cannot be written, ShapeError for an array that is no picture.
    """
    if path.suffix.lower() != ".png":
        raise OutputError(f"{path} is to be a PNG picture; give it a name that ends with .png.")
    picture = image if isinstance(image, Image.Image) else Image.fromarray(_checked([[image]], 1)[0][0])
    notes = PngInfo()
    for name, value in (text or {}).items():
        notes.add_text(name, value)
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG", pnginfo=notes)
    write_whole(path, encoded.getvalue())


def _checked(rows: Sequence[Sequence[Picture]], scale: int) -> list[list[Picture]]:
    """Return ``rows`` as lists, having refused anything but pictures of one size."""
    cells = [list(row) for row in rows]
    found = {(str(image.dtype), image.shape) for row in cells for image in row}
    dtype, shape = next(iter(found), ("no images", ()))
    if scale < 1 or len(found) != 1 or dtype != "uint8" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        listed = ", ".join(f"{kind} {list(size)}" for kind, size in sorted(found)) or "none"
        raise ShapeError(
            "a sheet needs images of uint8 [H, W, 3], all of one size, and a scale of at least 1; "
            f"got {listed} at scale {scale}. Convert latents to pixels first."
        )
    return cells


def _gap(height: int, width: int) -> int:
    """Pixels between and around images: a tenth of an image, in bounds that suit thumbnails and posters."""
    return min(max(min(height, width) // 10, 4), 16)


def _after(titles: int, margin: int, space: int) -> int:
    """Where the images begin: after the margin, and after ``titles`` pixels and their space if any."""
    return margin + titles + space if titles else margin


def _mosaic(cells: Sequence[Sequence[Picture]], scale: int, gap: int, left: int, top: int) -> Image.Image:
    """Draw the enlarged images from (left, top), with ``gap`` between them and at the right and bottom."""
    height, width = (side * scale for side in cells[0][0].shape[:2])
    size = (left + len(cells[0]) * (width + gap), top + len(cells) * (height + gap))
    sheet = Image.new("RGB", size, _PAPER)
    for row, images in enumerate(cells):
        for column, image in enumerate(images):
            enlarged = Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1))
            sheet.paste(enlarged, (left + column * (width + gap), top + row * (height + gap)))
    return sheet


def _font(titles: Sequence[tuple[str, int]]) -> Font:
    """Return the largest font in which the pieces of each (title, width in pixels) fit, or the smallest."""
    for size in range(_LARGEST_FONT, _SMALLEST_FONT, -1):
        font = ImageFont.load_default(size)
        if all(font.getlength(piece.strip()) <= width for title, width in titles for piece in _pieces(title)):
            return font
    return ImageFont.load_default(_SMALLEST_FONT)


def _pieces(title: str) -> list[str]:
    """Cut ``title`` where a line may end: before spaces and after hyphens."""
    return re.findall(r"\s*[^\s-]+-*|\s*-+", title)


def _wrapped(title: str, font: Font, width: int) -> str:
    """Break ``title`` into lines of at most ``width`` pixels; a piece that is wider still is broken too."""
    lines = []
    for line in title.splitlines():
        lines.append("")
        for piece in _pieces(line):
            if font.getlength((lines[-1] + piece).strip()) <= width:
                lines[-1] += piece
            else:
                lines += _broken(piece.strip(), font, width)
    return "\n".join(line.strip() for line in lines if line.strip())


def _broken(word: str, font: Font, width: int) -> list[str]:
    """Cut ``word`` into pieces of at most ``width`` pixels, or of one letter."""
    cuts = [0]
    for end in range(1, len(word) + 1):
        if font.getlength(word[cuts[-1] : end]) > width and end - 1 > cuts[-1]:
            cuts.append(end - 1)
    return [word[first:last] for first, last in pairwise([*cuts, len(word)])]


def _extent(text: str, font: Font) -> tuple[int, int]:
    """Return the width and height in pixels of ``text``, several lines or none."""
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return math.ceil(box[2]) if text else 0, math.ceil(box[3]) if text else 0
