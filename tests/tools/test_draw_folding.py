"""The picture of docs/folding.md is the one that the tool draws."""

import pathlib

import numpy as np
import pytest
from PIL import Image

PUBLISHED = pathlib.Path(__file__).parent.parent.parent / "docs/folding.png"


def test_the_published_picture_is_what_the_tool_draws(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    from tools.draw_folding import draw

    draw(tmp_path / "folding.png")
    with Image.open(tmp_path / "folding.png") as drawn, Image.open(PUBLISHED) as published:
        assert drawn.size == published.size
        ours, theirs = (np.asarray(image.convert("L"), np.float64) for image in (drawn, published))
    # Another version of matplotlib may smooth an edge otherwise; a changed picture differs in whole areas.
    assert np.mean(np.abs(ours - theirs) > 64) < 0.005
