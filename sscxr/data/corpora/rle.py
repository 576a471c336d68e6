"""The run-length code of the SIIM-ACR pneumothorax masks, which differs from the usual one.

It has pairs of numbers: how many pixels to skip since the end of the last run, and how many are masked. Pixels
are counted down the columns, column after column. Several masks of one image are separated by |.
"""

import numpy as np
import numpy.typing as npt

SIDE = 1024  # px; every image of the challenge is a square of it


def decode(runs: str, side: int = SIDE) -> npt.NDArray[np.bool_]:
    """Return bool [side, side]: the union of an image's masks.

    Raises:
        ValueError: not whole numbers, an odd number of them, or runs that lead out of the image.
    """
    mask = np.zeros(side * side, dtype=bool)
    for start, end in _runs(runs, side):
        mask[start:end] = True
    return mask.reshape(side, side).T


def _runs(runs: str, side: int) -> npt.NDArray[np.int64]:
    found = []
    for one in runs.split("|"):
        try:
            numbers = np.array(one.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            raise ValueError("a run-length code with text that is not a whole number") from None
        if len(numbers) % 2 or (numbers < 0).any():
            raise ValueError(f"a run-length code of {len(numbers)} numbers; it has pairs of skip and length")
        ends = np.cumsum(numbers)[1::2]
        if len(ends) and (numbers.max() > side * side or ends[-1] > side * side):  # the sum may overflow
            raise ValueError(f"a run-length code that leads out of an image of {side} x {side} px")
        found.append(np.stack([ends - numbers[1::2], ends], axis=1))
    return np.concatenate(found)


def box(runs: str, side: int = SIDE) -> str:
    """Return the box around an image's masks, `pneumothorax x y width height`, without drawing them.

    Raises:
        ValueError: as for `decode`.
    """
    pairs = _runs(runs, side)
    pairs = pairs[pairs[:, 1] > pairs[:, 0]]
    if not len(pairs):
        return ""
    first, last = pairs[:, 0], pairs[:, 1] - 1
    left, right = int(first.min() // side), int(last.max() // side)
    if (first // side != last // side).any():
        top, bottom = 0, side - 1  # a run past the foot of a column continues at the head of the next
    else:
        top, bottom = int((first % side).min()), int((last % side).max())
    return f"pneumothorax {left} {top} {right - left + 1} {bottom - top + 1}"
