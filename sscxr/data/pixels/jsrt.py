"""The raw radiographs of the JSRT database: 2048 x 2048 samples of 12 bits, big-endian, without a header.

They are densities of digitised film: a large value is dark (Shiraishi et al. 2000).
"""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sscxr.data.pixels.facts import Facts, Refused
from sscxr.data.pixels.greyscale import AS_STORED, Turning

SIDE = 2048  # px
SPACING = 0.175  # mm a pixel
LARGEST = 4095
_NAME = re.compile(r"JPC[LN]N\d{3}\.IMG", re.IGNORECASE)


def is_jsrt(file: Path) -> bool:
    """Return whether a file is one of the database's, by its name and size, as it has no header."""
    return _NAME.fullmatch(file.name) is not None and file.stat().st_size == 2 * SIDE * SIDE


def read(file: Path) -> tuple[npt.NDArray[np.float32], Facts, Turning]:
    """Return grey levels, float32 [2048, 2048] in 0..1, bone bright; the facts; the turning, which is none.

    Raises:
        Refused: samples of more than 12 bits.
        OSError: the file cannot be opened.
    """
    samples = np.fromfile(file, dtype=">u2").reshape(SIDE, SIDE)
    if samples.max() > LARGEST:
        raise Refused("unreadable", "samples of more than 12 bits")
    grey = np.float32(1) - samples.astype(np.float32) / np.float32(LARGEST)
    return grey, Facts(spacing_mm=SPACING, grey_range="full range"), AS_STORED
