"""Reads a DICOM header: whether the file may be a chest radiograph, and the facts about it."""

import re
from collections.abc import Collection

from pydicom.dataset import Dataset

from sscxr.data.pixels import body_parts, greyscale
from sscxr.data.pixels.elements import get, told, word
from sscxr.data.pixels.facts import (
    Facts,
    Refused,
    age_band,
    dicom_age,
    is_placeholder,
    normal_sex,
    normal_view,
)
from sscxr.data.pixels.greyscale import Turning

# Projection radiography (PS3.3 C.7.3.1.1.1); OT and SC are common for pictures of radiographs.
RADIOGRAPHS = ("CR", "DX", "DR", "RG", "XR")
WRAPPED = ("OT", "SC")
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-Ray Image Storage - For Processing
BODY_PART_NOT_KNOWN = "body part not known"  # the next `prepare` may know it
DICOMDIR = "1.2.840.10008.1.3.10"


def _meanings(dataset: Dataset, keyword: str) -> str:
    """Return the code meanings of a code sequence, as one text."""
    items = get(dataset, keyword) or []
    return " ".join(str(get(item, "CodeMeaning") or "") for item in items)


def check_kind(header: Dataset, chest_words: Collection[str] = ()) -> None:
    """Refuse what is not a displayable chest radiograph.

    Args:
        header: of the file.
        chest_words: the site's words for a chest, beside the known ones.
    """
    meta = getattr(header, "file_meta", None) or Dataset()
    if str(get(meta, "MediaStorageSOPClassUID")) == DICOMDIR or "DirectoryRecordSequence" in header:
        raise Refused("not an image", "a DICOMDIR")
    modality = word(header, "Modality")
    if modality and modality not in RADIOGRAPHS + WRAPPED:
        raise Refused("not a radiograph", f"modality {told(modality)}")
    intent = word(header, "PresentationIntentType")
    if intent == "FOR PROCESSING" or str(get(header, "SOPClassUID")) == FOR_PROCESSING:
        raise Refused("for processing", "raw detector values, not meant for display (PS3.3 C.8.11.1)")
    part = body_parts.written(header)
    if told(part) != part:  # it goes into the cache's index
        raise Refused("unreadable", f"body part {told(part)}")
    region = _meanings(header, "AnatomicRegionSequence")
    for text, name in ((part, "body part"), (region, "anatomic region")):
        kind = body_parts.kind(text, chest_words)
        if kind == "other":
            raise Refused("not a chest", f"{name} {told(text)}")
        if kind == "not known":
            raise Refused(BODY_PART_NOT_KNOWN, f"{told(text)}; where that is a chest, give --chest-word")


def turning(dataset: Dataset) -> Turning:
    """Return how to turn the image by Patient Orientation; unturned if that is not stated."""
    directions = get(dataset, "PatientOrientation")
    if directions is None or isinstance(directions, str) or len(directions) != 2:
        return greyscale.AS_STORED
    return greyscale.upright(directions)


def doubts(dataset: Dataset) -> list[str]:
    """Return warnings about the header."""
    found = []
    if word(dataset, "BurnedInAnnotation") == "YES":
        found.append("burnt-in annotation (stated in the header)")
    modality = word(dataset, "Modality")
    if not modality or modality in WRAPPED:
        found.append(f"modality {modality or 'not stated'}")
    return found


def _view(dataset: Dataset) -> str:
    """Return the view by the most direct attribute that has it: `PatientPosition` in rewrapped NIH files."""
    position = word(dataset, "PatientPosition")
    lying = "supine recumbent" in _meanings(dataset, "PatientOrientationCodeSequence").lower()
    stated = word(dataset, "ViewPosition")
    described = (get(dataset, "SeriesDescription"), get(dataset, "ProtocolName"))
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
    """Return the age at the study, from Patient's Age or else from the two dates."""
    years = dicom_age(str(get(dataset, "PatientAge") or ""))
    born, taken = str(get(dataset, "PatientBirthDate") or ""), str(get(dataset, "StudyDate") or "")
    if years is None and re.fullmatch(r"\d{8}", born) and re.fullmatch(r"\d{8}", taken):
        years = (int(taken) - int(born)) // 10_000  # yyyymmdd: completed years
    return years


def _spacing(dataset: Dataset) -> float | None:
    """Return millimetres per pixel: Pixel Spacing, else that of the detector (PS3.3 10.7.1.3); None if invalid."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = get(dataset, keyword)
        try:
            down, across = (float(number) for number in spacing or ())
        except (TypeError, ValueError):
            continue
        if 0.01 < down < 10 and abs(down - across) < 0.05 * down:
            return round(down, 6)
    return None


def facts(dataset: Dataset, grey_range: str, warnings: list[str]) -> Facts:
    """Return the facts of the header, with the grey range and the warnings of the pixels."""
    patient = str(get(dataset, "PatientID") or "").strip()
    years = _years(dataset)
    return Facts(
        view=_view(dataset),
        sex=normal_sex(word(dataset, "PatientSex")),
        age_band="" if years is None else age_band(years),
        spacing_mm=_spacing(dataset),
        patient="" if is_placeholder(patient) else patient,
        body_part=body_parts.written(dataset),
        grey_range=grey_range,
        warnings=tuple(warnings),
    )
