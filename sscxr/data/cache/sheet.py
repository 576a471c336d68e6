"""The contact sheet, on which a person checks the images' orientation. It names nobody."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sscxr.data.pixels.pictures import MASK_LUNG

COLUMNS, ROWS = 10, 10
TILE = 128  # px a side
CAPTION = 14  # px below a tile
GAP = 4


def draw(
    images: npt.NDArray[np.uint8], views: Sequence[str], masks: npt.NDArray[np.uint8] | None = None
) -> Image.Image:
    """Draw up to 100 images, evenly picked, each with its view below, and its lungs filled with stripes.

    Args:
        images: uint8 [N, S, S].
        views: the view of each; empty: unknown, shown as "?".
        masks: uint8 [N, S, S] of 255 lung, 127 ignored, 0 neither; None without masks.
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
        tile = Image.fromarray(np.asarray(images[number])).resize((TILE, TILE), Image.Resampling.LANCZOS)
        page.paste(tile if masks is None else _striped(tile, np.asarray(masks[number])), (x, y))
        pen.text((x + 2, y + TILE + 1), views[number] or "?", fill=220)
    return page


def _striped(tile: Image.Image, mask: npt.NDArray[np.uint8]) -> Image.Image:
    """Stripe the lungs of a tile, so that an inverted mask shows: its stripes are outside the lungs."""
    small = np.asarray(Image.fromarray(mask).resize(tile.size, Image.Resampling.NEAREST)) == MASK_LUNG
    rows, columns = np.indices(small.shape)
    return Image.fromarray(np.where(small & ((rows + columns) % 8 == 0), np.uint8(255), np.asarray(tile)))
