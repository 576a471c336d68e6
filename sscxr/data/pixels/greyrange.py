"""How much of black to white an image uses, and which values to call black and white where nothing says it.

Of 2,500 radiographs of five public collections the one that uses least shows 67 of 255 grey levels. What shows less
than half of that was given a range that is not its own: 12 bits in a table or a picture of 16, a white border.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Where nothing says what is black and white: the middle 99 % of the true pixels (ours).
PERCENTILES = (0.5, 99.5)
MIN_USED = 0.125  # of the range; below it, an image shows next to nothing (ours)
LOW_USED = 0.25  # below it, the image is doubtful (ours)
_INSIDE = (1.0, 99.0)  # percentiles that count as used, of what is neither black nor white (ours)
_ONE_GREY = (
    0.005  # a single one of many values with more of the pixels is a border, a marker or padding (ours)
)
_MANY = 64  # values (ours)


def used(greys: Floats, counts: Counts) -> float:
    """The share of black to white that an image uses, without what is wholly black or white.

    Args:
        greys: [N] grey levels, 0 black and 1 white.
        counts: [N] how many pixels have each.
    """
    inside = np.where((greys > 0) & (greys < 1), counts, 0)
    if not inside.any():
        return 1.0 if counts.any() else 0.0
    low, high = percentiles(greys, inside, _INSIDE)
    return high - low


def percentiles(
    values: Floats, counts: Counts, shares: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """The values [N] below which two shares, in percent, of the pixels counted lie."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order])
    ranks = np.searchsorted(cumulative, np.asarray(shares) / 100 * cumulative[-1], side="left")
    low, high = values[order][np.minimum(ranks, len(values) - 1)]
    return float(low), float(high)


def content(values: Floats, counts: Counts) -> tuple[float, float] | None:
    """Black and white of an image whose percentiles lie in a border or a marker; None where that does not help."""
    without = np.where(counts > _ONE_GREY * counts.sum(), 0, counts)
    if np.count_nonzero(without) < _MANY:
        return None
    low, high = percentiles(values, without)
    if high <= low:
        return None
    return (low, high) if used(np.clip((values - low) / (high - low), 0, 1), counts) >= MIN_USED else None
