"""A lung mask as a DICOM Segmentation (PS3.3 A.51) that names the radiograph it was drawn on.

It uses `highdicom`, an optional extra: `pip install 'sscxr[seg]'`.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from sscxr import __version__
from sscxr.data.pixels import elements
from sscxr.data.pixels.quiet import quiet
from sscxr.errors import SscxrError

# Required, if empty (type 2: PS3.3 C.7.1.1, C.7.2.1), but missing from many de-identified files.
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
)  # fmt: skip
_DATE = re.compile(r"(\d{4})[-./]?(0[1-9]|1[0-2])[-./]?(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3]):?([0-5]\d)?:?([0-5]\d)?(\.\d{1,6})?")
_WANTED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")


class DicomSegError(SscxrError):
    """A segmentation cannot be written; one line states why."""


def require() -> None:
    """Fail early if `highdicom` is not installed.

    Raises:
        DicomSegError: it is not.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise DicomSegError("--dicom-seg needs highdicom: pip install 'sscxr[seg]'")


@quiet()  # warnings and log of both libraries quote names and dates
def write(source: Path, mask: npt.NDArray[np.bool_], file: Path, *, model: str) -> None:
    """Write a mask of lungs for a radiograph.

    The patient and the study are those of the source, the series is new. Its identifiers follow from the source,
    the model and the mask, so that the same prediction made twice is one instance, not two.

    Args:
        source: the radiograph, DICOM.
        mask: bool [Rows, Columns], as the source's pixels are stored.
        file: the file to write.
        model: identifies the model: the SHA-256 of the weights.

    Raises:
        DicomSegError: highdicom is not installed, or the source lacks something that a segmentation must refer to.
    """
    require()
    import highdicom  # takes a second to import, and is an extra
    from pydicom.sr.codedict import codes

    image = _complete(dcmread(source, force=True, stop_before_pixels=True))
    if mask.shape != (image.Rows, image.Columns):
        raise DicomSegError(
            f"a mask of {mask.shape[1]} x {mask.shape[0]} px for an image of {image.Columns} x {image.Rows} px"
        )
    lungs = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Lung",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.Lung,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="sscxr", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    seeds = [str(image.SOPInstanceUID), model, np.packbits(mask).tobytes().hex()]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=[image],
            pixel_array=mask[None],
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[lungs],
            series_instance_uid=generate_uid(entropy_srcs=[*seeds[:2], "series"]),
            series_number=1,
            sop_instance_uid=generate_uid(entropy_srcs=seeds),
            instance_number=1,
            manufacturer="sscxr",
            manufacturer_model_name="UNETR",
            software_versions=__version__,
            device_serial_number=model[:16],
            content_description="Lungs, outlined automatically; not for diagnosis",
            series_description="Lung segmentation (sscxr)",
            omit_empty_frames=False,  # an empty mask is a finding too
        )
        # Type 2C: for an image without a place in a patient's coordinates (PS3.3 C.7.6.1).
        segmentation.PatientOrientation = elements.get(image, "PatientOrientation") or ""
        segmentation.save_as(file)
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        # Not the library's message, which quotes the header.
        raise DicomSegError(
            f"no DICOM SEG: a segmentation cannot refer to the source's header ({type(error).__name__})"
        ) from None


def _complete(image: Dataset) -> Dataset:
    """Return the header in UTF-8; optional attributes that are missing or malformed are added empty."""
    missing = [name for name in _WANTED if elements.get(image, name) is None]
    if missing:
        raise DicomSegError(f"no DICOM SEG: the source has no {missing[0]}, which it must refer to")
    text = {name: str(elements.get(image, name) or "") for name in (*_MAY_BE_EMPTY, "ReferringPhysicianName")}
    for name in ("PatientBirthDate", "StudyDate"):
        text[name] = _digits(text[name], _DATE)
    text["StudyTime"] = _digits(text["StudyTime"], _TIME)
    if text["PatientSex"] not in ("M", "F", "O"):
        text["PatientSex"] = ""
    # Decoded by the source's own character set, and written in one with every letter (PS3.3 C.12.1.1.2).
    image.decode()
    image.SpecificCharacterSet = "ISO_IR 192"
    for name, value in text.items():
        setattr(image, name, value)
    return image


def _digits(text: str, form: re.Pattern[str]) -> str:
    """Return a date or time in DICOM's form (PS3.5 6.2), from one with or without separators; else empty."""
    found = form.fullmatch(text.strip())
    return "".join(part or "" for part in found.groups()) if found else ""
