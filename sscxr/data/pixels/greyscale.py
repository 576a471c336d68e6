"""Stored DICOM samples to grey levels as a viewer shows them: functions over arrays, no files.

The order is the standard's (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2; PS3.4 N.2): stored value, modality, values of
interest, polarity, orientation. Every step up to the polarity maps samples independently, so it is computed once
for each stored value that occurs, not once per pixel.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing

from sscxr.data.pixels import elements, luts
from sscxr.data.pixels.facts import Refused
from sscxr.data.pixels.greyrange import MIN_USED, content, percentiles, used

Floats = npt.NDArray[np.float64]
Grey = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Turning = tuple[bool, bool, bool]  # transpose, then flip left and right, then flip top and bottom
AS_STORED: Turning = (False, False, False)
# A window or LUT that clips more than this share of the true pixels does not show the image (ours).
MAX_CLIPPED = 0.95
BORDER = "white border or marker left out of the grey range"
_BAND = 1 << 16  # pixels worked on at a time


def displayed(
    stored: npt.NDArray[Any], true_pixels: npt.NDArray[np.bool_], header: Dataset
) -> tuple[Grey, str, list[str]]:
    """Convert stored samples to grey levels.

    Args:
        stored: integers [H, W], sign and unused bits already corrected.
        true_pixels: bool [H, W], False under padding and shutters.
        header: the image's attributes.

    Returns:
        float32 [H, W] in 0..1, 0 outside true pixels; the source of the range; warnings.

    Raises:
        Refused: no true pixel, or a range of values that no radiograph has.
    """
    if not true_pixels.any():
        raise Refused("constant image", "padding or shutters cover all of it")
    low = int(stored.min())
    span = int(stored.max()) - low + 1
    if span > 1 << 20:
        raise Refused("odd pixel values", f"a range of {span} stored values")
    counts = _counts(stored, true_pixels, low, span)
    values, warnings = luts.modality(np.arange(low, low + span, dtype=np.float64), header)
    greys, grey_range, more = _values_of_interest(values, counts, header)
    warnings += more
    if is_inverse(header):
        greys = 1.0 - greys
    grey = np.empty(stored.shape, np.float32)
    first = _first_index(low, span)
    table = np.concatenate([np.zeros(low - first, np.float32), greys.astype(np.float32)])
    for rows in bands(stored.shape):
        # None is out of range; unlike "raise", "clip" makes no copy.
        np.take(table, _indices(stored[rows], first), out=grey[rows], mode="clip")
    if not true_pixels.all():
        grey[~true_pixels] = 0.0
    return grey, grey_range, warnings


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of an image in bands, so that intermediates stay in the processor's cache."""
    step = max(1, _BAND // max(1, shape[1]))
    return (slice(first, first + step) for first in range(0, shape[0], step))


def _counts(
    stored: npt.NDArray[Any], true_pixels: npt.NDArray[np.bool_], low: int, span: int
) -> npt.NDArray[np.int64]:
    """Count the true pixels with each of `span` stored values from `low`."""
    first, every = _first_index(low, span), bool(true_pixels.all())
    counts = np.zeros(low - first + span, np.int64)
    # Many possible values: adding up their counts for each band would take too long.
    parts = bands(stored.shape) if len(counts) <= _BAND else [slice(None)]
    for rows in parts:
        indices = _indices(stored[rows], first)
        counts += np.bincount(indices.ravel() if every else indices[true_pixels[rows]], minlength=len(counts))
    return counts[low - first :]


def _first_index(low: int, span: int) -> int:
    """Return the stored value of a table's first entry: 0 if the table stays small, so that samples are indices."""
    return 0 if 0 <= low <= _BAND - span else low


def _indices(stored: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    """Return the indices of samples in a table that begins with the stored value `first`."""
    return stored if first == 0 else np.subtract(stored, first, dtype=np.int64)


def is_inverse(header: Dataset) -> bool:
    """Return whether the lowest value is white: MONOCHROME1 (PS3.3 C.7.6.3.1.2) or Presentation LUT Shape INVERSE.

    In a digital X-ray INVERSE goes with MONOCHROME1 and means the same (C.8.11.3.1.2), so it is one inversion.
    """
    shape = elements.word(header, "PresentationLUTShape")
    return elements.word(header, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE"


def _values_of_interest(values: Floats, counts: Counts, header: Dataset) -> tuple[Floats, str, list[str]]:
    """Apply VOI LUT, else window, else percentiles; 8 bits without either keep their range (PS3.3 C.11.2).

    A table or window that hides the image, or leaves it nearly black, is skipped with a warning.
    """
    warnings: list[str] = []
    for name, apply in (("voi lut", _voi_luts), ("window", _windows), ("8 bit", _eight_bits)):
        try:
            tried = list(apply(values, header))
        except luts.ERRORS:
            warnings.append(f"{name} not usable")
            continue
        for greys, doubts in tried:
            if _shows(greys, values, counts):
                return greys, name, warnings + doubts
        if tried:
            warnings.append(f"{name} not usable (hides the image)")
    low, high = percentiles(values, counts)
    if high > low:
        greys = np.clip((values - low) / (high - low), 0, 1)
        within = content(values, counts) if used(greys, counts) < MIN_USED else None
        if within is None:
            return greys, "percentiles", warnings
        low, high = within
        return np.clip((values - low) / (high - low), 0, 1), "percentiles", [*warnings, BORDER]
    occurs = counts > 0
    low, high = float(values[occurs].min()), float(values[occurs].max())
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1), "full range", warnings


def _shows(greys: Floats, values: Floats, counts: Counts) -> bool:
    """Return whether grey levels show the image: not clipped, not constant, not in a small part of the range."""
    occurs = counts > 0
    if np.ptp(greys[occurs]) == 0:
        return bool(np.ptp(values[occurs]) == 0)
    return _clipped(greys, counts) <= MAX_CLIPPED and used(greys, counts) >= MIN_USED


def _voi_luts(values: Floats, header: Dataset) -> Iterator[tuple[Floats, list[str]]]:
    """Yield the first table, by its stated bits, then by those that its entries use: some state 16 and use 12."""
    sequence = elements.get(header, "VOILUTSequence")
    if not sequence:
        return
    mapped, (stated, held), warnings = luts.lookup(values, sequence[0], header, "voi lut")
    yield mapped / stated, warnings
    if held < stated:
        yield mapped / held, [*warnings, "voi lut of fewer bits than it states"]


def _windows(values: Floats, header: Dataset) -> Iterator[tuple[Floats, list[str]]]:
    """Yield the first window, by its function: LINEAR, LINEAR_EXACT or SIGMOID (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    doubts: list[str] = []
    stated = [elements.numbers(header, name, doubts) for name in ("WindowCenter", "WindowWidth")]
    if not all(stated):
        return
    view = Dataset()  # only what the window needs: nothing else in the header can change its output range
    view.PhotometricInterpretation, view.BitsStored, view.PixelRepresentation = "MONOCHROME2", 16, 0
    view.WindowCenter, view.WindowWidth = (found[0] for found in stated)
    view.VOILUTFunction = elements.word(header, "VOILUTFunction") or "LINEAR"
    with np.errstate(over="ignore"):  # a steep sigmoid saturates
        greys: Floats = apply_windowing(values, view) / (2**16 - 1)
    if not np.isfinite(greys).all():
        raise ValueError("a window that is not finite")
    yield greys, doubts


def _eight_bits(values: Floats, header: Dataset) -> Iterator[tuple[Floats, list[str]]]:
    """Yield the range of at most 8 bits, if the values are as stored."""
    bits = int(elements.get(header, "BitsStored") or 16)
    if bits > 8 or elements.get(header, "ModalityLUTSequence"):
        return
    try:
        changed = luts.rescale(header) != (1, 0)
    except ValueError:  # not usable, so the values are as stored
        changed = False
    if not changed:
        signed = elements.get(header, "PixelRepresentation") == 1
        yield (values + (2 ** (bits - 1) if signed else 0)) / (2**bits - 1), []


def _clipped(greys: Floats, counts: Counts) -> float:
    """Return the share of true pixels at either end of the range."""
    ends = (greys <= 0) | (greys >= 1)
    return float(counts[ends].sum() / counts.sum())


def padding(stored: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.bool_]:
    """Return bool [H, W]: samples that pad the image to a rectangle (PS3.3 C.7.5.1.1.2), a value or a range."""
    value = elements.get(header, "PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, dtype=bool)
    limit = elements.get(header, "PixelPaddingRangeLimit")
    ends = [value, limit if isinstance(limit, int) else value]
    if elements.get(header, "PixelRepresentation") == 1:  # of ambiguous VR; writers differ
        ends = [end - (1 << 16) if end >= 1 << 15 else end for end in ends]
    covered: npt.NDArray[np.bool_] = (stored >= min(ends)) & (stored <= max(ends))
    return covered


def shuttered(stored: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.bool_]:
    """Return bool [H, W]: pixels that any display shutter hides (PS3.3 C.7.6.11).

    Rows and columns of the attributes count from 1.
    """
    shape = stored.shape
    hidden = np.zeros(shape, dtype=bool)
    named = elements.get(header, "ShutterShape") or ""
    shapes = [named] if isinstance(named, str) else list(named)
    rows, columns = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    for name in (str(one).strip().upper() for one in shapes):
        if name == "RECTANGULAR":
            left, right = header.ShutterLeftVerticalEdge, header.ShutterRightVerticalEdge
            upper, lower = header.ShutterUpperHorizontalEdge, header.ShutterLowerHorizontalEdge
            hidden |= (columns < left) | (columns > right) | (rows < upper) | (rows > lower)
        elif name == "CIRCULAR":
            row, column = header.CenterOfCircularShutter
            hidden |= (rows - row) ** 2 + (columns - column) ** 2 > int(header.RadiusOfCircularShutter) ** 2
        elif name == "POLYGONAL":
            corners = [int(number) - 1 for number in header.VerticesOfThePolygonalShutter]
            opening = Image.new("1", (shape[1], shape[0]))
            points = list(zip(corners[1::2], corners[0::2], strict=True))
            ImageDraw.Draw(opening).polygon(points, fill=1, outline=1)
            hidden |= ~np.asarray(opening)
    return hidden


def upright(patient_orientation: Sequence[str]) -> Turning:
    """Return how to turn an image as a viewer shows it, from Patient Orientation (PS3.3 C.7.6.1.1.1).

    The attribute gives the direction of the rows, then of the columns: L\\F is an upright frontal view with the
    patient's left on the right of the picture. R\\F is its mirror image. A lateral's rows point A or P; both are
    right.

    Returns:
        Whether to transpose, then flip left and right, then flip top and bottom.
    """
    rows, columns = (str(direction).strip().upper()[:1] for direction in patient_orientation)
    vertical, sideways = {"F", "H"}, {"L", "R", "A", "P"}
    if rows in vertical and columns in sideways:
        transpose, rows, columns = True, columns, rows
    elif rows in sideways and columns in vertical:
        transpose = False
    else:
        return AS_STORED
    upside_down = columns == "H"
    if rows in {"L", "R"}:
        return transpose, rows == "R", upside_down
    # A lateral may point either way, so it is only ever rotated: a transpose needs one flip, a half turn two.
    return transpose, transpose != upside_down, upside_down


def turn(image: npt.NDArray[Any], turning: Turning) -> npt.NDArray[Any]:
    """Apply what `upright` returned to an array [H, W]."""
    transpose, mirror, flip = turning
    image = image.T if transpose else image
    image = image[:, ::-1] if mirror else image
    image = image[::-1] if flip else image
    return np.ascontiguousarray(image)


def turn_back(image: npt.NDArray[Any], turning: Turning) -> npt.NDArray[Any]:
    """Undo `turn`, from the image as shown to the pixels as stored."""
    transpose, mirror, flip = turning
    return turn(image, (True, flip, mirror) if transpose else turning)  # a transpose exchanges the flips
