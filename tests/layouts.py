"""Public corpora in little, laid out as they are published, and what plain reading of their tables counts.

Where torchxrayvision brings a corpus's table, rows of the true one are taken. Images are phantoms.
"""

import csv
import gzip
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import chest, dataset, save
from PIL import Image

Row = dict[str, str]


@dataclass
class Truth:
    """What a corpus holds: images of patients, by view (in the cache's words) and by label (present, absent)."""

    patients: set[str] = field(default_factory=set)
    views: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[int]] = field(default_factory=dict)
    tests: int = 0
    masks: int = 0
    images: int = 0
    hospitals: Counter[str] = field(default_factory=Counter)

    def add(
        self, patient: str, view: str, *, test: bool = False, hospital: str = "", **labels: int | None
    ) -> None:
        self.images += 1
        self.patients.add(patient)
        self.views[view] += 1
        self.tests += test
        self.hospitals[hospital] += 1
        for name, value in labels.items():
            if value is not None:
                self.labels.setdefault(name, Counter())[value] += 1


def shipped(name: str) -> Iterator[Row]:
    """The rows of a table that torchxrayvision brings, as they stand."""
    package = find_spec("torchxrayvision")
    if package is None or not package.submodule_search_locations:
        pytest.skip("torchxrayvision is not installed")
    path = Path(package.submodule_search_locations[0]) / "data" / name
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            text = io.TextIOWrapper(archive.open(archive.namelist()[0]), encoding="utf-8")
            yield from csv.DictReader(text)
    else:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def _table(path: Path, rows: list[Row], *, packed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()) if packed else text.getvalue().encode())


_seeds = count(1)


def picture(path: Path, *, bits: int = 8, **tags: Any) -> None:
    """A phantom that no other file has, in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed, kind = next(_seeds), path.suffix.lower()
    if kind in (".dcm", ".dicom"):
        save(dataset(chest(96, 80, seed=seed), **{"PatientAge": None, "PatientSex": None, **tags}), path)
    elif kind == ".img":
        small = 4095 - chest(128, 128, seed=seed)
        small.repeat(16, axis=0).repeat(16, axis=1).astype(">u2").tofile(path)
    elif bits == 16:
        Image.fromarray(chest(96, 80, bits=16, seed=seed).astype(np.uint16)).save(path)
    else:
        Image.fromarray(chest(96, 80, bits=8, seed=seed).astype(np.uint8)).save(path)


def mask(path: Path, left: bool, shape: tuple[int, int] = (96, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.zeros(shape, dtype=np.uint8)
    column = (
        slice(shape[1] * 6 // 10, shape[1] * 9 // 10) if left else slice(shape[1] // 10, shape[1] * 4 // 10)
    )
    drawn[shape[0] // 4 : shape[0] * 3 // 4, column] = 255
    Image.fromarray(drawn).save(path)


NIH = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)


def nih(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("Data_Entry_2017_v2020.csv.gz"), 40))
    tests = {row["Image Index"] for row in rows if int(row["Patient ID"]) % 3 == 0}
    for place, row in enumerate(rows):
        folder = f"images_{1 + place // 20:03d}/images"
        picture(root / folder / row["Image Index"])
        found = row["Finding Labels"].split("|")
        truth.add(
            row["Patient ID"],
            row["View Position"],
            test=row["Image Index"] in tests,
            **{name.lower(): int(name in found) for name in NIH},
            normal=int(found == ["No Finding"]),
        )
    # As v2020 names the sex; the header is cut in two within the size and the spacing, as published.
    rows = [{("Patient Sex" if k == "Patient Gender" else k): v for k, v in row.items()} for row in rows]
    _table(root / "Data_Entry_2017_v2020.csv", rows)
    (root / "test_list.txt").write_text("".join(f"{name}\n" for name in sorted(tests)))
    rest = sorted({row["Image Index"] for row in rows} - tests)
    (root / "train_val_list.txt").write_text("".join(f"{name}\n" for name in rest))
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    (root / "BBox_List_2017.csv").write_text(f"{header}{rest[0]},Infiltrate,10.5,20,30,40,,,\n")
    return truth


CHEXPERT = {
    "Enlarged Cardiomediastinum": "enlarged_cardiomediastinum", "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung_opacity", "Lung Lesion": "lung_lesion", "Edema": "edema",
    "Consolidation": "consolidation", "Pneumonia": "pneumonia", "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "effusion", "Pleural Other": "pleural_other", "Fracture": "fracture",
    "Support Devices": "support_devices",
}  # fmt: skip


def labelled(row: Row, uncertain: int | None = None) -> dict[str, int | None]:
    """The labels of one row of the CheXpert labeller, told without our code."""
    told: dict[str, int | None] = {}
    healthy = row["No Finding"] in ("1.0", "1")
    for column, name in CHEXPERT.items():
        cell = row[column]
        told[name] = {"": None, "-1.0": uncertain, "-1": uncertain}.get(cell, None if cell == "" else 0)
        if cell in ("1.0", "1"):
            told[name] = 1
        if healthy and column != "Support Devices":
            told[name] = 0
    ill = any(row[c] in ("1.0", "1") for c in CHEXPERT if c != "Support Devices")
    told["normal"] = 1 if healthy else 0 if ill else None
    return told


def chexpert(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("chexpert_train.csv.gz"), 30))
    valid = []
    for number in range(4):
        row = {
            **rows[number],
            "Path": f"CheXpert-v1.0-small/valid/patient{64541 + number}/study1/view1_frontal.jpg",
        }
        valid.append({**row, **{name: row[name] or "0.0" for name in CHEXPERT}, "No Finding": "0.0"})
    for row in [*rows, *valid]:
        picture(root / row["Path"])
        view = "L" if row["Frontal/Lateral"] == "Lateral" else row["AP/PA"]
        truth.add(row["Path"].split("/")[2], view, test="/valid/" in row["Path"], **labelled(row))
    _table(root / "CheXpert-v1.0-small" / "train.csv", rows)
    _table(root / "CheXpert-v1.0-small" / "valid.csv", valid)
    return truth


def mimic(root: Path) -> Truth:
    truth = Truth()
    metadata, findings, parts = [], [], []
    views = ("PA", "LATERAL", "AP", "")
    for patient in range(10):
        subject, study = 10000032 + patient, 50414267 + patient
        cells = dict.fromkeys(["No Finding", *CHEXPERT], "")
        cells |= (
            {"No Finding": "1.0"}
            if patient % 3 == 0
            else {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}
        )
        split = "test" if patient == 9 else "validate" if patient == 8 else "train"
        findings.append({"subject_id": str(subject), "study_id": str(study), **cells})
        for number in range(2):
            name = f"02aa804e-bde0afdd-112c0b34-7bc16630-{patient:04d}{number:04d}"
            view = views[(patient + number) % 4]
            picture(root / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{name}.jpg")
            ids = {"dicom_id": name, "subject_id": str(subject), "study_id": str(study)}
            metadata.append(
                {
                    **ids,
                    "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
                    "ViewPosition": view,
                    "Rows": "96",
                    "Columns": "80",
                    "StudyDate": "21800506",
                    "StudyTime": "213014.531",
                    "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
                    "ViewCodeSequence_CodeMeaning": "postero-anterior",
                    "PatientOrientationCodeSequence_CodeMeaning": "Erect",
                }
            )
            parts.append(
                {"dicom_id": name, "study_id": str(study), "subject_id": str(subject), "split": split}
            )
            said = labelled(cells)
            truth.add(str(subject), {"LATERAL": "L"}.get(view, view), test=split == "test", **said)
    _table(root / "mimic-cxr-2.0.0-metadata.csv.gz", metadata, packed=True)
    _table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", findings, packed=True)
    _table(root / "mimic-cxr-2.0.0-split.csv.gz", parts, packed=True)
    return truth


PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def padchest(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped(f"{PADCHEST}.gz"), 24))
    for row in rows:
        picture(root / row["ImageDir"] / row["ImageID"], bits=16)
        words = [word.strip(" '") for word in row["Labels"][1:-1].split(",")]
        silent = set(words) <= {"unchanged", ""}
        view = {"AP_horizontal": "AP supine"}.get(row["Projection"], row["Projection"])
        patterns = {"alveolar pattern", "interstitial pattern", "ground glass pattern", "infiltrates"}
        said: dict[str, int | None] = {
            "normal": int("normal" in words),
            "cardiomegaly": int("cardiomegaly" in words),
            "effusion": int("pleural effusion" in words),
            "infiltration": int(not patterns.isdisjoint(words)),
            "pneumonia": int("pneumonia" in words),
        }
        truth.add(
            row["PatientID"],
            view,
            hospital=row["Manufacturer_DICOM"],
            **{name: None if silent else value for name, value in said.items()},
        )
    _table(root / PADCHEST, rows)
    return truth


def rsna(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("kaggle_stage_2_train_labels.csv.zip"), 20))
    names = list(dict.fromkeys(row["patientId"] for row in rows))
    headers = {row["PatientID"]: row for row in shipped("kaggle_stage_2_train_images_dicom_headers.csv.gz")}
    details, mapping = [], []
    for place, name in enumerate(names):
        picture(root / "stage_2_train_images" / f"{name}.dcm", PatientID=name)
        target = int(any(row["Target"] == "1" for row in rows if row["patientId"] == name))
        kind = "Lung Opacity" if target else "Normal" if place % 2 else "No Lung Opacity / Not Normal"
        details += [{"patientId": name, "class": kind}] * (1 + target)
        # Two images of one patient of NIH's.
        image = f"{30000 + place // 2:08d}_{place % 2:03d}.png"
        mapping.append({"subset_img_id": name, "img_id": image, "SOPInstanceUID": f"1.2.{place}"})
        view = headers[name]["ViewPosition"]
        truth.add(image[:8], view, pneumonia=target, lung_opacity=target, normal=int(kind == "Normal"))
    for number in range(2):
        name = f"0000a175-0e68-4ca4-b1af-16720418000{number}"
        picture(root / "stage_2_test_images" / f"{name}.dcm", PatientID=name, ViewPosition=None)
        truth.add(name, "", test=True)
    _table(root / "stage_2_train_labels.csv", rows)
    _table(root / "stage_2_detailed_class_info.csv", details)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    return truth


VINDR = {
    "Cardiomegaly": "cardiomegaly", "Pleural thickening": "pleural_thickening", "Pulmonary fibrosis": "fibrosis",
    "Nodule/Mass": "lung_lesion", "Lung Opacity": "lung_opacity", "No finding": "normal",
}  # fmt: skip


def vindr(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("vinbigdata-train.csv.gz"), 60))
    for name in dict.fromkeys(row["image_id"] for row in rows):
        picture(root / "train" / f"{name}.dicom", PatientID=None, ViewPosition=None)
        found = {row["class_name"] for row in rows if row["image_id"] == name}
        truth.add(name, "PA", **{label: int(word in found) for word, label in VINDR.items()})
    for number in range(3):
        name = f"002a34c58c5b758217ed1f584ccbcfe{number}"
        picture(root / "test" / f"{name}.dicom", PatientID=None, ViewPosition=None)
        truth.add(name, "PA", test=True)
    _table(root / "train.csv", rows)
    return truth


def siim(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("siim-pneumothorax-train-rle.csv.gz"), 20))
    for place, name in enumerate(dict.fromkeys(row["ImageId"] for row in rows)):
        study = f"1.2.276.0.7230010.3.1.2.8323329.{place}"
        picture(
            root / "dicom-images-train" / study / f"{study}.1" / f"{name}.dcm",
            PatientID=f"uuid-{place}",
            ViewPosition=None,
        )
        drawn = any(row[" EncodedPixels"].strip() != "-1" for row in rows if row["ImageId"] == name)
        truth.add(name, "", pneumothorax=int(drawn))
    picture(root / "dicom-images-test/1.2.9/1.2.9.1/1.2.276.9.dcm", PatientID="uuid-t", ViewPosition=None)
    truth.add("1.2.276.9", "", test=True)
    _table(root / "train-rle.csv", rows)
    return truth


COVID = (
    *("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated"),
    *("intubation_present", "went_icu", "in_icu", "needed_supplemental_O2", "extubated", "temperature"),
    *(
        "pO2_saturation",
        "leukocyte_count",
        "neutrophil_count",
        "lymphocyte_count",
        "view",
        "modality",
        "date",
    ),
    *("location", "folder", "filename", "doi", "url", "license", "clinical_notes", "other_notes", ""),
)
FINDINGS: tuple[tuple[str, dict[str, int | None]], ...] = (
    ("Pneumonia/Viral/COVID-19", {"covid19": 1, "viral_pneumonia": 1, "pneumonia": 1, "normal": 0}),
    ("Pneumonia/Bacterial/Klebsiella", {"covid19": 0, "viral_pneumonia": 0, "pneumonia": 1, "normal": 0}),
    ("Pneumonia", {"covid19": None, "viral_pneumonia": None, "pneumonia": 1, "normal": 0}),
    ("No Finding", {"covid19": 0, "viral_pneumonia": 0, "pneumonia": 0, "normal": 1}),
    ("Tuberculosis", {"covid19": 0, "viral_pneumonia": 0, "pneumonia": 0, "normal": 0}),
    ("todo", {}),
)


def covid19(root: Path) -> Truth:
    truth, rows = Truth(), []
    places = (
        "Cho Ray Hospital, Ho Chi Minh City, Vietnam",
        "Changhua Christian Hospital, Changhua City, Taiwan",
    )
    views = ("PA", "AP", "AP Supine", "L", "AP Erect")
    for number in range(18):
        finding, said = FINDINGS[number % len(FINDINGS)]
        view, name = views[number % 5], f"auntminnie-{number}-2020_01_28_23_51.jpg"
        row = dict.fromkeys(COVID, "") | {
            "patientid": str(2 + number // 2), "offset": "0", "sex": "MF"[number % 2], "age": "65",
            "finding": finding,
            "view": view, "modality": "X-ray", "location": places[number % 2], "folder": "images", "filename": name,
            "license": "CC BY-NC-SA", "other_notes": "Credit to a hospital, with a comma",
        }  # fmt: skip
        rows.append(row)
        picture(root / "images" / name)
        told = {"AP Supine": "AP supine", "AP Erect": "AP"}.get(view, view)
        truth.add(row["patientid"], told, hospital=row["location"], **said)
    rows.append({**rows[0], "modality": "CT", "filename": "a.nii.gz", "folder": "volumes", "view": "Axial"})
    _table(root / "metadata.csv", rows)
    return truth


def covidx(root: Path) -> Truth:
    """Every source has one class, as is nearly so in the published lists."""
    truth = Truth()
    said = {
        "COVID-19": {"covid19": 1, "pneumonia": 1, "normal": 0},
        "normal": {"covid19": 0, "pneumonia": 0, "normal": 1},
        "pneumonia": {"covid19": 0, "pneumonia": 1, "normal": 0},
    }
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for source, kind, images in (
        ("sirm", "COVID-19", 36),
        ("actmed", "normal", 30),
        ("rsna", "pneumonia", 30),
    ):
        for number in range(images):
            part = "test" if number >= images - 2 else "train"
            name = f"{source} ({number}).png" if source == "sirm" else f"{source}-{number:05d}.jpg"
            picture(root / part / name)
            lists[part].append(f"{source}{number} {name} {kind} {source}\n")
            truth.add(f"{source}{number}", "", test=part == "test", hospital=source, **said[kind])
    for part, text in lists.items():
        (root / f"{part}_COVIDx9A.txt").write_text("".join(text))
    return truth


def stonybrook(root: Path) -> Truth:
    truth, rows = Truth(), []
    for number in range(12):
        picture(root / "CXR_images_scored" / f"{number}.jpg")
        scores = (0, 0) if number % 3 == 0 else (4, 3)
        rows.append([f"{number // 2}", "20200401_120000", "5", str(scores[0]), "4", str(scores[1])])
        truth.add(str(number // 2), "AP", covid19=1, lung_opacity=int(number % 3 != 0))
    with (root / "ralo-dataset-metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "", "Rater 1", "", "Rater 2", ""])  # two rows of header; names come twice
        names = ("Total GEOGRAPHIC", "Total OPACITY", "Total GEOGRAPHIC", "Total OPACITY")
        writer.writerow(["Subject_ID", "Exam_DateTime", *names])
        writer.writerows(rows)
    return truth


def brax(root: Path) -> Truth:
    truth, rows = Truth(), []
    for number in range(12):
        patient, view = f"id_{number // 2:08x}-a1", ("PA", "L", "AP", "")[number % 4]
        path = f"{patient}/Study_{number}.{number}/Series_{number}.1/image-{number}.2"
        picture(root / "images" / f"{path}.png")
        cells = dict.fromkeys(["No Finding", *CHEXPERT], "")
        cells |= (
            {"No Finding": "1"} if number % 2 else {"Cardiomegaly": "1", "Edema": "-1", "Lung Lesion": "0"}
        )
        rows.append(
            {
                "DicomPath": f"Anonymized_DICOMs/{path}.dcm", "PngPath": f"images/{path}.png", "PatientID": patient,
                "PatientSex": "F", "PatientAge": "85 or more" if number < 2 else "45",
                "AccessionNumber": f"a{number}",
                "StudyDate": "20120703", **cells, "ViewPosition": view, "Rows": "96", "Columns": "80",
                "Manufacturer": "CARESTREAM",
            }
        )  # fmt: skip
        truth.add(patient, view, hospital="CARESTREAM", **labelled(cells))
    _table(root / "master_spreadsheet_update.csv", rows)
    return truth


OPENI = (("normal", 1, 0, 0), ("Cardiomegaly/mild", 0, 1, 0), ("Opacity/lung/base/left", 0, 0, 1))


def openi(root: Path) -> Truth:
    truth = Truth()
    views = {
        row["imageid"]: row["View Position"] for row in islice(shipped("nlmcxr_dicom_metadata.csv.gz"), 24)
    }
    shown = {"LATERAL": "L", "LL": "L", "RL": "L"}
    for number, (image, view) in enumerate(views.items()):
        major, normal, big, opaque = OPENI[number % 3]
        uid = image.split("_")[0]
        picture(root / "NLMCXR_png" / f"{image}.png")
        (root / "ecgen-radiology").mkdir(exist_ok=True)
        text = (
            f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="{uid}"/>'
            "<licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>"
            f"<MeSH><major>{major}</major><automatic>sternotomy</automatic></MeSH>"
            f'<parentImage id="{image}"><figureId>F1</figureId></parentImage></eCitation>'
        )
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text)
        told = shown.get(view, view if view in ("PA", "AP") else "")
        truth.add(uid, told, normal=normal, cardiomegaly=big, lung_opacity=opaque, hospital="?")
    return truth


def montgomery(root: Path) -> Truth:
    truth, top = Truth(), root / "MontgomerySet"
    for number in range(10):
        ill = number % 2
        name = f"MCUCXR_{number + 1:04d}_{ill}"
        picture(top / "CXR_png" / f"{name}.png")
        for side in ("left", "right"):
            mask(top / "ManualMask" / f"{side}Mask" / f"{name}.png", side == "left")
        (top / "ClinicalReadings").mkdir(exist_ok=True)
        reading = f"Patient's Sex: F \nPatient's Age: 0{20 + number}Y\nnormal\n"
        (top / "ClinicalReadings" / f"{name}.txt").write_text(reading)
        truth.add(name, "PA", tuberculosis=ill, normal=1 - ill)
        truth.masks += 1
    return truth


def shenzhen(root: Path) -> Truth:
    truth, top = Truth(), root / "ChinaSet_AllFiles"
    for number in range(10):
        ill = number % 2
        name = f"CHNCXR_{number + 1:04d}_{ill}"
        picture(top / "CXR_png" / f"{name}.png")
        if number < 6:  # not all have one
            mask(root / "mask" / f"{name}_mask.png", True)
            truth.masks += 1
        (top / "ClinicalReadings").mkdir(exist_ok=True)
        (top / "ClinicalReadings" / f"{name}.txt").write_text("male 45yrs\nnormal\n")
        truth.add(name, "PA", tuberculosis=ill, normal=1 - ill)
    return truth


def tbx11k(root: Path) -> Truth:
    truth, top = Truth(), root / "TBX11K"
    lists: dict[str, list[str]] = {"TBX11K_train": [], "TBX11K_val": []}
    images, annotations = [], []
    kinds: dict[int, dict[str, int | None]] = {
        0: {"active_tuberculosis": 1, "latent_tuberculosis": 0},
        1: {"active_tuberculosis": 0, "latent_tuberculosis": 1},
        2: {"active_tuberculosis": None, "latent_tuberculosis": None},
    }
    for number in range(15):
        kind = ("health", "sick", "tb")[number % 3]
        name = f"{kind}/{kind[0]}{number:04d}.png"
        picture(top / "imgs" / name)
        lists["TBX11K_train" if number < 12 else "TBX11K_val"].append(name)
        images.append({"id": number, "file_name": name, "height": 512, "width": 512})
        said: dict[str, int | None] = {"active_tuberculosis": 0, "latent_tuberculosis": 0}
        if kind == "tb":
            said = kinds[number // 3 % 3]
            if number // 3 % 3 < 2:
                box = {
                    "image_id": number,
                    "category_id": 1 + number // 3 % 3,
                    "bbox": [1.5, 2, 3, 4],
                    "id": number,
                }
                annotations.append(box)
        truth.add(name, "", tuberculosis=int(kind == "tb"), normal=int(kind == "health"), **said)
    for number in range(2):
        picture(top / "imgs" / "test" / f"test_{number:04d}.png")
        truth.add(f"test{number}", "", test=True)
    picture(top / "imgs" / "extra" / "da+db" / "test" / "p001.png")  # of another corpus
    (top / "lists").mkdir()
    for part, names in lists.items():
        (top / "lists" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    names = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
    categories = [
        {"id": place, "name": name, "supercategory": "Tuberculosis"}
        for place, name in enumerate(names, start=1)
    ]
    (top / "annotations" / "json").mkdir(parents=True)
    (top / "annotations" / "json" / "TBX11K_trainval.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return truth


def kermany(root: Path) -> Truth:
    truth, top = Truth(), root / "chest_xray"
    for part, first in (("train", 1), ("test", 1)):
        for number in range(first, first + (8 if part == "train" else 3)):
            for kind in ("bacteria", "virus"):
                name = f"person{number}_{kind}_{number + 5}.jpeg"
                picture(top / part / "PNEUMONIA" / name)
                said = {
                    "bacterial_pneumonia": int(kind == "bacteria"),
                    "viral_pneumonia": int(kind == "virus"),
                }
                truth.add(f"{part}/person{number}", "", test=part == "test", pneumonia=1, normal=0, **said)
            for name in (f"IM-0{115 + number}-0001.jpeg", f"NORMAL2-IM-0{518 + number}-0001-0002.jpeg"):
                picture(top / part / "NORMAL" / name)
                said = {"pneumonia": 0, "normal": 1, "bacterial_pneumonia": 0, "viral_pneumonia": 0}
                truth.add(f"{part}/{name[:12]}{number}", "", test=part == "test", **said)
    return truth


def jsrt(root: Path) -> Truth:
    truth, nodules, others = Truth(), [], []
    for number in range(1, 4):
        for kind, lines in (("JPCLN", nodules), ("JPCNN", others)):
            name = f"{kind}{number:03d}"
            picture(root / "All247images" / f"{name}.IMG")
            if kind == "JPCLN":
                cells = (
                    f"{name}.IMG",
                    "5",
                    "15",
                    "53",
                    "Female",
                    "1634",
                    "692",
                    "malignant",
                    "l.u. lobe",
                    "cancer",
                )
                lines.append("\t".join(cells))
            else:
                lines.append(f"{name}.IMG   {60 + number}   Male   non-nodule")
            truth.add(name, "PA", nodule=int(kind == "JPCLN"))
            for side in ("left", "right"):
                mask(root / f"scratch/fold1/masks/{side} lung/{name}.gif", side == "left", (1024, 1024))
            truth.masks += 1
    (root / "CLNDAT_EN.txt").write_bytes("\r".join([*nodules, ""]).encode())
    (root / "CNNDAT_EN.TXT").write_bytes("\r".join([*others, ""]).encode())
    return truth


def folders(root: Path) -> Truth:
    truth = Truth()
    for part in ("train", "test"):
        for kind, label in (("COVID-19", "covid19"), ("Normal", "normal")):
            for number in range(8 if part == "train" else 2):
                picture(root / part / kind / f"{kind}-{number}.png")
                said = {"covid19": 0, "normal": 0} | {label: 1}
                truth.add(f"{part}{kind}{number}", "", test=part == "test", **said)
    return truth


LAYOUTS: dict[str, Callable[[Path], Truth]] = {
    layout.__name__: layout
    for layout in (
        *(
            nih,
            chexpert,
            mimic,
            padchest,
            rsna,
            vindr,
            siim,
            covid19,
            covidx,
            stonybrook,
            brax,
            openi,
            montgomery,
        ),
        *(shenzhen, tbx11k, kermany, jsrt, folders),
    )
}
