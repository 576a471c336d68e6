"""One DICOM file to one grey image in 0..1, and what is known about it; or the reason why not.

The header decides first: modality, body part, intent, frames and size are checked before anything is decoded.
`greyscale.py` has the arithmetic of the pixel pipeline.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from sscxr.data import greyscale
from sscxr.data.facts import Facts, Refused, age_band, dicom_age, is_placeholder, normal_sex, normal_view
from sscxr.data.greyscale import Turning
from sscxr.data.pictures import colour_to_grey

# Projection radiography (PS3.3 C.7.3.1.1.1); OT and SC are how pictures of radiographs are often wrapped.
RADIOGRAPHS = ("CR", "DX", "DR", "RG", "XR")
WRAPPED = ("OT", "SC")
# What counts as a chest: any of these as a word of Body Part Examined or of the anatomic region.
CHEST = {
    "CHEST", "THORAX", "LUNG", "LUNGS", "MEDIASTINUM", "TORAX", "TÓRAX", "LUNGE", "POUMON", "POUMONS", "PULMON",
    "BRUSTKORB",
}  # fmt: skip
NO_BODY_PART = {"", "UNKNOWN", "UNDEFINED", "UNSPECIFIED", "OTHER", "NONE", "XX", "XXX", "NA"}
MAX_PIXELS = 50_000_000  # twice the largest chest detectors; more is a mistake or a bomb
MAX_HEADER_BYTES = 64 << 20  # of a file beside its pixels
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-Ray Image Storage - For Processing
DICOMDIR = "1.2.840.10008.1.3.10"

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
    header = _parse(path, stop_before_pixels=True)
    _check_kind(header)
    _check_size(header, path, max_pixels)
    dataset = _parse(path)
    _check_pixel_data(dataset)
    samples = _decode(dataset)
    warnings = _doubts(dataset)
    if samples.ndim == 3:
        grey, grey_range = colour_to_grey(samples), "8 bit"
    else:
        grey, grey_range, more = _displayed(samples, dataset)
        warnings += more
    turning = _turning(dataset)
    facts = _facts(dataset, grey_range, tuple(warnings))
    return greyscale.turn(grey, turning), facts, turning


def _parse(path: Path, *, stop_before_pixels: bool = False) -> Dataset:
    try:
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


def _get(dataset: Dataset, keyword: str) -> Any:
    """An attribute, or None where it is absent, empty or does not parse."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts values on access, and may raise anything on hostile ones
        return None
    return None if value is None or value == "" else value


def _word(dataset: Dataset, keyword: str) -> str:
    return str(_get(dataset, keyword) or "").strip().upper()


def _meanings(dataset: Dataset, keyword: str) -> str:
    """The code meanings of a code sequence, as one text."""
    items = _get(dataset, keyword) or []
    return " ".join(str(_get(item, "CodeMeaning") or "") for item in items)


def _check_kind(header: Dataset) -> None:
    """Refuse what is not a displayable chest radiograph."""
    meta = getattr(header, "file_meta", None) or Dataset()
    if str(_get(meta, "MediaStorageSOPClassUID")) == DICOMDIR or "DirectoryRecordSequence" in header:
        raise Refused("not an image", "a DICOMDIR")
    modality = _word(header, "Modality")
    if modality and modality not in RADIOGRAPHS + WRAPPED:
        raise Refused("not a radiograph", f"modality {modality}")
    intent = _word(header, "PresentationIntentType")
    if intent == "FOR PROCESSING" or str(_get(header, "SOPClassUID")) == FOR_PROCESSING:
        raise Refused("for processing", "raw detector values, not meant for display (PS3.3 C.8.11.1)")
    if not is_chest(_word(header, "BodyPartExamined")):
        raise Refused("not a chest", f"body part {_word(header, 'BodyPartExamined')}")
    region = _meanings(header, "AnatomicRegionSequence")
    if not is_chest(region.upper()):
        raise Refused("not a chest", f"anatomic region {region}")


def is_chest(body_part: str) -> bool:
    """Whether a body part counts as a chest; an absent or unknown one does."""
    words = set(re.findall(r"[^\W\d_]+", body_part.upper()))
    return body_part.strip().upper() in NO_BODY_PART or words <= NO_BODY_PART or bool(words & CHEST)


def _check_size(header: Dataset, path: Path, max_pixels: int) -> None:
    """Refuse by the header's numbers alone, before any pixel is read."""
    rows, columns = _get(header, "Rows"), _get(header, "Columns")
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise Refused("not an image", "DICOM without rows and columns")
    frames = _get(header, "NumberOfFrames")
    if frames is not None and int(frames) > 1:
        raise Refused("multi-frame", f"{int(frames)} frames")
    if rows * columns > max_pixels:
        raise Refused("too large", f"{columns} x {rows} px, the limit is {max_pixels} px")
    if path.stat().st_size > max_pixels * 8 + MAX_HEADER_BYTES:
        raise Refused("too large", f"a file of {path.stat().st_size >> 20} MB")
    samples = _get(header, "SamplesPerPixel")
    if samples not in (None, 1, 3):
        raise Refused("unreadable", f"{samples} samples a pixel")


def _check_pixel_data(dataset: Dataset) -> None:
    """Refuse pixel data that are not of the size the header says."""
    if "PixelData" not in dataset:
        raise Refused("unreadable", "no pixel data")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        bits = rows * columns * int(_get(dataset, "SamplesPerPixel") or 1) * int(dataset.BitsAllocated)
        said, there = (bits + 7) // 8, len(dataset.PixelData)
        if _word(dataset, "PhotometricInterpretation") == "YBR_FULL_422":
            said = said * 2 // 3
        # A few bytes of padding are common; a whole row more means that rows or columns are not as said.
        if there < said or there > said + max(2, said // max(rows, 1) - 1):
            state = "truncated" if there < said else "unreadable"
            raise Refused(state, f"{there} bytes of pixels, the header says {said}")
        return
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    if len(frames) != 1 or not frames[0]:
        raise Refused("truncated", "no complete frame of compressed pixels")
    inside = codestream_size(frames[0]) if syntax != RLELossless else None
    if inside is not None and inside != (rows, columns):
        raise Refused(
            "unreadable", f"{columns} x {rows} px in the header, {inside[1]} x {inside[0]} in the image"
        )


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns as a JPEG, JPEG-LS or JPEG 2000 code stream states them; None where it does not."""
    if stream[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000 (ISO 15444-1 A.5.1): SIZ
        across, down, left, top = (int.from_bytes(stream[at : at + 4], "big") for at in (8, 12, 16, 20))
        return down - top, across - left
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 < len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        # Frame headers (ITU-T T.81 B.1.1.3, T.87 C.1.1): SOF0..15 but DHT, JPG and DAC, and JPEG-LS's SOF55.
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(
                stream[at + 7 : at + 9], "big"
            )
        at += 1 if marker == 0xFF else 2 + length
    return None


def _decode(dataset: Dataset) -> npt.NDArray[Any]:
    """Stored samples, [H, W] of integers or [H, W, 3] of 8 bits, unused bits and sign put right."""
    allocated, stored = int(dataset.BitsAllocated), int(_get(dataset, "BitsStored") or dataset.BitsAllocated)
    if not 1 < stored <= allocated <= 32:
        raise Refused("unreadable", f"{stored} bits stored of {allocated} allocated")
    syntax = dataset.file_meta.TransferSyntaxUID
    plain = not syntax.is_compressed or syntax == RLELossless
    try:
        options: dict[str, Any] = {"correct_unused_bits": False} if plain else {}
        samples = pixel_array(dataset, **options)
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
    if _word(dataset, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused("colour picture", _word(dataset, "PhotometricInterpretation"))
    return _stored_bits(samples, dataset, stored) if plain else samples


def _stored_bits(samples: npt.NDArray[Any], dataset: Dataset, stored: int) -> npt.NDArray[Any]:
    """The stored bits alone, wherever High Bit puts them (PS3.5 8.1.1); the rest may hold overlays."""
    width = samples.dtype.itemsize * 8
    high = int(_get(dataset, "HighBit") or stored - 1)
    if not stored - 1 <= high < width:
        high = stored - 1
    if stored == width:
        return samples
    # Up until the high bit is the topmost, then down: this drops what lies above and below, and extends the sign.
    shifted: npt.NDArray[Any] = np.right_shift(np.left_shift(samples, width - 1 - high), width - stored)
    return shifted


def _displayed(samples: npt.NDArray[Any], dataset: Dataset) -> tuple[Grey, str, list[str]]:
    """Grey levels with padding and shutters black and out of the statistics; warnings."""
    warnings: list[str] = []
    hidden = greyscale.padding(samples, dataset)
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


def _turning(dataset: Dataset) -> Turning:
    directions = _get(dataset, "PatientOrientation")
    if directions is None or isinstance(directions, str) or len(directions) != 2:
        return greyscale.AS_STORED
    return greyscale.upright(directions)


def _doubts(dataset: Dataset) -> list[str]:
    doubts = []
    if _word(dataset, "BurnedInAnnotation") == "YES":
        doubts.append("burnt-in annotation (as the header says)")
    modality = _word(dataset, "Modality")
    if not modality or modality in WRAPPED:
        doubts.append(f"modality {modality or 'not stated'}")
    return doubts


def _view(dataset: Dataset) -> str:
    """The view by the most direct attribute that tells it; `PatientPosition` holds it in rewrapped NIH files."""
    position = _word(dataset, "PatientPosition")
    lying = "supine recumbent" in _meanings(dataset, "PatientOrientationCodeSequence").lower()
    stated = _word(dataset, "ViewPosition")
    described = (_get(dataset, "SeriesDescription"), _get(dataset, "ProtocolName"))
    texts = (
        stated,
        _meanings(dataset, "ViewCodeSequence"),
        position,
        *(str(text or "") for text in described),
    )
    supine = lying or position in ("HFS", "FFS") or any("supine" in text.lower() for text in texts)
    if stated in ("RLD", "LLD", "RLO", "LLO"):  # decubitus and oblique: neither frontal nor lateral
        return ""
    return next((view for view in (normal_view(text, supine=supine) for text in texts) if view), "")


def _years(dataset: Dataset) -> float | None:
    """Age at the study, from Patient's Age or else from the two dates."""
    years = dicom_age(str(_get(dataset, "PatientAge") or ""))
    born, taken = str(_get(dataset, "PatientBirthDate") or ""), str(_get(dataset, "StudyDate") or "")
    if years is None and re.fullmatch(r"\d{8}", born) and re.fullmatch(r"\d{8}", taken):
        years = (int(taken) - int(born)) // 10_000  # yyyymmdd: completed years
    return years


def _spacing(dataset: Dataset) -> float | None:
    """Millimetres a pixel: Pixel Spacing, else that of the detector (PS3.3 10.7.1.3); None where odd."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = _get(dataset, keyword)
        try:
            down, across = (float(number) for number in spacing or ())
        except (TypeError, ValueError):
            continue
        if 0.01 < down < 10 and abs(down - across) < 0.05 * down:
            return round(down, 6)
    return None


def _facts(dataset: Dataset, grey_range: str, warnings: tuple[str, ...]) -> Facts:
    patient = str(_get(dataset, "PatientID") or "").strip()
    years = _years(dataset)
    return Facts(
        view=_view(dataset),
        sex=normal_sex(_word(dataset, "PatientSex")),
        age_band="" if years is None else age_band(years),
        spacing_mm=_spacing(dataset),
        patient="" if is_placeholder(patient) else patient,
        body_part=_word(dataset, "BodyPartExamined"),
        grey_range=grey_range,
        warnings=warnings,
    )
