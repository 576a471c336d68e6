"""Masks that cannot be of lungs are not used, and the contact sheet shows those that are."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from layouts.base import picture
from PIL import Image

from sscxr.data.cache import sheet
from sscxr.data.pixels import mask_doubts
from sscxr.data.prepare.prepare import prepare

SIDE = 64


def lungs() -> npt.NDArray[np.uint8]:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[12:52, 8:28] = mask[12:52, 36:56] = 255
    return mask


def test_a_mask_of_lungs_is_taken() -> None:
    low = np.roll(lungs(), 12, axis=0)  # to the lower border
    for mask in (lungs(), low):
        assert mask_doubts.refusal(mask) == mask_doubts.doubt(mask) == ""


def test_what_is_no_mask_of_lungs() -> None:
    whole = np.full((SIDE, SIDE), 255, np.uint8)
    for mask in (255 - lungs(), whole):
        assert mask_doubts.refusal(mask) == "mask inverted or of the whole image"
    assert mask_doubts.refusal(whole // 255) == "mask without lung"
    half = lungs()
    half[:, :32][half[:, :32] > 0] = 127
    assert mask_doubts.doubt(half).startswith("mask ignores much")
    speck = np.zeros_like(half)
    speck[30:34, 30:34] = 255
    assert mask_doubts.doubt(speck) == "mask of hardly any lung"


@pytest.mark.parametrize("kind", ["right", "inverted", "alpha"])
def test_masks_of_files(kind: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    size = Image.open(tmp_path / "a.png").size
    mask = Image.fromarray(lungs() if kind != "inverted" else 255 - lungs()).resize(
        size, Image.Resampling.NEAREST
    )
    if kind == "alpha":
        white = Image.new("L", size, 255)
        mask = Image.merge("LA", (white, mask))
    mask.save(tmp_path / "m.png")
    (tmp_path / "m.csv").write_text("file,mask\na.png,m.png\n")
    cache = prepare([tmp_path / "m.csv"], tmp_path / "out", workers=0, progress=False)
    warning = cache.index["warnings"].iloc[0]
    assert ("mask inverted or of the whole image" in warning) == (kind != "right")
    assert cache.index["has_mask"].iloc[0] == (kind == "right")


def test_the_sheet_shows_where_the_masks_are() -> None:
    images = np.full((1, SIDE, SIDE), 90, np.uint8)
    plain, drawn = (np.asarray(sheet.draw(images, ["PA"], masks)) for masks in (None, lungs()[None]))
    changed = (plain != drawn)[sheet.GAP :, sheet.GAP :][: sheet.TILE, : sheet.TILE]
    inside = (
        np.asarray(Image.fromarray(lungs()).resize((sheet.TILE, sheet.TILE), Image.Resampling.NEAREST)) > 0
    )
    assert 0.1 < changed[inside].mean() < 0.2
    assert not changed[~inside].any()
