"""Pictures of a model's predictions, drawn over the radiograph: outlines and heat. They do not name the patient."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Levels = npt.NDArray[np.uint8]

LONGEST = 1024  # px of an overlay's longer side, at most
PANEL = 512  # px of a panel's longer side
CAPTION = 18  # px above a panel
OUTLINE = (255, 176, 0)
STRENGTH = 0.6  # opacity of the hottest place


def outlined(levels: Levels, mask: npt.NDArray[np.bool_]) -> Image.Image:
    """Draw the radiograph with the outline of a mask.

    Args:
        levels: uint8 [H, W].
        mask: bool [H, W].
    """
    scale = min(1.0, LONGEST / max(levels.shape))
    size = (max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale)))
    page = Image.fromarray(levels).resize(size, Image.Resampling.LANCZOS).convert("RGB")
    filled = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    width = 2 * max(1, max(size) // 500) + 1
    edge = np.asarray(filled) > np.asarray(filled.filter(ImageFilter.MinFilter(width)))
    page.paste(OUTLINE, mask=Image.fromarray(edge.astype(np.uint8) * 255))
    return page


def heated(levels: Levels, heats: Sequence[npt.NDArray[np.float32]], captions: Sequence[str]) -> Image.Image:
    """Draw the radiograph, and beside it a copy for each map with the map's heat on it.

    Args:
        levels: uint8 [H, W].
        heats: float32 [H, W] each; the hotter half is drawn, relative to each map's hottest place.
        captions: those of the maps.
    """
    scale = PANEL / max(levels.shape)
    size = (max(1, round(levels.shape[1] * scale)), max(1, round(levels.shape[0] * scale)))
    base = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.LANCZOS), dtype=np.float32)[
        ..., None
    ]
    page = Image.new("RGB", ((len(heats) + 1) * size[0], size[1] + CAPTION), (24, 24, 24))
    page.paste(Image.fromarray(base[..., 0].astype(np.uint8)).convert("RGB"), (0, CAPTION))
    pen = ImageDraw.Draw(page)
    for place, (heat, caption) in enumerate(zip(heats, captions, strict=True), 1):
        small = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))[..., None]
        cold, hot = float(np.median(small)), float(small.max())
        share = np.clip((small - cold) / max(hot - cold, 1e-12), 0, 1)
        colour = np.concatenate([np.full_like(share, 255), 255 * share, np.zeros_like(share)], axis=2)
        mixed = base * (1 - STRENGTH * share) + colour * STRENGTH * share
        page.paste(Image.fromarray(mixed.astype(np.uint8)), (place * size[0], CAPTION))
        pen.text((place * size[0] + 4, 3), caption, fill=(230, 230, 230))
    return page
