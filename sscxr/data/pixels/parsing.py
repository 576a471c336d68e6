"""The bytes of a DICOM file to pydicom's dataset, with limits on inflated bytes and on the number of elements.

Files without the parts that PS3.10 requires (preamble, meta information, transfer syntax) are read as far as
their elements are self-explanatory.
"""

import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from sscxr.data.pixels.facts import Refused

MAX_HEADER_BYTES = 64 << 20  # of a file beside its pixels, also when inflated
MAX_ELEMENTS = 100_000  # before the pixels; radiographs have about a hundred (ours)
CHUNK = 1 << 20  # bytes of a deflated file to read at a time
PIXEL_DATA = (0x7FE00008, 0x7FE00009, 0x7FE00010)
ENDINGS = (".dcm", ".dicom", ".dic")

Stop = Callable[[int, str | None, int], bool]


def is_dicom(path: Path) -> bool:
    """Return whether to read a file as DICOM: by its magic (PS3.10 7.1), its first element, or its name."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or begins_with_an_element(head) or path.suffix.lower() in ENDINGS


def begins_with_an_element(head: bytes) -> bool:
    """Return whether bytes begin like a dataset without a preamble: with a short element of group 2 or 8."""
    if head[:2] in (b"\0\2", b"\0\x08"):  # big-endian, which is always explicit
        return head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] not in (b"\2\0", b"\x08\0"):
        return False
    if head[4:6].isalpha() and head[4:6].isupper():
        return True
    at = 8 + int.from_bytes(head[4:8], "little")
    return at < 1024 and (at + 2 > len(head) or head[at : at + 2] == head[:2])


def parse(path: Path, *, stop_before_pixels: bool = False, pixel_bytes: int = 0) -> Dataset:
    """Return the elements of a file up to its pixels, with a transfer syntax in its `file_meta`.

    Args:
        path: a file that `is_dicom`.
        stop_before_pixels: whether to leave the pixels out.
        pixel_bytes: of uncompressed pixels, from the header; a deflated file may inflate to at most that.

    Raises:
        Refused: it is not DICOM, or larger than a radiograph.
        OSError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            dataset = _dataset(file, stop_before_pixels, pixel_bytes)
    except OSError as error:
        if error.errno is not None:
            raise
        raise Refused("unreadable", "not valid DICOM") from None
    except Refused:
        raise
    except Exception:  # a parser of hostile bytes may raise anything
        raise Refused("unreadable", "not valid DICOM") from None
    if not dataset:
        raise Refused("not an image", "named like DICOM, but it is not")
    return dataset


def _dataset(file: BinaryIO, stop_before_pixels: bool, pixel_bytes: int) -> Dataset:
    has_preamble = read_preamble(file, True) is not None
    meta = FileMetaDataset(_read_meta(file))
    syntax = meta.get("TransferSyntaxUID")
    stop = _Stop(stop_before_pixels)
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset = _inflated(file, stop, pixel_bytes)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
    else:
        implicit, little = _encoding(file, syntax)
        dataset = _read(file, implicit, little, stop)
        if not syntax:
            meta.TransferSyntaxUID = _plain_syntax(dataset)
    dataset.file_meta = meta
    if not has_preamble and "Rows" not in dataset:
        raise Refused("not an image", "named like DICOM, but it is not")
    return dataset


class _Stop:
    """pydicom's callback, at each element, that decides whether to stop: at the pixels, or after them."""

    def __init__(self, before_pixels: bool) -> None:
        self.before_pixels, self.at_pixels, self._elements = before_pixels, False, 0

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise Refused("unreadable", f"more than {MAX_ELEMENTS} elements before its pixels")
        if self.at_pixels:
            return True
        self.at_pixels = tag in PIXEL_DATA
        return self.at_pixels and self.before_pixels


def _read(file: BinaryIO, implicit: bool, little: bool, stop: Stop) -> Dataset:
    """Read pydicom's dataset; without the character set if Python does not know it."""
    start = file.tell()
    try:
        return read_dataset(file, implicit, little, stop_when=stop)
    except ValueError as error:
        if isinstance(error, Refused) or "null character" not in str(error):
            raise
    file.seek(start)
    head = bytearray(file.read(MAX_HEADER_BYTES))
    at = head.find(b"\x08\0\x05\0" if little else b"\0\x08\0\x05")
    explicit = head[at + 4 : at + 6] == b"CS"
    length = head[at + 6 : at + 8] if explicit else head[at + 4 : at + 8]
    size = min(int.from_bytes(length, "little" if little else "big"), 256)
    head[at + 8 : at + 8 + size] = b" " * size
    whole = BytesIO(bytes(head) + file.read())
    return read_dataset(whole, implicit, little, stop_when=_Stop(getattr(stop, "before_pixels", False)))


def _encoding(file: BinaryIO, syntax: UID | None) -> tuple[bool, bool]:
    """Return whether the following elements lack value representations, and are little-endian (PS3.5 7.1)."""
    if syntax:
        return syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    head = file.read(8)
    file.seek(-len(head), 1)
    implicit = not (head[4:6].isalpha() and head[4:6].isupper())
    # Groups of a header are small numbers: 8 in the wrong byte order is 2048.
    return implicit, implicit or int.from_bytes(head[:2], "little") < 1024


def _plain_syntax(dataset: Dataset) -> UID:
    """Return the transfer syntax in which the elements of a file without a stated one were read."""
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise Refused("unreadable", "compressed pixels without a transfer syntax")
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _inflated(file: BinaryIO, stop: _Stop, pixel_bytes: int) -> Dataset:
    """Read a deflated dataset (PS3.5 A.5), but inflate no more than the largest header and the stated pixels."""
    # pydicom would inflate all of it, up to a thousand times the file's size, before it returns the header.
    limit = MAX_HEADER_BYTES + pixel_bytes
    inflated, whole = inflate(file, limit)
    if not whole and not stop.before_pixels:
        raise Refused("too large", f"inflates to more than {limit >> 20} MB, its header states less")
    dataset = _read(BytesIO(inflated), False, True, stop)
    if not whole and not stop.at_pixels:
        raise Refused("too large", f"its header inflates to more than {limit >> 20} MB")
    return dataset


def _read_meta(file: BinaryIO) -> Dataset:
    """Read the elements of group 2 (PS3.10 7.1); the file's position is then after them."""
    start, count = file.tell(), 0

    def stop(tag: int, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        return tag >> 16 != 2 or count > MAX_ELEMENTS

    meta = read_dataset(file, False, True, stop_when=stop)
    try:
        for element in list(meta.elements())[:1]:
            _ = meta[element.tag]
    except NotImplementedError:  # written without value representations, against the standard
        file.seek(start)
        count = 0
        meta = read_dataset(file, True, True, stop_when=stop)
    return meta


def inflate(file: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """Inflate the rest of a file, at most `limit` bytes; also return whether that is all."""
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    while not inflater.eof and len(inflated) < limit:
        chunk = inflater.unconsumed_tail or file.read(CHUNK)
        if not chunk:
            raise Refused("truncated", "the deflated data have no end")
        inflated += inflater.decompress(chunk, limit - len(inflated))
    if inflater.eof:
        return bytes(inflated), True
    # The end of the stream may follow the last byte; one byte more decides.
    more = inflater.decompress(inflater.unconsumed_tail + file.read(CHUNK), 1)
    if not more and not inflater.eof:
        raise Refused("truncated", "the deflated data have no end")
    return bytes(inflated), not more
