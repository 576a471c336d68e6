"""Procedural thorax phantoms written as DICOM: chest X-rays without patients, and without a download.

The anatomy is in `anatomy.py`, illness and devices in `findings.py`, the machine's look in
`scanner.py`. Everything follows from the seed: the same parameters give the same bytes, in any process.

    folder/
        phantoms.json       the parameters, and whether all files are written
        site-0/manifest.csv the columns of `COLUMNS`, one row per image
        site-0/images/*.dcm CR or DX for presentation
        site-0/masks/*.png  255 lung, including behind the heart, 0 background
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from sscxr.data.phantoms.anatomy import Patient, draw_patient, draw_pose, thorax
from sscxr.data.phantoms.findings import LABELS, add_devices, add_finding
from sscxr.data.phantoms.scanner import Style, draw_style, expose
from sscxr.data.phantoms.shapes import Field
from sscxr.errors import SscxrError
from sscxr.files import write_atomically

# Increased whenever the pictures change, so that a folder of an older version is not reused.
VERSION = 1
COLUMNS = (
    "file", "source", "patient_id", "view", "age", "age_group", "sex", "label", "labels_raw", "mask", "mask_kind",
    "licence", "original_file", "orig_width", "orig_height", "notes", "split_group", "split",
)  # fmt: skip
MASK_KIND = "lungs incl. retrocardiac, drawn by the phantom; 255=lung"
LICENCE = "CC0-1.0 (procedural phantom, nobody's image)"
# Prefixes of the hashes that make identifiers; UIDs are under pydicom's root.
_NAME = "sscxr phantom"


class PhantomError(SscxrError):
    """Phantoms cannot be written; one line states what is wrong and what to do."""


@dataclass(frozen=True)
class Facts:
    """The facts of one phantom: `findings` as in a report, spacing in mm per pixel."""

    label: str
    findings: tuple[str, ...]
    view: str
    spacing_mm: float


@dataclass(frozen=True)
class Site:
    """A hospital: its machine, its patients, and how often it sees each of `LABELS`."""

    name: str
    style: Style
    children: float
    labels: tuple[float, ...]


def draw_site(rng: np.random.Generator, name: str) -> Site:
    """Draw a hospital; about one in four treats only children."""
    children = 1.0 if rng.random() < 0.25 else float(rng.choice([0.0, 0.05, 0.15]))
    share = rng.dirichlet([6.0, 5.0, 1.0 if children == 1 else 4.0, 2.5])
    # Every site has some of each: a label at one site only could be recognised by that site's style.
    share = 0.8 * share + 0.2 / len(LABELS)
    return Site(name, draw_style(rng), children, tuple(float(value) for value in share))


def draw(
    rng: np.random.Generator,
    *,
    style: Style | None = None,
    patient: Patient | None = None,
    label: str | None = None,
    size: int = 256,
) -> tuple[Field, npt.NDArray[np.uint8], Facts]:
    """Draw one phantom; omitted arguments are drawn at random.

    Args:
        rng: the source of all random numbers.
        style: the machine. patient: proportions, for several images of one patient.
        label: one of `LABELS`.
        size: px of the longer side.

    Returns:
        The image, float32 [H, W] in 0..1, bone bright and upright; the lung mask, uint8 [H, W], 255 or 0; facts.
    """
    style = style or draw_style(rng)
    patient = patient or draw_patient(rng, child=bool(rng.random() < 0.25))
    label = label or str(rng.choice(LABELS))
    # The ill are X-rayed in bed, with cables on them, more often than the healthy; but not always.
    ill = label != "normal"
    bedside = bool(rng.random() < style.bedside * (1.1 if ill else 0.8))
    pose = draw_pose(rng, patient, size=size, aspect=style.aspect, bedside=bedside)
    picture = thorax(rng, patient, pose)
    mask = picture.lung.astype(np.uint8) * np.uint8(255)
    findings = add_finding(rng, label, patient, pose, picture)
    burden = 0.5 if bedside and ill else 0.35 if bedside else 0.04
    findings += add_devices(rng, picture, patient.lung_height * pose.breath, burden)
    image = expose(rng, style, picture.attenuation(), pose.view)
    return image, mask, Facts(label, tuple(findings), pose.view, pose.scale * patient.half_width_mm)


def write(
    folder: str | Path,
    *,
    images: int,
    sites: int,
    seed: int,
    size: int = 256,
    test: float = 0.0,
    on_image: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write phantoms of several hospitals; a finished folder with the same parameters is left unchanged.

    Args:
        folder: the folder to write; it gets one sub-folder per site.
        images: how many in all. sites: how many hospitals; they differ in size, machine, patients and labels.
        seed: determines everything.
        size: px of an image's longer side.
        test: share of each site's patients, 0 to below 1, whose images its manifest publishes as a test set.
        on_image: called after each image.

    Returns:
        The manifests, one per site, in the sites' order.

    Raises:
        PhantomError: parameters out of range, or a folder with other files.
    """
    folder = Path(folder)
    if not (1 <= sites <= images):
        raise PhantomError(
            f"{images} phantoms are too few for {sites} sites; give at least 1 site, and an image for each"
        )
    if not 32 <= size <= 4096:
        raise PhantomError(f"size={size} px; phantoms are 32 to 4096 px")
    if seed < 0:
        raise PhantomError(f"seed={seed}; give 0 or more")
    if not 0 <= test < 1:
        raise PhantomError(f"test={test}; give the share of patients to test on, 0 to below 1")
    parameters: dict[str, float] = {
        "version": VERSION,
        "images": images,
        "sites": sites,
        "seed": seed,
        "size": size,
    }
    parameters |= {"test": test} if test else {}
    manifests = [folder / f"site-{index}" / "manifest.csv" for index in range(sites)]
    if _is_finished(folder, parameters) and all(manifest.exists() for manifest in manifests):
        return manifests
    _note(folder, parameters, finished=False)
    for index, (manifest, count) in enumerate(zip(manifests, _site_sizes(images, sites, seed), strict=True)):
        _write_site(manifest.parent, count, index, seed, size, test, on_image)
    _note(folder, parameters, finished=True)
    return manifests


def _is_finished(folder: Path, parameters: dict[str, float]) -> bool:
    """Return whether these phantoms are complete; if not, they must be written, or written again."""
    note = folder / "phantoms.json"
    if not note.exists():
        if folder.exists() and any(path.suffix != ".tmp" for path in folder.iterdir()):
            raise PhantomError(f"{folder} holds other files, not phantoms; choose an empty or a new folder")
        return False
    found = json.loads(note.read_text())
    finished = bool(found.pop("finished", False))
    if found != parameters:
        raise PhantomError(f"{folder} has other phantoms ({found}); remove it or choose another")
    return finished


def _note(folder: Path, parameters: dict[str, float], *, finished: bool) -> None:
    text = json.dumps({**parameters, "finished": finished}) + "\n"
    write_atomically(folder / "phantoms.json", text.encode())


def _site_sizes(images: int, sites: int, seed: int) -> list[int]:
    """Return the number of images of each site: at least one, and the largest several times the smallest."""
    rng = np.random.default_rng([seed, 0])
    share = rng.uniform(0.4, 1.6, sites)
    ends = np.round(np.cumsum(share / share.sum()) * (images - sites)).astype(int)
    return [int(count) + 1 for count in np.diff(ends, prepend=0)]


def _write_site(
    folder: Path, count: int, index: int, seed: int, size: int, test: float, on_image: Callable[[], None]
) -> None:
    """Write one site's images, masks and, last, its manifest."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    site = draw_site(np.random.default_rng([seed, 1, index]), f"phantom_site_{index}")
    rows = []
    for number, (person, visit) in enumerate(_visits(np.random.default_rng([seed, 2, index]), count)):
        # Separate streams: an image does not depend on how many came before it.
        who = np.random.default_rng([seed, 3, index, person])
        patient = draw_patient(who, child=bool(who.random() < site.children))
        label = str(who.choice(LABELS, p=site.labels))
        rng = np.random.default_rng([seed, 4, index, number])
        if visit and rng.random() < 0.25:
            label = "normal"  # recovered, or not yet ill
        image, mask, facts = draw(rng, style=site.style, patient=patient, label=label, size=size)
        identity = f"ph{index}-{hashlib.sha256(f'{_NAME} {seed} {index} {person}'.encode()).hexdigest()[:8]}"
        name = f"{identity}-{visit}"
        dataset = to_dicom(image, facts, site, patient, identity, f"{seed} {index} {number}", rng)
        dataset.save_as(folder / "images" / f"{name}.dcm", enforce_file_format=True)
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png", compress_level=1)
        tested = bool(np.random.default_rng([seed, 5, index, person]).random() < test)
        rows.append({**_row(name, site, patient, identity, facts, mask), "split": "test" if tested else ""})
        on_image()
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _visits(rng: np.random.Generator, count: int) -> Iterator[tuple[int, int]]:
    """Yield (patient, visit) for `count` images: a third of the patients return at least once."""
    person, visit = 0, 0
    for _ in range(count):
        yield person, visit
        if rng.random() < 0.35 and visit < 5:
            visit += 1
        else:
            person, visit = person + 1, 0


def _row(
    name: str, site: Site, patient: Patient, identity: str, facts: Facts, mask: npt.NDArray[np.uint8]
) -> dict[str, Any]:
    return {
        "file": f"images/{name}.dcm",
        "source": site.name,
        "patient_id": identity,
        "view": facts.view,
        "age": patient.age,
        "age_group": "paediatric" if patient.child else "adult",
        "sex": patient.sex,
        "label": facts.label,
        "labels_raw": ";".join(facts.findings),
        "mask": f"masks/{name}.png",
        "mask_kind": MASK_KIND,
        "licence": LICENCE,
        "original_file": f"{name}.dcm",
        "orig_width": mask.shape[1],
        "orig_height": mask.shape[0],
        "notes": "procedural phantom",
        "split_group": identity,
    }


def to_dicom(
    image: Field,
    facts: Facts,
    site: Site,
    patient: Patient,
    identity: str,
    key: str,
    rng: np.random.Generator,
) -> Dataset:
    """Return the image as this site's machine stores it (PS3.3 A.2 and A.26), with artificial, well-formed tags.

    Args:
        image: float32 [H, W] in 0..1.
        facts, site, patient: for the tags.
        identity: the patient's identifier.
        key: unique to the image; UIDs and dates follow from it.
        rng: draws the exposure that the stored values start from.
    """
    style = site.style
    data = Dataset()
    data.file_meta = FileMetaDataset()
    digital = style.modality == "DX"
    data.SOPClassUID = DigitalXRayImageStorageForPresentation if digital else ComputedRadiographyImageStorage
    data.SOPInstanceUID = _uid("image", key)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.ImplementationClassUID = _uid("implementation", str(VERSION))
    data.file_meta.ImplementationVersionName = f"SSCXR_PH_{VERSION}"
    data.SpecificCharacterSet = "ISO_IR 100"
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    day = int(hashlib.sha256(f"{_NAME} {key}".encode()).hexdigest()[:8], 16)
    data.StudyDate = data.ContentDate = (
        f"20{15 + day % 9:02d}{1 + day // 9 % 12:02d}{1 + day // 108 % 28:02d}"
    )
    data.StudyTime = data.ContentTime = f"{7 + day // 3024 % 12:02d}{day // 36288 % 60:02d}00"
    data.AccessionNumber = ""
    data.Modality = style.modality
    data.PresentationIntentType = "FOR PRESENTATION"
    data.Manufacturer = style.maker
    data.ManufacturerModelName = f"{style.maker.split()[0]} {style.bits}"
    data.InstitutionName = site.name
    data.StudyDescription = data.SeriesDescription = f"CHEST {facts.view}"
    data.PatientName = f"PHANTOM^{identity.upper()}"
    data.PatientID = identity
    data.PatientBirthDate = ""
    data.PatientSex = patient.sex
    data.PatientAge = f"{patient.age:03d}Y"
    data.BodyPartExamined = "CHEST"
    data.ViewPosition = facts.view
    data.PatientOrientation = ["L", "F"]
    data.StudyInstanceUID = _uid("study", key)
    data.SeriesInstanceUID = _uid("series", key)
    data.StudyID, data.SeriesNumber, data.InstanceNumber = "1", 1, 1
    data.BurnedInAnnotation = "NO"
    spacing = [f"{facts.spacing_mm:.4f}"] * 2
    data.ImagerPixelSpacing = spacing
    data.PixelSpacing = spacing
    _store_pixels(data, image, style, rng)
    return data


def _store_pixels(data: Dataset, image: Field, style: Style, rng: np.random.Generator) -> None:
    """Store grey levels, with the window that restores them (PS3.3 C.11.2.1.2)."""
    highest = 2**style.bits - 1
    lowest, top = (0.0, float(highest))
    if style.window != "none":
        lowest, top = highest * rng.uniform(0.03, 0.2), highest * rng.uniform(0.75, 0.97)
    level = 1 - image if style.photometric == "MONOCHROME1" else image
    stored = np.clip(np.rint(lowest + level * (top - lowest)), 0, highest)
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = style.photometric
    data.Rows, data.Columns = image.shape
    data.BitsAllocated = 8 if style.bits == 8 else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = style.bits, style.bits - 1, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
    data.PresentationLUTShape = "INVERSE" if style.photometric == "MONOCHROME1" else "IDENTITY"
    data.LossyImageCompression = "00"
    centre, width = f"{(lowest + top + 1) / 2:.1f}", f"{top - lowest + 1:.1f}"
    if style.window == "tags":
        data.WindowCenter, data.WindowWidth = centre, width
    elif style.window == "two":
        data.WindowCenter, data.WindowWidth = [centre, centre], [width, f"{(top - lowest) * 0.6:.1f}"]
        data.WindowCenterWidthExplanation = ["NORMAL", "HARDER"]
    data.PixelData = stored.astype(np.uint8 if style.bits == 8 else np.dtype("<u2")).tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    data["PixelData"].VR = "OB" if style.bits == 8 else "OW"


def _uid(kind: str, key: str) -> UID:
    return generate_uid(entropy_srcs=[_NAME, kind, key])
