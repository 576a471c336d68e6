"""One DICOM file to one grey image in 0..1, and what is known about it; or the reason why not.

The header decides first: modality, body part, intent, frames and size are checked before anything is decoded.
`greyscale.py` has the arithmetic of the pixel pipeline.
"""

import zlib  # before gdcm: its own zlib, if it is loaded first, breaks Python's
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from sscxr.data import codestream, gdcm_jpeg, greyscale, header
from sscxr.data.facts import Facts, Refused
from sscxr.data.greyscale import Turning
from sscxr.data.pictures import colour_to_grey

MAX_PIXELS = 50_000_000  # twice the largest chest detectors; more is a mistake or a bomb
MAX_PIXEL_BYTES = 8  # a pixel, uncompressed: three channels of 16 bits, and to spare
MAX_HEADER_BYTES = 64 << 20  # of a file beside its pixels, and of what of it is deflated
CHUNK = 1 << 20  # bytes of a deflated file that are read at once
PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)

Grey = npt.NDArray[np.float32]


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, by its magic (PS3.10 7.1) or, without one, by its name."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or (path.suffix.lower() in (".dcm", ".dicom", ".dic") and len(head) > 0)


def read(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[Grey, Facts, Turning]:
    """Read, check and decode a chest radiograph.

    Args:
        path: a DICOM file.
        max_pixels: rows times columns above which an image is refused before it is decoded.

    Returns:
        float32 [H, W] in 0..1, upright as a viewer shows it; the facts of the header; how it was turned.

    Raises:
        Refused: the file is not one grey, displayable chest radiograph, or cannot be read.
        OSError: the file cannot be opened.
    """
    if path.stat().st_size > max_pixels * MAX_PIXEL_BYTES + MAX_HEADER_BYTES:
        raise Refused("too large", f"a file of {path.stat().st_size >> 20} MB")
    head = _parse(path, stop_before_pixels=True)
    header.check_kind(head)
    _check_size(head, max_pixels)
    dataset = _parse(path, pixel_bytes=min(_pixel_bytes(head), max_pixels * MAX_PIXEL_BYTES))
    samples = _decode(dataset, _check_pixel_data(dataset))
    warnings = header.doubts(dataset)
    if samples.ndim == 3:
        grey, grey_range = colour_to_grey(samples), "8 bit"
    else:
        grey, grey_range, more = _displayed(samples, dataset)
        warnings += more
    turning = header.turning(dataset)
    facts = header.facts(dataset, grey_range, warnings)
    return greyscale.turn(grey, turning), facts, turning


def _parse(path: Path, *, stop_before_pixels: bool = False, pixel_bytes: int = 0) -> Dataset:
    try:
        dataset = _parse_deflated(path, stop_before_pixels=stop_before_pixels, pixel_bytes=pixel_bytes)
        if dataset is not None:
            return dataset
        try:
            return dcmread(path, stop_before_pixels=stop_before_pixels)
        except InvalidDicomError:  # no preamble: files from before PS3.10, or not DICOM at all
            dataset = dcmread(path, force=True, stop_before_pixels=stop_before_pixels)
            if "SOPClassUID" not in dataset or "Rows" not in dataset:
                raise Refused("not an image", "named like DICOM, but it is not") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise Refused("unreadable", f"not valid DICOM: {error}") from None
    except Refused:
        raise
    except Exception as error:  # a parser of hostile bytes may raise anything
        raise Refused("unreadable", f"not valid DICOM: {type(error).__name__}: {error}") from None
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def _parse_deflated(path: Path, *, stop_before_pixels: bool, pixel_bytes: int) -> Dataset | None:
    """A deflated file (PS3.5 A.5), as if it had been written without; None: the file is not deflated.

    pydicom would inflate all of it, a thousand times the file's size, before it shows the header. Here no more is
    inflated than a header may have, and than the header says that the pixels have.
    """
    with path.open("rb") as file:
        # As pydicom comes to the transfer syntax, so that no file is deflated to it that is not so here.
        read_preamble(file, True)
        meta = FileMetaDataset(_read_meta(file))
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return None
        limit = MAX_HEADER_BYTES + pixel_bytes
        inflated, whole = _inflate(file, limit)
    if not whole and not stop_before_pixels:
        raise Refused("too large", f"inflates to more than {limit >> 20} MB, its header says less")
    at_pixels = False

    def stop(tag: int, vr: str | None, length: int) -> bool:
        nonlocal at_pixels
        at_pixels = at_pixels or tag in PIXEL_DATA
        return at_pixels and stop_before_pixels

    dataset = read_dataset(BytesIO(inflated), False, True, stop_when=stop)
    if not whole and not at_pixels:
        raise Refused("too large", f"its header inflates to more than {limit >> 20} MB")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    return dataset


def _read_meta(file: BinaryIO) -> Dataset:
    """The elements of group 2 (PS3.10 7.1); the file is left behind them."""
    start = file.tell()
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    try:
        for element in list(meta.elements())[:1]:
            _ = meta[element.tag]
    except NotImplementedError:  # written without value representations, against the standard
        file.seek(start)
        meta = read_dataset(file, True, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return meta


def _inflate(file: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """What the rest of a file inflates to, at most `limit` bytes of it; whether that is all."""
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    while not inflater.eof and len(inflated) < limit:
        chunk = inflater.unconsumed_tail or file.read(CHUNK)
        if not chunk:
            raise Refused("truncated", "the deflated data have no end")
        inflated += inflater.decompress(chunk, limit - len(inflated))
    if inflater.eof:
        return bytes(inflated), True
    # The end of the stream may still be to come when the last byte is there; one byte more tells.
    more = inflater.decompress(inflater.unconsumed_tail + file.read(CHUNK), 1)
    if not more and not inflater.eof:
        raise Refused("truncated", "the deflated data have no end")
    return bytes(inflated), not more


def _pixel_bytes(head: Dataset) -> int:
    """Bytes of uncompressed pixels, as the header says."""
    numbers = (header.get(head, name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"))
    rows, columns, samples, bits = (number if isinstance(number, int) else 1 for number in numbers)
    return rows * columns * samples * bits // 8 + 1


def _check_size(head: Dataset, max_pixels: int) -> None:
    """Refuse by the header's numbers alone, before any pixel is read."""
    rows, columns = header.get(head, "Rows"), header.get(head, "Columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Refused("not an image", "DICOM without rows and columns")
    frames = header.get(head, "NumberOfFrames")
    if frames is not None and int(frames) > 1:
        raise Refused("multi-frame", f"{int(frames)} frames")
    if rows * columns > max_pixels:
        raise Refused("too large", f"{columns} x {rows} px, the limit is {max_pixels} px")
    samples = header.get(head, "SamplesPerPixel")
    if samples not in (None, 1, 3):
        raise Refused("unreadable", f"{samples} samples a pixel")


def _check_pixel_data(dataset: Dataset) -> bytes:
    """Refuse pixel data that are not of the size the header says; the compressed frame, or nothing."""
    if "PixelData" not in dataset:
        raise Refused("unreadable", "no pixel data")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        bits = rows * columns * int(header.get(dataset, "SamplesPerPixel") or 1) * int(dataset.BitsAllocated)
        said, there = (bits + 7) // 8, len(dataset.PixelData)
        if header.word(dataset, "PhotometricInterpretation") == "YBR_FULL_422":
            said = said * 2 // 3
        # A few bytes of padding are common; a whole row more means that rows or columns are not as said.
        if there < said or there > said + max(2, said // max(rows, 1) - 1):
            state = "truncated" if there < said else "unreadable"
            raise Refused(state, f"{there} bytes of pixels, the header says {said}")
        return b""
    return codestream.checked(dataset)


def _decode(dataset: Dataset, stream: bytes) -> npt.NDArray[Any]:
    """Stored samples, [H, W] of integers or [H, W, 3] of 8 bits, unused bits and sign put right.

    Args:
        dataset: with its pixels.
        stream: the compressed frame, if it is compressed.
    """
    allocated, stored = (
        int(dataset.BitsAllocated),
        int(header.get(dataset, "BitsStored") or dataset.BitsAllocated),
    )
    if not 1 < stored <= allocated <= 32:
        raise Refused("unreadable", f"{stored} bits stored of {allocated} allocated")
    plain = not stream or dataset.file_meta.TransferSyntaxUID == RLELossless
    try:
        options: dict[str, Any] = {"correct_unused_bits": False} if plain else {}
        plugin = _plugin(dataset.file_meta.TransferSyntaxUID, stored, stream)
        samples = pixel_array(dataset, decoding_plugin=plugin, **options)
    except Refused:
        raise
    except MemoryError:
        raise Refused("too large", "not enough memory to decode it") from None
    except Exception as error:
        raise Refused("unreadable", f"pixels not decodable: {type(error).__name__}: {error}") from None
    if samples.ndim == 3 and samples.shape[2] == 3:
        return samples
    if samples.ndim != 2 or not np.issubdtype(samples.dtype, np.integer):
        raise Refused("unreadable", f"decoded to shape {samples.shape} of {samples.dtype}")
    if header.word(dataset, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused("colour picture", header.word(dataset, "PhotometricInterpretation"))
    return _stored_bits(samples, dataset, stored) if plain else samples


def _plugin(syntax: UID, stored: int, stream: bytes) -> str:
    """The one of pydicom's plug-ins to decode by; pydicom's own order if it is empty."""
    # GDCM, which pydicom asks first, decodes in as many threads as there are cores, and takes more time in all.
    if syntax in JPEG2000TransferSyntaxes and codestream.starts_at_origin(stream):
        return "pylibjpeg"
    # For JPEG of 12 bits there is no other; of 8 bits and less pydicom has others and their special cases.
    if syntax in (JPEGLossless, JPEGLosslessSV1) or (syntax in gdcm_jpeg.SYNTAXES and stored > 8):
        return gdcm_jpeg.NAME
    return ""


def _stored_bits(samples: npt.NDArray[Any], dataset: Dataset, stored: int) -> npt.NDArray[Any]:
    """The stored bits alone, wherever High Bit puts them (PS3.5 8.1.1); the rest may hold overlays."""
    width = samples.dtype.itemsize * 8
    high = int(header.get(dataset, "HighBit") or stored - 1)
    if not stored - 1 <= high < width:
        high = stored - 1
    plain = samples.dtype.kind == "u" and high == stored - 1  # nothing below to drop, no sign to extend
    if stored == width or (plain and int(samples.max(initial=0)) < 1 << stored):
        return samples
    # Up until the high bit is the topmost, then down: this drops what lies above and below, and extends the sign.
    shifted: npt.NDArray[Any] = np.right_shift(np.left_shift(samples, width - 1 - high), width - stored)
    return shifted


def _displayed(samples: npt.NDArray[Any], dataset: Dataset) -> tuple[Grey, str, list[str]]:
    """Grey levels with padding and shutters black and out of the statistics; warnings."""
    warnings: list[str] = []
    hidden = greyscale.padding(samples, dataset)
    if "ShutterShape" in dataset:
        try:
            shutters = greyscale.shuttered(samples.shape, dataset)
        except (AttributeError, TypeError, ValueError):
            shutters = np.zeros(samples.shape, dtype=bool)
            warnings.append("shutter not usable")
        if shutters.mean() > 0.95:  # no shutter leaves so little (ours)
            warnings.append("shutter not usable")
        else:
            hidden |= shutters
    grey, grey_range, more = greyscale.displayed(samples, ~hidden, dataset)
    return grey, grey_range, warnings + more
