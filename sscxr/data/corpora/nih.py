"""ChestX-ray14 of the US National Institutes of Health, and the two challenges made from it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from sscxr.data.corpora import csv_text, rle
from sscxr.data.corpora.base import (
    Corpus,
    CorpusError,
    Folder,
    add_labels,
    boxes,
    first_rows,
    from_torchxrayvision,
    lines,
    number,
    read_by,
    read_csv,
    unknown_words,
    with_hidden,
)
from sscxr.data.corpora.parts import TEST, TRAIN
from sscxr.data.corpora.vocabulary import NIH_WORDS, spelled


def nih(folder: Folder, uncertain: str) -> pd.DataFrame:
    path = folder.table(
        "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", shipped="Data_Entry_2017_v2020.csv.gz"
    )
    sexes = ("Patient Gender", "Patient Sex")  # renamed in v2020
    found = read_csv(
        path,
        ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position"),
        optional=sexes,
    )
    found = first_rows(found, folder, "Image Index")
    sex = next((found[name] for name in sexes if name in found.columns), "")
    table = pd.DataFrame(
        {
            "image": found["Image Index"],
            "file": folder.locate(found["Image Index"]),
            "patient_id": found["Patient ID"].str.lstrip("0"),
            "view": found["View Position"],
            "age": number(found["Patient Age"]),
            "sex": sex,
        }
    )
    table["study_id"] = found["Image Index"].str.rsplit(".", n=1).str[0]
    table["split"] = _official(folder, table["image"])
    drawn = folder.has("BBox_List_2017.csv")
    if drawn is not None:
        table["boxes"] = table["image"].map(_nih_boxes(drawn)).fillna("")
    labels, unknown = spelled(found["Finding Labels"], NIH_WORDS, lambda text: text.split("|"))
    unknown_words(folder, unknown)
    return add_labels(table, labels)


def _official(folder: Folder, images: "pd.Series[str]") -> "pd.Series[str]":
    """Return the published parts; without the lists, warn that the test images are not held out."""
    test = folder.has("test_list.txt", "test_list_NIH.txt")
    train = folder.has("train_val_list.txt", "train_val_list_NIH.txt")
    if test is None:
        folder.warnings.append(
            "test_list.txt is missing, so the official test images are not known and not held out; it comes with "
            "the corpus"
        )
        return pd.Series("", index=images.index)
    split = images.isin(lines(test)).map({True: TEST, False: ""})
    return split if train is None else split.mask(images.isin(lines(train)) & (split == ""), TRAIN)


def _nih_boxes(path: Path) -> "pd.Series[str]":
    # The header is broken: `Bbox [x`, `y`, `w`, `h]`, followed by empty columns.
    with csv_text.reading(path, CorpusError):
        table = csv_text.frame(path).iloc[:, :6].reset_index(drop=True)
        if table.shape[1] < 6:
            raise ValueError("fewer than 6 columns: image, label, x, y, w, h")
    table.columns = pd.Index(["image", "label", "x", "y", "w", "h"])
    return boxes(table, "image", "label", ("x", "y", "w", "h"))


NIH = Corpus(
    name="nih",
    title="NIH ChestX-ray14",
    images="112,120 PNG",
    labels="14 findings, normal; boxes of 984",
    licence="NIH terms: free use, with link, citation and acknowledgement",
    where="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    layout="images/*.png (or images_001/images/*.png ...), Data_Entry_2017_v2020.csv, test_list.txt, "
    "train_val_list.txt, BBox_List_2017.csv",
    read=nih,
    signs=("Data_Entry_2017*.csv", "test_list*.txt", "0000[0-9][0-9][0-9][0-9]_[0-9][0-9][0-9].png"),
)


def rsna(folder: Folder, uncertain: str) -> pd.DataFrame:
    path = folder.table("stage_2_train_labels.csv", shipped="kaggle_stage_2_train_labels.csv.zip")
    rows = read_csv(path, ("patientId", "x", "y", "width", "height", "Target"))
    rows["name"] = "pneumonia"
    targets = rows.groupby("patientId", sort=True)["Target"].max().reset_index()
    table = pd.DataFrame({"image": targets["patientId"], "split": TRAIN})
    target = number(targets["Target"])
    table["boxes"] = (
        table["image"].map(boxes(rows, "patientId", "name", ("x", "y", "width", "height"))).fillna("")
    )
    normal = np.where(target == 1, np.float32(0), np.float32(np.nan))
    details = folder.has("stage_2_detailed_class_info.csv")
    if details is not None:
        kind = table["image"].map(read_by(details, "patientId", "class")["class"]).fillna("")
        normal = np.where(kind == "Normal", 1, np.where(kind == "", normal, 0)).astype(np.float32)
    table = add_labels(table, {"pneumonia": target, "lung_opacity": target, "normal": normal})
    table = with_hidden(table, folder.stems("stage_2_test_images", suffixes=(".dcm",)))
    table["file"] = folder.locate(table["image"], suffixes=(".dcm", ".jpg", ".png"))
    table["patient_id"] = _nih_patients(folder, table["image"])
    headers = from_torchxrayvision("kaggle_stage_2_train_images_dicom_headers.csv.gz")
    if headers is not None:  # without it, each file's own header is read when the file is prepared
        names = {"ViewPosition": "view", "PatientAge": "age", "PatientSex": "sex"}
        known = read_by(headers, "PatientID", *names)
        for name, column in names.items():
            table[column] = table["image"].map(known[name]).fillna("")
        table["age"] = number(table["age"])
    return table.fillna({"boxes": ""})


def _nih_patients(folder: Folder, images: "pd.Series[str]") -> "pd.Series[str]":
    """Return the images' NIH patients by the published mapping, if it exists."""
    path = folder.has("pneumonia-challenge-dataset-mappings_2018.json")
    if path is None:
        folder.warnings.append(
            "pneumonia-challenge-dataset-mappings_2018.json is missing, so each image counts as a separate "
            "patient, and none is known to be NIH's: do not use it beside nih"
        )
        return images
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        known = {row["subset_img_id"]: str(row["img_id"]).split("_")[0].lstrip("0") for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        raise CorpusError(f"{path}: not the mapping of images to NIH's that RSNA publishes") from None
    patients = images.map(known)
    return ("nih:" + patients).fillna(images)


RSNA = Corpus(
    name="rsna",
    title="RSNA Pneumonia Detection Challenge 2018",
    images="26,684 DICOM, and 3,000 without labels",
    labels="pneumonia (as lung_opacity), normal; boxes",
    licence="RSNA terms: non-commercial research and education",
    where="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
    layout="stage_2_train_images/*.dcm, stage_2_test_images/*.dcm, stage_2_train_labels.csv, "
    "stage_2_detailed_class_info.csv, pneumonia-challenge-dataset-mappings_2018.json (from rsna.org)",
    read=rsna,
    signs=("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"),
)


_NOT_DRAWN = ("-1", "-1.0")  # as published, and as in a table that was saved again


def _check_runs(path: Path, rows: pd.DataFrame) -> None:
    """Refuse a table with a cell that is neither a run-length code nor -1."""
    for line, cell in zip(rows["line"], rows["EncodedPixels"], strict=True):
        try:
            if not cell.strip():
                raise ValueError("an empty cell, which may mean no mask or an unknown one")
            rle.box(cell)
        except ValueError as error:
            raise CorpusError(f"{path}: line {line}, EncodedPixels: {error}; -1 means no mask") from None


def siim(folder: Folder, uncertain: str) -> pd.DataFrame:
    path = folder.table("train-rle.csv", "stage_2_train.csv", shipped="siim-pneumothorax-train-rle.csv.gz")
    # The first is published with a blank before EncodedPixels.
    rows = read_csv(path, ("ImageId", "EncodedPixels"))
    drawn = ~rows["EncodedPixels"].str.strip().isin(_NOT_DRAWN)
    _check_runs(path, rows[drawn])
    present = drawn.groupby(rows["ImageId"], sort=True).any()
    table = pd.DataFrame({"image": present.index.to_numpy(dtype=str), "split": TRAIN})
    runs = rows[drawn].groupby("ImageId")["EncodedPixels"].agg("|".join)
    table["boxes"] = table["image"].map(runs.map(rle.box)).fillna("")
    table = add_labels(table, {"pneumothorax": present.to_numpy().astype(np.float32)})
    table = with_hidden(table, folder.stems("dicom-images-test", suffixes=(".dcm",)))
    table["file"] = folder.locate(table["image"], suffixes=(".dcm",))
    # The header's patient is a name made for each image; the NIH patient was not published.
    table["patient_id"] = table["image"]
    return table.fillna({"boxes": ""})


SIIM = Corpus(
    name="siim",
    title="SIIM-ACR Pneumothorax Segmentation 2019",
    images="12,047 DICOM, and the test images without labels",
    labels="pneumothorax; masks of it, run-length encoded, kept as boxes",
    licence="SIIM-ACR terms: non-commercial research and education",
    where="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    layout="dicom-images-train/STUDY/SERIES/IMAGE.dcm, dicom-images-test/..., train-rle.csv (or stage_2_train.csv "
    "and stage_2_images/*.dcm)",
    read=siim,
    signs=("train-rle.csv", "stage_2_train.csv", "dicom-images-train"),
)
