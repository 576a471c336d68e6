"""The corpora whose labels the CheXpert labeller wrote: CheXpert, MIMIC-CXR-JPG, BRAX."""

from pathlib import Path

import numpy as np
import pandas as pd

from sscxr.data.corpora.base import (
    Corpus,
    CorpusError,
    Folder,
    add_labels,
    first_rows,
    number,
    read_by,
    read_csv,
)
from sscxr.data.corpora.parts import TEST, TRAIN, VALID, part_of
from sscxr.data.corpora.vocabulary import CHEXPERT_WORDS, from_labeller

FINDINGS = tuple(word.title() for word in CHEXPERT_WORDS)  # "No Finding", "Pleural Effusion", ...


def _labelled(table: pd.DataFrame, found: pd.DataFrame, uncertain: str) -> pd.DataFrame:
    columns = {name: number(found[name]) for name in found.columns if name.lower() in CHEXPERT_WORDS}
    return add_labels(table, from_labeller(columns, uncertain))


def chexpert(folder: Folder, uncertain: str) -> pd.DataFrame:
    tables = [(TRAIN, folder.table("train.csv", shipped="chexpert_train.csv.gz"))]
    # The test images were published later, by CheXlocalize; their table has only the findings.
    more = ((VALID, folder.has("valid.csv")), (TEST, folder.has("test_labels.csv")))
    tables += [(split, path) for split, path in more if path is not None]
    views = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
    parts = [
        read_csv(path, ("Path",), optional=(*views, *FINDINGS)).assign(split=split) for split, path in tables
    ]
    found = first_rows(pd.concat(parts, ignore_index=True).fillna(""), folder, "Path")
    found = found.reindex(columns=found.columns.union(list(views), sort=False), fill_value="")
    # CheXpert-v1.0[-small]/train/patient00001/study1/view1_frontal.jpg: the first two folders differ by release.
    tail = found["Path"].str.extract(r"((patient\d+)/(study\d+)/([^/]+))$")
    age = number(found["Age"])
    lateral = (found["Frontal/Lateral"] == "Lateral") | tail[3].str.contains("lateral").fillna(False)
    table = pd.DataFrame(
        {
            "image": tail[0].fillna(found["Path"]),
            "file": folder.locate(found["Path"], parts=3),
            "patient_id": tail[1],
            "study_id": tail[1] + "/" + tail[2],
            "view": np.where(lateral, "L", found["AP/PA"]),
            "age": np.where(age > 0, age, np.nan),  # 0 means unknown; 90 includes older
            "sex": found["Sex"],
            "split": found["split"],
        }
    )
    return _labelled(table, found, uncertain)


CHEXPERT = Corpus(
    name="chexpert",
    title="CheXpert",
    images="223,414 JPEG, and 234 of the published validation set",
    labels="13 findings, normal; uncertain ones by a setting",
    licence="Stanford University Dataset Research Use Agreement: non-commercial research",
    where="https://stanfordaimi.azurewebsites.net",
    layout="CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg, train.csv, valid.csv; the full-size "
    "release in its batches as well",
    read=chexpert,
    signs=("patient[0-9][0-9][0-9][0-9][0-9]", "CheXpert-v1.0*", "chexpert*.csv"),
    # Radiologists read the 200 patients of the validation set; results are reported on them.
    held_out=(VALID, TEST),
)


def _mimic_part(path: Path, word: str) -> str:
    part = part_of(word) if word else ""
    if part is None:
        raise CorpusError(f"{path}: column 'split' has {word!r}, not train, validate or test")
    return part


def mimic(folder: Folder, uncertain: str) -> pd.DataFrame:
    metadata = folder.table("mimic-cxr-2.0.0-metadata.csv")
    labels = folder.table("mimic-cxr-2.0.0-chexpert.csv", "mimic-cxr-2.0.0-negbio.csv")
    found = read_csv(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"))
    found = first_rows(found, folder, "dicom_id")
    findings = read_csv(labels, ("subject_id", "study_id"), optional=FINDINGS).drop_duplicates("study_id")
    found = found.merge(findings.drop(columns="subject_id"), on="study_id", how="left").fillna("")
    parts = folder.has("mimic-cxr-2.0.0-split.csv")
    split = pd.Series("", index=found.index)
    if parts is not None:
        words = found["dicom_id"].map(read_by(parts, "dicom_id", "split")["split"]).fillna("")
        split = words.map({word: _mimic_part(parts, word) for word in set(words)})
    else:
        folder.warnings.append(
            "mimic-cxr-2.0.0-split.csv.gz is missing, so the official test images are not held out"
        )
    table = pd.DataFrame(
        {
            "image": found["dicom_id"],
            "file": folder.locate(found["dicom_id"], suffixes=(".jpg",)),
            "patient_id": found["subject_id"],
            "study_id": found["study_id"],
            "view": found["ViewPosition"],
            "split": split,
        }
    )
    return _labelled(table, found, uncertain)


MIMIC = Corpus(
    name="mimic",
    title="MIMIC-CXR-JPG 2.0.0 and 2.1.0",
    images="377,110 JPEG",
    labels="13 findings, normal; uncertain ones by a setting",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    where="https://physionet.org/content/mimic-cxr-jpg/",
    layout="files/p10/p10000032/s50414267/DICOM_ID.jpg, mimic-cxr-2.0.0-metadata.csv.gz, "
    "mimic-cxr-2.0.0-chexpert.csv.gz, mimic-cxr-2.0.0-split.csv.gz",
    read=mimic,
    signs=("mimic-cxr-2.0.0-*",),
)


def brax(folder: Folder, uncertain: str) -> pd.DataFrame:
    path = folder.table("master_spreadsheet_update.csv", "master_spreadsheet.csv")
    found = read_csv(
        path,
        ("PngPath", "PatientID", "PatientSex", "PatientAge", "ViewPosition"),
        optional=("DicomPath", "AccessionNumber", "Manufacturer", *FINDINGS),
    )
    found = first_rows(found, folder, "PngPath")
    # images/id_PATIENT/Study_UID/Series_UID/image-UID.png; the DICOM files lie alike under Anonymized_DICOMs/.
    file = folder.locate(found["PngPath"], parts=4)
    if "DicomPath" in found.columns:
        file = file.where(file != "", folder.locate(found["DicomPath"], parts=4))
    table = pd.DataFrame(
        {
            "image": found["PngPath"].str.removeprefix("images/"),
            "file": file,
            "patient_id": found["PatientID"],
            "view": found["ViewPosition"],
            "age": number(found["PatientAge"].str.replace(" or more", "", regex=False)),
            "sex": found["PatientSex"],
        }
    )
    for column, name in (("study_id", "AccessionNumber"), ("hospital", "Manufacturer")):
        if name in found.columns:
            table[column] = found[name]
    return _labelled(table, found, uncertain)


BRAX = Corpus(
    name="brax",
    title="BRAX 1.1.0",
    images="40,967 PNG (or DICOM)",
    labels="13 findings, normal; uncertain ones by a setting",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    where="https://physionet.org/content/brax/",
    layout="images/id_PATIENT/Study_UID/Series_UID/image-UID.png, master_spreadsheet_update.csv",
    read=brax,
    signs=("master_spreadsheet*.csv",),
)
