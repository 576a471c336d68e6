"""Checks a file's compressed pixels against its header before they are decoded.

Decoders allocate by the code stream's numbers, and GDCM ends the process on an unexpected number of components.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

from sscxr.data.pixels.facts import Refused

SOC_SIZ = b"\xff\x4f\xff\x51"  # how a JPEG 2000 code stream begins (ISO 15444-1 A.3)
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"  # how a JP2 file begins (ISO 15444-1 I.5.1)


def checked(dataset: Dataset) -> bytes:
    """Return the one compressed frame of a dataset without the bytes around its code stream, in the dataset too.

    Raises:
        Refused: the frame is missing or incomplete, or differs from the header.
    """
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    if len(frames) != 1 or not frames[0]:
        raise Refused("truncated", "no complete frame of compressed pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        return frames[0]
    stream = _unwrapped(frames[0]) if frames[0].startswith(JP2) else frames[0]
    stream = _to_its_end(stream)
    if len(stream) != len(frames[0]):
        dataset.PixelData = encapsulate([stream])
    inside = _frame_header(stream)
    if inside is not None:
        _check_against_header(inside, dataset)
    if syntax in JPEG2000TransferSyntaxes:
        _check_components(stream)
    return stream


def _to_its_end(stream: bytes) -> bytes:
    """Cut a JPEG, JPEG-LS or JPEG 2000 code stream at its end marker, after which writers pad with anything.

    Coded data contain no marker (T.81 B.1.1.5, T.87 A.1, ISO 15444-1 A.1), so the last EOI or EOC after the start
    of the data is the end. GDCM would show part of a truncated stream.
    """
    start = _data_start(stream)
    if start is None:
        return stream
    end = stream.rfind(b"\xff\xd9", start)
    if end < 0:
        raise Refused("truncated", "the compressed pixels have no end")
    whole = stream[: end + 2]
    return stream if not stream[end + 2 :].strip(b"\0") else whole + b"\0" * (len(whole) % 2)


def _data_start(stream: bytes) -> int | None:
    """Return where the coded data begin, after the headers; None if it is not such a code stream."""
    if stream.startswith(b"\xff\x4f"):
        return 2
    if not stream.startswith(b"\xff\xd8"):
        return None
    for marker, at, length in _segments(stream):
        if marker == 0xDA:
            return at + 2 + length
    return 2


def _segments(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker segments of a JPEG(-LS) up to its first scan: marker, position, length (T.81 B.1.1.4)."""
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        yield marker, at, length
        if marker == 0xDA:
            return
        at += 2 + length


@dataclass(frozen=True)
class Frame:
    """A code stream's description of its image."""

    rows: int
    columns: int
    bits: int
    samples: int


def _frame_header(stream: bytes) -> Frame | None:
    """Read a JPEG, JPEG-LS or JPEG 2000 code stream's description; None if it has none."""
    if stream.startswith(SOC_SIZ) and len(stream) > 42:  # ISO 15444-1 A.5.1
        across, down, left, top = (int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20))
        bits, samples = (stream[42] & 0x7F) + 1, int.from_bytes(stream[40:42], "big")
        return Frame(down - top, across - left, bits, samples)
    if not stream.startswith(b"\xff\xd8"):
        return None
    for marker, at, _ in _segments(stream):
        # Frame headers (ITU-T T.81 B.2.2, T.87 C.2.2): SOF0..15 but DHT, JPG and DAC, and JPEG-LS's SOF55.
        if at + 9 < len(stream) and (
            marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
        ):
            rows, columns = (int.from_bytes(stream[from_ : from_ + 2], "big") for from_ in (at + 5, at + 7))
            return Frame(rows, columns, stream[at + 4], stream[at + 9])
    return None


def _check_against_header(inside: Frame, dataset: Dataset) -> None:
    """Refuse a code stream whose size, depth or number of samples differ from the header's."""
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if (inside.rows, inside.columns) != (rows, columns):
        raise Refused(
            "unreadable",
            f"{columns} x {rows} px in the header, {inside.columns} x {inside.rows} in the image",
        )
    if inside.samples != samples:
        raise Refused("unreadable", f"{samples} samples a pixel in the header, {inside.samples} in the image")
    if allocated > 16 and dataset.file_meta.TransferSyntaxUID not in JPEG2000TransferSyntaxes:
        raise Refused("unreadable", f"{allocated} bits allocated in the header, JPEG has at most 16")
    if inside.bits > allocated:
        raise Refused("unreadable", f"{allocated} bits allocated in the header, {inside.bits} in the image")
    if dataset.file_meta.TransferSyntaxUID in JPEG2000TransferSyntaxes or inside.bits > 8 or allocated <= 8:
        return
    if stored > 8:
        raise Refused("unreadable", f"{stored} bits stored in the header, {inside.bits} in the image")
    dataset.BitsAllocated = 8  # the decoder's output, whatever the header allocates


def starts_at_origin(stream: bytes) -> bool:
    """Return whether a JPEG 2000 image begins at the origin of its grid, as all do except cut-outs of others."""
    return stream[16:24] == bytes(8)


def _unwrapped(frame: bytes) -> bytes:
    """Return the code stream of a JP2 file, which DICOM does not allow as pixel data (PS3.5 A.4.4) but some write.

    The DICOM header defines the samples; a decoder that reads the file's boxes would use their colours instead.
    """
    at = 0
    while at + 8 <= len(frame):
        length, kind = int.from_bytes(frame[at : at + 4], "big"), frame[at + 4 : at + 8]
        end = at + length if length else len(frame)  # ISO 15444-1 I.4: 0 reaches to the end; 1 is for 4 GB
        if length in range(1, 8):
            break
        if kind == b"jp2c":
            return frame[at + 8 : end]
        at = end
    raise Refused("unreadable", "a JP2 file without a code stream")


def _check_components(stream: bytes) -> None:
    """Refuse JPEG 2000 whose components (ISO 15444-1 A.5.1) differ from each other."""
    count = int.from_bytes(stream[40:42], "big")
    if not stream.startswith(SOC_SIZ) or not 0 < 3 * count <= len(stream) - 42:
        raise Refused("unreadable", "no JPEG 2000 code stream")
    # depth and sign, steps across and down
    kinds = {stream[at : at + 3] for at in range(42, 42 + 3 * count, 3)}
    if len(kinds) > 1 or not kinds.pop().endswith(b"\1\1"):
        raise Refused("unreadable", "components of several depths or resolutions")
