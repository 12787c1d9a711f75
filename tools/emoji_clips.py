"""Clips of emoji that move as a prompt says: the data of the demo model `hunyuan-video-emoji`.

A clip has 8 frames of 32x32 over white. It comes from one picture, one motion, and four numbers that vary it a
little: place, size, and how far the motion goes. The picture is moved by an affine map for each frame and
resampled at twice the resolution, thousands of clips at once on whatever device the pictures lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tools.emoji_dataset import captions_of

__all__ = [
    "CAST", "FRAMES", "MOTIONS", "SIZE", "VARIATION", "cast_captions", "cast_pictures", "draw_clips",
    "held_out_pairs", "prompt_of", "render", "render_clip", "tracks", "vary",
]  # fmt: skip

FRAMES, SIZE = 8, 32
REST_SIZE = 0.64
"""Width of an emoji that neither grows nor shrinks, as a share of the frame: it can turn without being cut."""
VARIATION = (0.06, 0.06, 0.08, 0.12)
"""Greatest change of place (right, down; half frames), of size and of the motion's extent (shares)."""
HELD_OUT_SEED, HELD_OUT_SHARE = 0, 0.1

MOTIONS: dict[str, tuple[str, ...]] = {
    "standing still": ("standing still", "still", "at rest"),
    "moving left": ("moving left", "going left"),
    "moving right": ("moving right", "going right"),
    "moving up": ("moving up", "going up", "rising"),
    "moving down": ("moving down", "going down", "falling"),
    "turning left": ("turning left", "rotating left", "spinning left"),
    "turning right": ("turning right", "rotating right", "spinning right"),
    "growing": ("growing", "getting bigger"),
    "shrinking": ("shrinking", "getting smaller"),
    "fading in": ("fading in", "appearing"),
    "fading out": ("fading out", "disappearing"),
    "bouncing": ("bouncing", "jumping"),
}
"""Each motion, and the phrases that ask for it. Left is counterclockwise where something turns."""

CAST: dict[str, str] = {
    "red heart": "heavy black heart", "green heart": "green heart", "blue heart": "blue heart",
    "yellow heart": "yellow heart", "smiley": "smiling face with open mouth", "grinning face": "grinning face",
    "cool face": "smiling face with sunglasses", "heart eyes": "smiling face with heart-shaped eyes",
    "crying face": "crying face", "angry face": "pouting face", "ghost": "ghost", "robot": "robot face",
    "alien": "extraterrestrial alien", "skull": "skull", "cat face": "cat face", "dog face": "dog face",
    "panda": "panda face", "frog": "frog face", "lion": "lion face", "fox": "fox face", "pig face": "pig face",
    "unicorn": "unicorn face", "penguin": "penguin", "baby chick": "baby chick", "octopus": "octopus", "crab": "crab",
    "tropical fish": "tropical fish", "turtle": "turtle", "bee": "honeybee", "butterfly": "butterfly",
    "lady beetle": "lady beetle", "rocket": "rocket", "airplane": "airplane", "flying saucer": "flying saucer",
    "red car": "automobile", "bus": "bus", "sailboat": "sailboat", "pizza": "slice of pizza", "hamburger": "hamburger",
    "doughnut": "doughnut", "birthday cake": "birthday cake", "hot beverage": "hot beverage", "red apple": "red apple",
    "banana": "banana", "strawberry": "strawberry", "lemon": "lemon", "watermelon": "watermelon",
    "sun": "black sun with rays", "moon": "crescent moon", "star": "white medium star", "rainbow": "rainbow",
    "cloud": "cloud", "lightning": "high voltage sign", "fire": "fire", "snowman": "snowman",
    "christmas tree": "christmas tree", "cactus": "cactus", "mushroom": "mushroom", "sunflower": "sunflower",
    "soccer ball": "soccer ball", "balloon": "balloon", "gift": "wrapped present", "pumpkin": "jack-o-lantern",
    "light bulb": "electric light bulb", "diamond": "gem stone", "crown": "crown", "house": "house building",
    "earth": "earth globe europe-africa",
}  # fmt: skip
"""The emoji of the clips: the words of their prompts, and their names in the data set."""


def prompt_of(emoji: str, motion: str) -> str:
    """Return the prompt of an emoji of `CAST` and a motion of `MOTIONS`."""
    return f"{emoji} {motion}"


def held_out_pairs() -> list[tuple[int, int]]:
    """List the (emoji, motion) pairs, as positions in `CAST` and `MOTIONS`, that training never shows.

    A tenth of all pairs, drawn without regard to which, by NumPy's generator from a fixed seed.
    """
    count = len(CAST) * len(MOTIONS)
    chosen = np.random.default_rng(HELD_OUT_SEED).choice(count, round(HELD_OUT_SHARE * count), replace=False)
    return [divmod(int(place), len(MOTIONS)) for place in np.sort(chosen)]


def rows_of_cast(names: NDArray[Any]) -> list[int]:
    """Return the rows of `CAST` in the data set; ValueError names the emoji that it lacks."""
    places = {str(name): row for row, name in reversed(list(enumerate(names)))}
    missing = [name for name in CAST.values() if name not in places]
    if missing:
        raise ValueError(f"the data set lacks the emoji {missing}. Build it again with tools.emoji_dataset.")
    return [places[name] for name in CAST.values()]


def cast_pictures(data: dict[str, NDArray[Any]]) -> Tensor:
    """Return the pictures of `CAST`, uint8 [N, 3, 32, 32]."""
    rows = rows_of_cast(data["names"])
    pictures: NDArray[np.uint8] = data["images"][rows]
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def cast_captions(data: dict[str, NDArray[Any]]) -> list[list[str]]:
    """List the captions of every emoji of `CAST`, its prompt's words first.

    The data set's own captions, or, where it has none, the name and the aliases. A caption that another member
    of the cast has for its first is left to that one.
    """
    if "captions" in data:
        own = [str(data["captions"][row]).split("\n") for row in rows_of_cast(data["names"])]
    else:
        own = [captions_of(name, [], set()) for name in CAST.values()]
    firsts = {frozenset(label.split()) for label in CAST}
    listed = zip(CAST, own, strict=True)
    return [[label, *(each for each in row if frozenset(each.split()) not in firsts)] for label, row in listed]


def tracks() -> Tensor:
    """Return the course of every motion [12, 8, 5] over the frames.

    Columns: right and down (half frames), turn (radians, clockwise), size (log of the factor), ink (0 to 1).
    """
    time = torch.linspace(0, 1, FRAMES)
    across, nothing, full = 2 * time - 1, torch.zeros(FRAMES), torch.ones(FRAMES)
    far, turn, size = 0.36 * across, math.pi * time, math.log(1.5) * across
    hops = 0.34 - 0.68 * (2 * math.pi * torch.arange(FRAMES) / FRAMES).sin().abs()  # two, the second one unfinished
    courses = {
        "standing still": (nothing, nothing, nothing, nothing, full),
        "moving left": (-far, nothing, nothing, nothing, full),
        "moving right": (far, nothing, nothing, nothing, full),
        "moving up": (nothing, -far, nothing, nothing, full),
        "moving down": (nothing, far, nothing, nothing, full),
        "turning left": (nothing, nothing, -turn, nothing, full),
        "turning right": (nothing, nothing, turn, nothing, full),
        "growing": (nothing, nothing, nothing, size, full),
        "shrinking": (nothing, nothing, nothing, -size, full),
        "fading in": (nothing, nothing, nothing, nothing, time),
        "fading out": (nothing, nothing, nothing, nothing, 1 - time),
        "bouncing": (nothing, hops, nothing, nothing, full),
    }
    return torch.stack([torch.stack(courses[motion], dim=-1) for motion in MOTIONS])


def vary(count: int, reach: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw variations [count, 4] for `render` up to a `reach` [4], as `VARIATION`, on its device."""
    return (2 * torch.rand(count, 4, device=reach.device, generator=generator) - 1) * reach


def affine_maps(course: Tensor, variation: Tensor) -> Tensor:
    """Return the maps [B, F, 2, 3] from places in a frame to places in the picture.

    `course` [B, F, 5] as in `tracks`, `variation` [B, 4] as in `vary`.
    """
    right, down, growth, extent = variation[:, None].unbind(-1)
    x, y, turn, size, _ = (course * (1 + extent[..., None])).unbind(-1)
    x, y, scale = x + right, y + down, REST_SIZE * (1 + growth) * size.exp()
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    first = torch.stack([cosine, sine, -(cosine * x + sine * y)], dim=-1)
    second = torch.stack([-sine, cosine, sine * x - cosine * y], dim=-1)
    return torch.stack([first, second], dim=-2)


def render(pictures: Tensor, course: Tensor, variation: Tensor) -> Tensor:
    """Render clips [B, 3, 8, 32, 32] in [-1, 1], white where nothing is.

    Args:
        pictures: uint8 [B, 3, 32, 32].
        course: [B, 8, 5], rows of `tracks`.
        variation: [B, 4], from `vary`; zeros for none.
    """
    batch, frames = course.shape[:2]
    ink = (1 - pictures.float() / 255)[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
    maps = affine_maps(course, variation).flatten(0, 1)
    grid = functional.affine_grid(maps, [len(maps), 3, 2 * SIZE, 2 * SIZE], align_corners=False)
    fine = functional.grid_sample(ink, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    drawn = functional.avg_pool2d(fine.clamp(0, 1), 2) * course[..., 4].reshape(-1, 1, 1, 1)
    return (1 - 2 * drawn).view(batch, frames, 3, SIZE, SIZE).transpose(1, 2).contiguous()


def render_clip(picture: NDArray[np.uint8], motion: str, seed: int | None = None) -> NDArray[np.uint8]:
    """Return one clip, uint8 [8, 32, 32, 3], of a picture [32, 32, 3]; the seed varies it, None does not.

    Raises KeyError for a motion that is not one of `MOTIONS`.
    """
    course = dict(zip(MOTIONS, tracks(), strict=True))[motion][None]
    generator = torch.Generator().manual_seed(seed or 0)
    variation = torch.zeros(1, 4) if seed is None else vary(1, torch.tensor(VARIATION), generator)
    clip = render(torch.from_numpy(picture).permute(2, 0, 1)[None], course, variation)[0]
    frames: NDArray[np.uint8] = to_bytes(clip).permute(1, 2, 3, 0).numpy()
    return frames


def to_bytes(clips: Tensor) -> Tensor:
    """Turn values in [-1, 1] into uint8, as the runtime does."""
    return ((clips.clamp(-1, 1) + 1) * 127.5).round().byte()


def draw_clips(clips: Tensor, labels: Sequence[str]) -> Any:
    """Return a Pillow picture of clips [B, 3, F, S, S] in [-1, 1]: a row of frames each, with its label above."""
    from PIL import Image, ImageDraw

    cell, strip = 2 * clips.shape[-1], 14
    page = Image.new("RGB", (clips.shape[2] * (cell + 2), len(clips) * (cell + strip + 4)), "white")
    pen = ImageDraw.Draw(page)
    for row, (clip, label) in enumerate(zip(to_bytes(clips).permute(0, 2, 3, 4, 1).cpu().numpy(), labels, strict=True)):
        top = row * (cell + strip + 4)
        pen.text((2, top), label, fill="black")
        for column, frame in enumerate(clip):
            corner = (column * (cell + 2), top + strip)
            page.paste(Image.fromarray(frame).resize((cell, cell), Image.Resampling.NEAREST), corner)
            pen.rectangle((*corner, corner[0] + cell, corner[1] + cell), outline="lightgray")
    return page
