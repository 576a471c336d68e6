"""One DICOM file to one grey image in 0..1 and its facts, or the reason for a refusal.

The header is checked first: modality, body part, intent, frames and size, before anything is decoded.
`greyscale.py` has the arithmetic of the pixel pipeline.
"""

import zlib  # noqa: F401 - before gdcm: its own zlib, if it is loaded first, breaks Python's
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLossless, JPEGLosslessSV1, RLELossless

from sscxr.data.pixels import codestream, gdcm_jpeg, greyscale, header, luts
from sscxr.data.pixels.elements import get, told, word
from sscxr.data.pixels.facts import Facts, Refused
from sscxr.data.pixels.greyscale import Turning
from sscxr.data.pixels.parsing import MAX_HEADER_BYTES, parse
from sscxr.data.pixels.pictures import colour_to_grey

MAX_PIXELS = 50_000_000  # twice the largest chest detectors; more is a mistake or a bomb
MAX_PIXEL_BYTES = 8  # a pixel, uncompressed: more than three channels of 16 bits
MAX_HIDDEN = 0.95  # the largest share of an image that padding or a shutter may hide (ours)
# Required attributes of an image (PS3.3 C.7.6.3), and their values if a file lacks them.
_UNSTATED = {"SamplesPerPixel": 1, "PixelRepresentation": 0, "PlanarConfiguration": 0}

Grey = npt.NDArray[np.float32]


def read(
    path: Path, *, max_pixels: int = MAX_PIXELS, chest_words: Collection[str] = ()
) -> tuple[Grey, Facts, Turning]:
    """Read, check and decode a chest radiograph.

    Args:
        path: a DICOM file.
        max_pixels: rows times columns above which an image is refused before it is decoded.
        chest_words: further words for a chest, beside those of `body_parts`.

    Returns:
        float32 [H, W] in 0..1, upright as a viewer shows it; the facts of the header; how it was turned.

    Raises:
        Refused: the file is not one grey, displayable chest radiograph, or cannot be read.
        OSError: the file cannot be opened.
    """
    if path.stat().st_size > max_pixels * MAX_PIXEL_BYTES + MAX_HEADER_BYTES:
        raise Refused("too large", f"a file of {path.stat().st_size >> 20} MB")
    head = parse(path, stop_before_pixels=True)
    header.check_kind(head, chest_words)
    _check_size(head, max_pixels)
    dataset = parse(path, pixel_bytes=min(_pixel_bytes(head), max_pixels * MAX_PIXEL_BYTES))
    warnings = header.doubts(dataset) + _completed(dataset)
    stream, more = _check_pixel_data(dataset)
    samples = _decode(dataset, stream)
    warnings += more
    if samples.ndim == 3:
        grey, grey_range = colour_to_grey(samples), "8 bit"
    else:
        grey, grey_range, more = _displayed(samples, dataset)
        warnings += more
    turning = header.turning(dataset)
    facts = header.facts(dataset, grey_range, warnings)
    return greyscale.turn(grey, turning), facts, turning


def _pixel_bytes(head: Dataset) -> int:
    """Return the bytes of uncompressed pixels, according to the header."""
    numbers = (get(head, name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
    rows, columns, samples, bits = (number if isinstance(number, int) else 1 for number in numbers)
    return rows * columns * samples * bits // 8 + 1


def _check_size(head: Dataset, max_pixels: int) -> None:
    """Check the header's numbers before any pixel is read."""
    rows, columns = get(head, "Rows"), get(head, "Columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Refused("not an image", "DICOM without rows and columns")
    if rows * columns <= 0:
        raise Refused("unreadable", f"{columns} x {rows} px")
    frames = get(head, "NumberOfFrames")
    if isinstance(frames, int) and frames > 1:
        raise Refused("multi-frame", f"{int(frames)} frames")
    if rows * columns > max_pixels:
        raise Refused("too large", f"{columns} x {rows} px, the limit is {max_pixels} px")
    samples = get(head, "SamplesPerPixel")
    if samples not in (None, 1, 3):
        raise Refused("unreadable", f"{samples} samples a pixel")


def _completed(dataset: Dataset) -> list[str]:
    """Complete a missing or lower-case description of the pixels; return warnings."""
    allocated = get(dataset, "BitsAllocated")
    if not isinstance(allocated, int):
        raise Refused("unreadable", "the header does not state how many bits a pixel has")
    if "NumberOfFrames" in dataset and get(dataset, "NumberOfFrames") != 1:
        del dataset.NumberOfFrames  # blank or not a number: more than one was refused
    warnings: list[str] = []
    for keyword, value in {"BitsStored": allocated, **_UNSTATED}.items():
        if not isinstance(get(dataset, keyword), int):
            setattr(dataset, keyword, value)
            if keyword != "PlanarConfiguration":  # which grey images do not need
                warnings = ["description of the pixels not complete"]
    dataset.PhotometricInterpretation = word(dataset, "PhotometricInterpretation")
    return warnings


def _check_pixel_data(dataset: Dataset) -> tuple[bytes, list[str]]:
    """Check the size of pixel data against the header; return the compressed frame, or nothing, and warnings."""
    if not isinstance(get(dataset, "PixelData"), bytes):
        raise Refused("unreadable", "no pixel data")
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if not syntax.is_transfer_syntax:
        raise Refused("unreadable", f"transfer syntax {told(syntax)} is not known")
    if syntax.is_compressed:
        return codestream.checked(dataset), []
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    expected = (rows * columns * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) + 7) // 8
    there = len(dataset.PixelData)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        expected = expected * 2 // 3
    # A few bytes of padding are common, and some write a whole row; more means that the header is another
    # image's.
    if there < expected or there > expected + max(2, expected // rows):
        state = "truncated" if there < expected else "unreadable"
        raise Refused(state, f"{there} bytes of pixels, the header states {expected}")
    return b"", ["one row of pixels more than the header states"] if there > expected + 2 else []


def _decode(dataset: Dataset, stream: bytes) -> npt.NDArray[Any]:
    """Return stored samples, integers [H, W] or [H, W, 3] of 8 bits, with unused bits and sign corrected."""
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if not 1 < stored <= allocated <= 32:
        raise Refused("unreadable", f"{stored} bits stored of {allocated} allocated")
    if word(dataset, "PhotometricInterpretation") == "":
        raise Refused("unreadable", "no photometric interpretation")
    plain = not stream or dataset.file_meta.TransferSyntaxUID == RLELossless
    try:
        options: dict[str, Any] = {"correct_unused_bits": False} if plain else {}
        plugin = _plugin(dataset.file_meta.TransferSyntaxUID, stored, stream)
        samples = pixel_array(dataset, decoding_plugin=plugin, **options)
    except MemoryError:
        raise Refused("too large", "not enough memory to decode it") from None
    except Exception:  # a decoder of hostile bytes may raise anything
        raise Refused("unreadable", "pixels not decodable") from None
    if samples.ndim == 3 and samples.shape[2] == 3:
        return samples
    if samples.ndim != 2 or not np.issubdtype(samples.dtype, np.integer):
        raise Refused("unreadable", "the pixels are not one picture of whole numbers")
    if word(dataset, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused("colour picture", told(word(dataset, "PhotometricInterpretation")))
    return _stored_bits(samples, dataset, stored) if plain else samples


def _plugin(syntax: UID, stored: int, stream: bytes) -> str:
    """Return the pydicom plug-in to decode with; empty: pydicom's own order."""
    # GDCM, which pydicom tries first, decodes in one thread per core, and takes more time in all.
    if syntax in JPEG2000TransferSyntaxes and codestream.starts_at_origin(stream):
        return "pylibjpeg"
    # For JPEG of 12 bits it is the only one; for 8 bits and less pydicom has others and their special cases.
    if syntax in (JPEGLossless, JPEGLosslessSV1) or (syntax in gdcm_jpeg.SYNTAXES and stored > 8):
        return gdcm_jpeg.NAME
    return ""


def _stored_bits(samples: npt.NDArray[Any], dataset: Dataset, stored: int) -> npt.NDArray[Any]:
    """Return the stored bits alone, wherever High Bit puts them (PS3.5 8.1.1); the rest may hold overlays."""
    width = samples.dtype.itemsize * 8
    high = int(get(dataset, "HighBit") or stored - 1)
    if not stored - 1 <= high < width:
        high = stored - 1
    plain = samples.dtype.kind == "u" and high == stored - 1  # nothing below to drop, no sign to extend
    if stored == width or (plain and int(samples.max(initial=0)) < 1 << stored):
        return samples
    # Shift up until the high bit is the topmost, then down: this drops other bits, and extends the sign.
    shifted: npt.NDArray[Any] = np.right_shift(np.left_shift(samples, width - 1 - high), width - stored)
    return shifted


def _displayed(samples: npt.NDArray[Any], dataset: Dataset) -> tuple[Grey, str, list[str]]:
    """Return grey levels, with padding and shutters black and out of the statistics, and warnings."""
    warnings: list[str] = []
    hidden = np.zeros(samples.shape, dtype=bool)
    for name, find in (("padding", greyscale.padding), ("shutter", greyscale.shuttered)):
        try:
            covered = find(samples, dataset)
        except luts.ERRORS:
            warnings.append(f"{name} not usable")
            continue
        if covered.mean() > MAX_HIDDEN:
            warnings.append(f"{name} not usable")
        else:
            hidden |= covered
    grey, grey_range, more = greyscale.displayed(samples, ~hidden, dataset)
    return grey, grey_range, warnings + more
