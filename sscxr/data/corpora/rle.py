"""The run-length code of the SIIM-ACR pneumothorax masks, which differs from the usual one.

It has pairs of numbers: how many pixels to skip since the end of the last run, and how many are masked. Pixels
are counted down the columns, column after column. Several masks of one image are separated by |.
"""

import numpy as np
import numpy.typing as npt

SIDE = 1024  # px; every image of the challenge is a square of it


def _runs(runs: str) -> npt.NDArray[np.int64]:
    found = []
    for one in runs.split("|"):
        try:
            numbers = np.array(one.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            raise ValueError("a run-length code with text that is not a whole number") from None
        if len(numbers) % 2 or (numbers < 0).any():
            raise ValueError(f"a run-length code of {len(numbers)} numbers; it has pairs of skip and length")
        ends = np.cumsum(numbers)[1::2]
        if len(ends) and (numbers.max() > SIDE * SIDE or ends[-1] > SIDE * SIDE):  # the sum may overflow
            raise ValueError(f"a run-length code that leads out of an image of {SIDE} x {SIDE} px")
        found.append(np.stack([ends - numbers[1::2], ends], axis=1))
    return np.concatenate(found)


def box(runs: str) -> str:
    """Return the box around an image's masks, `pneumothorax x y width height`, without drawing them.

    Raises:
        ValueError: not whole numbers, an odd number of them, or runs that lead out of the image.
    """
    pairs = _runs(runs)
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    if not len(pairs):
        return ""
    first, last = pairs[:, 0], pairs[:, 1] - 1
    left, right = int(first.min() // SIDE), int(last.max() // SIDE)
    if (first // SIDE != last // SIDE).any():
        top, bottom = 0, SIDE - 1  # a run past the foot of a column continues at the head of the next
    else:
        top, bottom = int((first % SIDE).min()), int((last % SIDE).max())
    return f"pneumothorax {left} {top} {right - left + 1} {bottom - top + 1}"
