"""The contact sheet: what a person looks at to see that the images lie and hang right. It names nobody."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

COLUMNS, ROWS = 10, 10
TILE = 128  # px a side
CAPTION = 14  # px below a tile
GAP = 4


def draw(images: npt.NDArray[np.uint8], views: Sequence[str]) -> Image.Image:
    """Up to 100 images, evenly picked, each with its view below.

    Args:
        images: uint8 [N, S, S].
        views: the view of each; empty: unknown, shown as "?".
    """
    count = min(len(images), COLUMNS * ROWS)
    picked = np.linspace(0, max(len(images) - 1, 0), count).round().astype(np.int64)
    columns = max(1, min(COLUMNS, count))
    rows = max(1, -(-count // columns))
    width, height = TILE + GAP, TILE + CAPTION + GAP
    page = Image.new("L", (columns * width + GAP, rows * height + GAP), 24)
    pen = ImageDraw.Draw(page)
    for place, number in enumerate(picked):
        x, y = GAP + place % columns * width, GAP + place // columns * height
        page.paste(
            Image.fromarray(np.asarray(images[number])).resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y)
        )
        pen.text((x + 2, y + TILE + 1), views[number] or "?", fill=220)
    return page
