"""What the compressed pixels of a file say of themselves, held against its header before a decoder sees them.

Decoders allocate by the code stream's numbers, and GDCM ends the process over another number of components.
"""

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000TransferSyntaxes, RLELossless

from sscxr.data import header
from sscxr.data.facts import Refused

SOC_SIZ = b"\xff\x4f\xff\x51"  # how a JPEG 2000 code stream begins (ISO 15444-1 A.3)
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"  # how a JP2 file begins (ISO 15444-1 I.5.1)


def checked(dataset: Dataset) -> bytes:
    """The one compressed frame of a dataset; where a JP2 file was around it, it is taken off in the dataset too.

    Raises:
        Refused: there is none or no end of it, or it is not what the header says.
    """
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    if len(frames) != 1 or not frames[0]:
        raise Refused("truncated", "no complete frame of compressed pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == RLELossless:
        return frames[0]
    stream = frames[0]
    if stream.startswith(JP2):
        stream = _unwrapped(stream)
        dataset.PixelData = encapsulate([stream])
    # GDCM shows as much as there is of a code stream that was cut off; a whole one has its end (EOI, EOC).
    if stream.startswith((b"\xff\xd8", b"\xff\x4f")) and not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise Refused("truncated", "the compressed pixels have no end")
    rows, columns, allocated = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    inside = _frame_header(stream)
    if inside is not None and inside[:2] != (rows, columns):
        raise Refused(
            "unreadable", f"{columns} x {rows} px in the header, {inside[1]} x {inside[0]} in the image"
        )
    if inside is not None and inside[2] > allocated:
        raise Refused("unreadable", f"{allocated} bits allocated in the header, {inside[2]} in the image")
    if syntax in JPEG2000TransferSyntaxes:
        _check_components(stream, int(header.get(dataset, "SamplesPerPixel") or 1))
    return stream


def _frame_header(stream: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and bits as a JPEG, JPEG-LS or JPEG 2000 code stream states them; None where it does not."""
    if stream.startswith(SOC_SIZ) and len(stream) > 42:  # ISO 15444-1 A.5.1
        across, down, left, top = (int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20))
        return down - top, across - left, (stream[42] & 0x7F) + 1
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 < len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        # Frame headers (ITU-T T.81 B.1.1.3, T.87 C.1.1): SOF0..15 but DHT, JPG and DAC, and JPEG-LS's SOF55.
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = (int.from_bytes(stream[from_ : from_ + 2], "big") for from_ in (at + 5, at + 7))
            return rows, columns, stream[at + 4]
        at += 1 if marker == 0xFF else 2 + length
    return None


def starts_at_origin(stream: bytes) -> bool:
    """Whether a JPEG 2000 image begins at the origin of its grid, as all do but what was cut out of others."""
    return stream[16:24] == bytes(8)


def _unwrapped(frame: bytes) -> bytes:
    """The code stream of a JP2 file, which DICOM does not allow as pixel data (PS3.5 A.4.4) and some write.

    The header tells what the samples mean; a decoder that reads the file's boxes would have its colours instead.
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


def _check_components(stream: bytes, samples: int) -> None:
    """Refuse JPEG 2000 whose components (ISO 15444-1 A.5.1) are not the header's samples, each like the others."""
    if not stream.startswith(SOC_SIZ):
        raise Refused("unreadable", "no JPEG 2000 code stream")
    count = int.from_bytes(stream[40:42], "big")
    if count != samples:
        raise Refused("unreadable", f"{samples} samples a pixel in the header, {count} in the image")
    kinds = {
        stream[at : at + 3] for at in range(42, 42 + 3 * count, 3)
    }  # depth and sign, steps across and down
    if len(kinds) > 1 or not kinds.pop().endswith(b"\1\1"):
        raise Refused("unreadable", "components of several depths or resolutions")
