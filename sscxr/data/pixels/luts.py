"""Lookup tables of a header, and the modality's values: the first step from stored samples to grey levels.

Writers make many errors in descriptors. A table is used if it is unambiguous, even if a little short; otherwise
it is left out, with a warning.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from sscxr.data.pixels import elements

Floats = npt.NDArray[np.float64]

# Of a table's entries; the last one stands for them, as in DCMTK's dcm2pnm (the share is ours).
MOST_MISSING = 0.1
# Raised by malformed elements.
ERRORS = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)


def modality(values: Floats, header: Dataset) -> tuple[Floats, list[str]]:
    """Convert stored values to the modality's, by Modality LUT or else rescale (PS3.3 C.11.1); return warnings too.

    A table or a rescale that is empty, does not parse or gives values that are not finite is left out.
    """
    warnings: list[str] = []
    try:
        sequence = elements.get(header, "ModalityLUTSequence")
        if sequence:
            mapped, _, warnings = lookup(values, sequence[0], header, "modality LUT")
            return mapped, warnings
    except ERRORS:
        warnings.append("modality LUT not usable")
    try:
        slope, intercept = rescale(header, warnings)
        with np.errstate(over="raise", invalid="raise"):
            return values * slope + intercept, warnings
    except ERRORS:
        return values, [*warnings, "rescale not usable"]


def rescale(header: Dataset, doubts: list[str] | None = None) -> tuple[float, float]:
    """Return Rescale Slope and Intercept; 1 and 0 if not stated.

    Raises:
        ValueError: they are not one number each, or the slope is 0.
    """
    found = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        stated = elements.numbers(header, keyword, doubts)
        if len(set(stated)) > 1:
            raise ValueError(f"{keyword} has {len(stated)} values")
        found.append(stated[0] if stated else default)
    if found[0] == 0:
        raise ValueError("a slope of 0")
    return found[0], found[1]


def lookup(
    values: Floats, item: Dataset, header: Dataset, name: str
) -> tuple[Floats, list[float], list[str]]:
    """Apply a Modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1): first entry below its range, last above.

    pydicom's own functions compute the index in the type of the LUT's output, which wraps for 8-bit output.

    Returns:
        The mapped values; the largest value of the stated bits, and of as many bits as the entries use; warnings.

    Raises:
        ValueError: its entries do not match the descriptor.
    """
    described = elements.numbers(item, "LUTDescriptor")
    if len(described) != 3:
        raise ValueError("no LUT descriptor")
    entries, first, bits = (int(number) for number in described)
    entries = entries & 0xFFFF or 1 << 16  # of ambiguous VR; writers differ
    if elements.get(header, "PixelRepresentation") == 1 and first >= 1 << 15:
        first -= 1 << 16
    if not 1 <= bits <= 16:
        raise ValueError(f"a LUT of {bits} bits")
    little_endian = getattr(header, "original_encoding", (None, True))[1] is not False
    table = _table(item.LUTData, entries, bits, little_endian)
    if len(table) < (1 - MOST_MISSING) * entries:
        raise ValueError(f"a LUT of {len(table)} entries, described as {entries}")
    index = np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.int64)
    largest = int(table.max())
    held = max(2 ** largest.bit_length() - 1, 1)
    warnings = [f"{name} shorter than described"] if len(table) < entries else []
    return table.astype(np.float64)[index], [float(max(2**bits - 1, largest)), float(held)], warnings


def _table(data: Any, entries: int, bits: int, little_endian: bool) -> npt.NDArray[Any]:
    """Return the present entries: words, or bytes if there are as many bytes as entries of up to 8 bits."""
    order = "<"
    if isinstance(data, bytes):
        order = "<" if little_endian else ">"
    else:
        data = (np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF).astype("<u2").tobytes()
    if bits <= 8 and entries <= len(data) <= entries + 1:  # one of padding
        return np.frombuffer(data, "u1")[:entries]
    return np.frombuffer(data[: len(data) & ~1], f"{order}u2")[:entries]
