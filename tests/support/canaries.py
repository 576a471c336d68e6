"""Hospitals' exports whose every text holds a canary: a token that is nowhere else, and that a search can know.

A token begins with a mark of its kind, so that one look finds thousands of them. A text token has ten characters,
as many as fit into a code string (CS, 16 characters) beside the word that the pipeline wants to read there.
"""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dicoms
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.datadict import DicomDictionary, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from sscxr.data.phantoms import phantom

MARK = "QXZK"  # of a text
NUMBER = "8675309"  # of a UID (ten digits follow) and of a decimal (a point and six digits)
WHOLE = "18675"  # of an integer: five digits follow
CENTURY = ("175", "176", "177", "178")  # of a date: no image and no log is of that time
MINUTE = "2357"  # of a time: seconds and six digits of their fraction follow
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
STRINGS = (*TEXTS, "DA", "DS", "DT", "IS", "TM", "UI")  # all but AS: three digits hold no token

# What decides whether and how a file is decoded; it says nothing about anybody.
_LEFT = {
    "SpecificCharacterSet", "Modality", "PresentationIntentType", "SOPClassUID", "PatientOrientation",
    "PhotometricInterpretation", "NumberOfFrames", "WindowCenter", "WindowWidth", "RescaleIntercept",
    "RescaleSlope", "VOILUTFunction", "PresentationLUTShape", "PixelSpacing", "ImagerPixelSpacing",
    "ModalityLUTSequence", "VOILUTSequence", "PresentationLUTSequence", "DirectoryRecordSequence",
    "LengthToEnd", "DataSetTrailingPadding", "PatientID", "SamplesPerPixel",
}  # fmt: skip
# Texts that the pipeline reads: a word for it, and a token.
_READ = {
    "BodyPartExamined": "CHEST {}", "ViewPosition": "PA {}", "SeriesDescription": "Thorax {}",
    "ImageType": "{}", "PatientSex": "{}", "ProtocolName": "{}",
}  # fmt: skip
# In every header; the rest of the dictionary is dealt out over a hospital's files.
_EVERYWHERE = (
    "PatientName", "PatientBirthDate", "PatientBirthTime", "OtherPatientIDs", "OtherPatientNames",
    "PatientBirthName", "PatientMotherBirthName", "PatientAddress", "PatientTelephoneNumbers", "EthnicGroup",
    "Occupation", "AdditionalPatientHistory", "PatientComments", "MedicalRecordLocator", "IssuerOfPatientID",
    "MilitaryRank", "CountryOfResidence", "RegionOfResidence", "PatientReligiousPreference", "PatientWeight",
    "PatientSize", "MedicalAlerts", "Allergies", "SmokingStatus", "AccessionNumber", "StudyID",
    "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyTime", "SeriesTime", "AcquisitionTime",
    "ContentTime", "AcquisitionDateTime", "TimezoneOffsetFromUTC", "InstanceCreationDate", "InstanceCreationTime",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "InstanceCreatorUID",
    "SynchronizationFrameOfReferenceUID", "DeviceUID", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "StationName", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber",
    "SoftwareVersions", "DetectorID", "PlateID", "CassetteID", "GantryID", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "RequestingPhysician",
    "PhysiciansOfRecord", "StudyDescription", "ProtocolName", "RequestedProcedureDescription",
    "RequestedProcedureID", "PerformedProcedureStepID", "PerformedProcedureStepDescription", "ReasonForStudy",
    "FillerOrderNumberImagingServiceRequest", "AdmissionID", "AdmittingDiagnosesDescription", "ImageComments",
    "StudyComments", "DerivationDescription", "AcquisitionDeviceProcessingDescription", "AcquisitionComments",
    "ConversionType", "SecondaryCaptureDeviceID", "SecondaryCaptureDeviceManufacturer", "DateOfSecondaryCapture",
    "TimeOfSecondaryCapture", "CurrentPatientLocation", "VisitComments", "SeriesNumber",
    "InstanceNumber", "AcquisitionNumber", "KVP", "Exposure", "ExposureTime", "DistanceSourceToDetector",
    "BodyPartExamined", "ViewPosition", "SeriesDescription", "ImageType", "PatientSex", "Laterality",
    "WindowCenterWidthExplanation", "RetrieveURL", "TextValue", "TextString", "LabelText", "BurnedInAnnotation",
)  # fmt: skip


@dataclass
class Canaries:
    """Tokens, and what each is of.

    Attributes:
        places: token -> file and field. A date as YYYYMMDD, a time and a number without their points.
        kept: those that a cache keeps by design: a manifest's names of sources, hospitals, licences and labels.
        hashes: salted hashes of images, patients and files, and plain ones of identifiers: their first 16 digits.
        heads: the first eight characters of text tokens: a cut one is known by them.
    """

    places: dict[str, str] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    hashes: dict[str, str] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    _count: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def _next(self, kind: str) -> int:
        self._count[kind] = self._count.get(kind, -1) + 1
        return self._count[kind]

    def text(self, place: str) -> str:
        """A text token."""
        number = self._next("text") * 0x2545F491 % (1 << 30)  # odd, so that no two are alike
        token = MARK + "".join(_LETTERS[number >> shift & 31] for shift in range(0, 30, 5))
        self.places[token] = place
        self.heads.add(token[:8])
        return token

    def value(self, vr: str, place: str) -> str:
        """A value of a string VR with a token of its own; of a name, one in each of two parts."""
        number = self._next(vr)
        if vr in ("DA", "DT"):
            # One series of days for both, so that a date in a DT is not one that a DA has.
            number = self._next("day")
            assert number < 40 * 12 * 28
            day = f"{1750 + number // 336}{number // 28 % 12 + 1:02d}{number % 28 + 1:02d}"
            self.places[day] = place
            return day if vr == "DA" else f"{day}101112.131415"
        if vr in ("UI", "DS", "IS", "TM"):
            token, value = {
                "UI": (f"{NUMBER}{number:010d}", f"2.25.{NUMBER}{number:010d}"),
                "DS": (f"{NUMBER}{number * 10 + 1:06d}", f"{NUMBER}.{number * 10 + 1:06d}"),
                "IS": (f"{WHOLE}{number:05d}", f"{WHOLE}{number:05d}"),
                "TM": (f"{MINUTE}{number % 60:02d}{number:06d}", f"{MINUTE}{number % 60:02d}.{number:06d}"),
            }[vr]
            self.places[token] = place
            return value
        if vr == "PN":
            return f"{self.text(place)}^{self.text(place)}"
        return f"https://example.org/{self.text(place)}" if vr == "UR" else self.text(place)

    def keep(self, token: str) -> str:
        """The token, as one that the cache keeps."""
        self.kept.add(token)
        return token

    def identifier(self, token: str, place: str) -> None:
        """Let the plain hashes of an identifier count as canaries as well."""
        for name in ("md5", "sha1", "sha256"):
            self.hashes[hashlib.new(name, token.encode()).hexdigest()[:16]] = f"{name} of {place}"

    def cache(self, folder: Path) -> None:
        """Let the hashes that a cache keeps count as canaries."""
        for name in ("index.csv", "ledger.jsonl"):
            for found in re.findall(r"\b[0-9a-f]{16}\b", (folder / name).read_text()):
                self.hashes[found] = f"salted hash in {folder.parent.name}"


# ---- headers


def _fill(data: Dataset, tag: int, vr: str, keyword: str, canaries: Canaries, place: str) -> None:
    """One element with a token in it: a string, or a sequence with strings and a sequence of strings in it."""
    place = f"{place} {keyword}"
    if vr == "SQ":
        inner = Dataset()
        inner.CodeValue, inner.CodeMeaning = canaries.text(place), canaries.text(place)
        item = Dataset()
        item.CodeMeaning = f"chest {canaries.text(place)}"  # an anatomic region, where it is taken for one
        item.ContentSequence = [inner]
        data.add(DataElement(tag, vr, [item]))
        return
    value = _READ.get(keyword, "{}").format(canaries.value(vr, place))
    data.add(DataElement(tag, vr, value))


def _dictionary() -> list[tuple[int, str, str]]:
    """Tag, VR and keyword of every string and sequence of the standard, retired ones too, that may be filled."""
    return [
        (tag, vr, keyword)
        for tag, (vr, _, _, _, keyword) in sorted(DicomDictionary.items())
        if vr in (*STRINGS, "SQ") and tag >> 16 > 6 and tag & 0xFFFF and keyword and keyword not in _LEFT
    ]


def _private(data: Dataset, canaries: Canaries, place: str) -> None:
    """A private block of every string VR, a sequence, and bytes that hold a text."""
    block = data.private_block(0x0019, canaries.text(f"{place} private creator"), create=True)
    for number, vr in enumerate(STRINGS):
        block.add_new(number, vr, canaries.value(vr, f"{place} private {vr}"))
    item = Dataset()
    item.CodeMeaning = canaries.text(f"{place} private sequence")
    block.add_new(0x20, "SQ", [item])
    for number, vr in enumerate(("OB", "UN"), 0x30):
        block.add_new(number, vr, canaries.text(f"{place} private {vr}").encode())
    overlay = data.private_block(0x0021, canaries.text(f"{place} private creator"), create=True)
    overlay.add_new(1, "UT", "\n".join(canaries.text(f"{place} private line") for _ in range(3)))
    for group in (0x6000, 0x6002):
        data.add(DataElement(Tag(group, 0x0022), "LO", canaries.text(f"{place} overlay description")))
        data.add(DataElement(Tag(group, 0x1500), "LO", canaries.text(f"{place} overlay label")))


def fill(
    data: FileDataset, patient: str, canaries: Canaries, place: str, dealt: Iterable[tuple[int, str, str]]
) -> None:
    """Put tokens into a header: what stands in every one, the elements dealt to this one, private ones, the meta.

    Args:
        patient: the identifier of its patient, a token.
    """
    for keyword in _EVERYWHERE:
        tag = tag_for_keyword(keyword)
        assert tag is not None, keyword
        _fill(data, tag, DicomDictionary[tag][0], keyword, canaries, place)
    for tag, vr, keyword in dealt:
        if tag not in data or keyword not in _EVERYWHERE:
            _fill(data, tag, vr, keyword, canaries, place)
    data.PatientID = patient
    _private(data, canaries, place)
    meta = data.file_meta
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.ImplementationClassUID = canaries.value("UI", f"{place} meta")
    for keyword in ("ImplementationVersionName", "SourceApplicationEntityTitle"):
        setattr(meta, keyword, canaries.text(f"{place} meta {keyword}"))
    for keyword in ("SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        setattr(meta, keyword, canaries.text(f"{place} meta {keyword}"))
    data.preamble = canaries.text(f"{place} preamble").encode().ljust(128, b"\0")


# ---- exports


@dataclass(frozen=True)
class Export:
    """What a hospital has on its disk.

    Attributes:
        folder: of everything; from there on every name holds a token.
        arguments: of `sscxr prepare`, but for `--out`.
        files: its DICOM files that are chest radiographs.
    """

    folder: Path
    arguments: list[str | Path]
    files: list[Path]


def write_exports(
    folder: Path, sites: Iterable[str], canaries: Canaries, *, images: int
) -> dict[str, Export]:
    """Exports of three kinds in turn: a folder, a manifest, a folder with a manifest of labels.

    Args:
        images: of each hospital.
    """
    sites = list(sites)
    drawn = phantom.write(folder / "phantoms", images=images * len(sites), sites=len(sites), seed=0, size=96)
    exports = {}
    settings = pydicom_config.settings
    before, settings.writing_validation_mode = settings.writing_validation_mode, pydicom_config.IGNORE
    try:
        for number, (site, manifest) in enumerate(zip(sites, drawn, strict=True)):
            with manifest.open(newline="") as file:
                rows = list(csv.DictReader(file))
            exports[site] = _export(folder / "exports" / site, rows, manifest.parent, canaries, number)
    finally:
        settings.writing_validation_mode = before
    return exports


def _export(
    folder: Path, rows: list[dict[str, str]], phantoms: Path, canaries: Canaries, number: int
) -> Export:
    kind = ("folder", "manifest", "labels")[number % 3]
    charset = ("ISO_IR 100", "ISO_IR 192", "ISO_IR 192")[number % 3]
    site, every, files, told = folder.name, _dictionary(), [], []
    patients: dict[str, str] = {}
    top = folder / canaries.text(f"{site} folder")
    for place, row in enumerate(rows):
        identity = row["patient_id"]
        if identity not in patients:
            patients[identity] = canaries.text(f"{site} patient")
            canaries.identifier(patients[identity], f"{site} patient")
        names = [canaries.text(f"{site} image {place} {part}") for part in ("study", "series", "file")]
        file = top.joinpath(patients[identity], *names[:2], names[2] + (".dcm" if place % 4 else ""))
        canaries.identifier(file.name, f"{site} file name")
        file.parent.mkdir(parents=True, exist_ok=True)
        data = dcmread(phantoms / row["file"])
        data.SpecificCharacterSet = charset
        fill(data, patients[identity], canaries, f"{site} image {place}", every[place :: len(rows)])
        data.PatientName = f"Müller-{data.PatientName}"
        syntax = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)[place % 3]
        if syntax is RLELossless:
            data.compress(RLELossless, generate_instance_uid=False)
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(
            file, enforce_file_format=True, implicit_vr=syntax is ImplicitVRLittleEndian, little_endian=True
        )
        files.append(file)
        if kind != "folder":
            mask = phantoms / row["mask"] if kind == "manifest" else None  # in a folder it would be a picture
            told.append(_row(row, file, top, mask, patients[identity], canaries, f"{site} manifest {place}"))
    unusable = list(_unusable(top / canaries.text(f"{site} folder"), files[0], canaries, site))
    source = ["--source", canaries.keep(canaries.text(f"{site} --source"))]
    if kind == "folder":
        return Export(folder, [folder, *source], files)
    told += [{"file": str(file.relative_to(top))} for file in unusable]
    told.append({"file": canaries.text(f"{site} missing file")})
    if kind == "manifest":
        told.append({"file": f"../{canaries.text(f'{site} file outside')}"})
        manifest = top / f"{canaries.text(f'{site} manifest name')}.csv"
        _write(manifest, told)
        return Export(folder, [manifest, *source], files)
    labels = folder / "labels.csv"
    _write(labels, [row | {"file": f"{top.name}/{row['file']}"} for row in told])
    return Export(folder, [top, "--labels", labels, *source], files)


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _row(
    row: dict[str, str],
    file: Path,
    top: Path,
    mask: Path | None,
    patient: str,
    canaries: Canaries,
    place: str,
) -> dict[str, str]:
    """A manifest's row with tokens in every column that is no word of a fixed list."""
    named = ""
    if mask:
        named = f"masks/{canaries.text(f'{place} mask')}.png"
        (top / named).parent.mkdir(exist_ok=True)
        (top / named).write_bytes(mask.read_bytes())
    free = (
        "labels_raw",
        "mask_kind",
        "original_file",
        "notes",
        "study_id",
        "study_date",
        "finding_text",
        "site",
        "public_id",
    )
    return {
        "file": str(file.relative_to(top)),
        "patient_id": patient,
        "split_group": f"{patient}-family",
        "view": row["view"],
        "sex": row["sex"],
        "age": row["age"],
        "label": f"{row['label']};{canaries.keep(canaries.text('label'))}"
        if place.endswith(" 0")
        else row["label"],
        "source": canaries.keep(canaries.text(f"{place} source")) if place.endswith("0") else "",
        "licence": canaries.keep(canaries.text(f"{place} licence")) if place.endswith("0") else "",
        "hospital": canaries.keep(canaries.text(f"{place} hospital")) if place.endswith("0") else "",
        "mask": named,
    } | {name: canaries.text(f"{place} {name}") for name in free}


def _unusable(folder: Path, model: Path, canaries: Canaries, site: str) -> Iterator[Path]:
    """Files that go into quarantine, for reasons that quote names and headers where they can."""
    folder.mkdir()

    def name(what: str, suffix: str = ".dcm") -> Path:
        return folder / f"{canaries.text(f'{site} {what}')}{suffix}"

    def dicom(what: str, **tags: object) -> Path:
        data = dicoms.dataset(dicoms.chest(seed=len(canaries)), **tags)
        data.PatientName, data.PatientID = (canaries.text(f"{site} {what}") for _ in range(2))
        return dicoms.save(data, name(what))

    yield dicom("modality", Modality=canaries.text(f"{site} modality"))
    yield dicom("body part", BodyPartExamined=f"KNEE {canaries.text(f'{site} body part')}")
    yield dicom("photometric", PhotometricInterpretation=canaries.text(f"{site} photometric"))
    yield dicom("no pixels", PixelData=None)
    cut = name("cut")
    cut.write_bytes(model.read_bytes()[:-3000])
    yield cut
    bent = name("bent")
    bent.write_bytes(model.read_bytes()[:140] + canaries.text(f"{site} bent").encode() * 30)
    yield bent
    text = name("text", ".txt")
    text.write_text(canaries.text(f"{site} text"))
    yield text
    picture = name("picture", ".png")
    comment = PngInfo()
    comment.add_text("Comment", canaries.text(f"{site} picture comment"))
    comment.add_text("Description", canaries.text(f"{site} picture comment"), zip=True)
    Image.fromarray(np.full((96, 96), 7, np.uint8)).save(picture, pnginfo=comment)  # constant: refused
    yield picture
