"""Refuses pixels that are not a radiograph, or a damaged one, however good the header is.

The bounds are ours. Each is far outside the range of 2,500 radiographs of five public collections at 256 px,
which is given beside it.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from sscxr.data.pixels.facts import Refused
from sscxr.data.pixels.greyrange import LOW_USED, MIN_USED, used

Bytes = npt.NDArray[np.uint8]

MIN_SIDE = 48  # px of the shorter side; below it, lung fields are not visible
MIN_LEVELS = 16  # fewer distinct grey levels are a mask, a drawing or a page of text
MAX_IN_FEW_LEVELS = 0.98  # of the pixels in the four commonest levels: the same, with blurred edges


def check(levels: Bytes) -> list[str]:
    """Refuse an image that is not a radiograph; return doubts.

    Args:
        levels: uint8 [H, W] of the whole image.

    Raises:
        Refused: with the reason.
    """
    if min(levels.shape) < MIN_SIDE:
        raise Refused("too small", f"{levels.shape[1]} x {levels.shape[0]} px, at least {MIN_SIDE} a side")
    histogram = np.array(Image.fromarray(levels).histogram())
    present = np.flatnonzero(histogram)
    if len(present) == 1 or (len(present) == 2 and present[1] - present[0] == 1):
        raise Refused("constant image")
    if len(present) < MIN_LEVELS:
        raise Refused("mask or drawing", f"only {len(present)} grey levels, not a radiograph")
    if np.sort(histogram)[-4:].sum() > MAX_IN_FEW_LEVELS * levels.size:
        raise Refused("mask or drawing", "nearly all of it in four grey levels, not a radiograph")
    share = used(np.arange(256) / 255, histogram)  # 0.26 to 0.99, half of them above 0.79
    if share < MIN_USED:
        raise Refused("too dark or too bright", f"nearly all of it within {share:.0%} of black to white")
    return ["low contrast: few of the grey levels are used"] if share < LOW_USED else []
