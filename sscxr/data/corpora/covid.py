"""Corpora of the COVID-19 pandemic: the image data collection, COVIDx, Stony Brook."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sscxr.data.corpora.base import (
    Corpus,
    CorpusError,
    Folder,
    add_labels,
    first_rows,
    lines,
    number,
    read_csv,
    unknown_words,
)
from sscxr.data.corpora.parts import TEST, TRAIN, VALID
from sscxr.data.corpora.vocabulary import (
    COVID_SILENT,
    COVID_WORDS,
    COVIDX_CLASSES,
    PNEUMONIA_KINDS,
    spelled,
)


def _parts(text: str) -> Sequence[str]:
    return re.split(r"[/,;]", text)


def covid19(folder: Folder, uncertain: str) -> pd.DataFrame:
    found = read_csv(
        folder.table("metadata.csv"),
        ("patientid", "finding", "view", "modality", "filename"),
        optional=("sex", "age", "location", "license", "offset"),
    )
    found = found[found["modality"] == "X-ray"].reset_index(drop=True)  # the rest is CT
    found = first_rows(found, folder, "filename")
    table = pd.DataFrame(
        {
            "image": found["filename"],
            "file": folder.locate(found["filename"]),
            "patient_id": found["patientid"],
            "view": found["view"],
        }
    )
    for column, name in (("sex", "sex"), ("hospital", "location"), ("licence", "license")):
        table[column] = found[name] if name in found.columns else ""
    table["age"] = number(found["age"]) if "age" in found.columns else np.nan
    labels, unknown = spelled(found["finding"], COVID_WORDS, _parts, silent=COVID_SILENT)
    unknown_words(folder, unknown)
    # A pneumonia whose cause is not given may be of any kind; a viral one may be COVID-19.
    parts_of = found["finding"].map(
        lambda text: {" ".join(part.lower().split()) for part in _parts(text)} - {"ards"}
    )
    for kind in PNEUMONIA_KINDS:
        labels[kind][(parts_of == {"pneumonia"}).to_numpy()] = np.nan
    viral = {"pneumonia", "viral", "viral pneumonia"}
    labels["covid19"][parts_of.map(lambda parts: bool(parts) and parts <= viral).to_numpy()] = np.nan
    return add_labels(table, labels)


COVID19 = Corpus(
    name="covid19",
    title="COVID-19 Image Data Collection",
    images="some 860 X-rays, JPEG and PNG",
    labels="kinds of pneumonia, tuberculosis, normal",
    licence="by image, in its table",
    where="https://github.com/ieee8023/covid-chestxray-dataset",
    layout="images/*, metadata.csv; its location stands for the hospital",
    read=covid19,
    signs=("metadata.csv",),
)

# Parts of COVIDx that are other corpora: a patient in both is one patient.
_COVIDX_CORPORA = {"cohen": "covid19", "rsna": "rsna"}


def covidx(folder: Folder, uncertain: str) -> pd.DataFrame:
    parts = []
    for split, kind in ((TRAIN, "train"), (VALID, "val"), (TEST, "test")):
        path = _covidx_list(folder, kind)
        if path is not None:
            parts.append(_covidx_rows(path).assign(split=split))
    if not any((part["split"] == TRAIN).any() for part in parts):
        raise CorpusError(f"{folder.path}: train.txt, train_COVIDx.txt or train_COVIDx9A.txt was not found")
    table = pd.concat(parts, ignore_index=True)
    table = first_rows(table.assign(image=table["split"] + "/" + table["name"]), folder)
    by_part = folder.locate(table["split"].replace({VALID: "val"}) + "/" + table["name"], parts=2)
    table["file"] = by_part.where(by_part != "", folder.locate(table["name"]))  # or else anywhere
    words = sorted({*table["class"].str.lower()} - set(COVIDX_CLASSES))
    unknown_words(folder, words)
    names = sorted({name for known in COVIDX_CLASSES.values() for name in known})
    kinds = table["class"].str.lower()
    known = pd.DataFrame.from_dict(dict(COVIDX_CLASSES), orient="index").reindex(index=kinds, columns=names)
    labels = {name: known[name].to_numpy(dtype=np.float32) for name in names}
    return add_labels(table.drop(columns=["name", "class"]), labels)


def _covidx_list(folder: Folder, kind: str) -> Path | None:
    """Return a part's list: `train.txt`, or else the latest version, as in `train_COVIDx9A.txt`."""
    found = folder.has(f"{kind}.txt")
    if found is not None:
        return found
    versions = [name for name in folder.names if re.fullmatch(rf"{kind}_COVIDx\w*\.txt", name)]
    latest = max(
        versions, key=lambda name: [int(part) for part in re.findall(r"\d+", name)] or [0], default=""
    )
    return folder.path / folder.names[latest] if latest else None


def _covidx_rows(path: Path) -> pd.DataFrame:
    """Read patient, file, class, source, separated by blanks; some files have blanks in their names."""
    rows = []
    for place, line in enumerate(lines(path), 1):
        words = line.split()
        if len(words) < 3:
            raise CorpusError(
                f"{path}: line {place} has {len(words)} words; it has patient, file, class, source"
            )
        known = [number for number, word in enumerate(words) if word.lower() in COVIDX_CLASSES and number > 1]
        at = known[-1] if known else max(2, len(words) - 2)
        source = "_".join(words[at + 1 :])
        rows.append((words[0], " ".join(words[1:at]), words[at], source))
    table = pd.DataFrame(rows, columns=["patient_id", "name", "class", "hospital"])
    corpus = table["hospital"].map(_COVIDX_CORPORA)
    own = table["hospital"] + "/" + table["patient_id"]
    return table.assign(patient_id=(corpus + ":" + table["patient_id"]).fillna(own))


COVIDX = Corpus(
    name="covidx",
    title="COVIDx CXR",
    images="13,975 to 84,818, by version",
    labels="normal, pneumonia, covid19 (the A lists); covid19 or not (the B lists)",
    licence="by source; see its page",
    where="https://github.com/lindawangg/COVID-Net/blob/master/docs/COVIDx.md",
    layout="train/*, test/*, train.txt, test.txt (or train_COVIDx9A.txt ...): patient, file, class, source; the "
    "source stands for the hospital",
    read=covidx,
    signs=("train_COVIDx*.txt", "test_COVIDx*.txt"),
)


def stonybrook(folder: Folder, uncertain: str) -> pd.DataFrame:
    scores = folder.has("ralo-dataset-metadata.csv")
    if scores is not None:
        return _ralo(folder, scores)
    series = folder.has("metadata.csv")
    if series is None:
        raise CorpusError(
            f"{folder.path}: ralo-dataset-metadata.csv (Zenodo) or metadata.csv (TCIA) was not found"
        )
    return _tcia(folder, series)


def _ralo(folder: Folder, path: Path) -> pd.DataFrame:
    """Read the scored subset: row n of its table, from 0, is CXR_images_scored/n.jpg."""
    opacity = ("Total OPACITY", "Total OPACITY.1")  # two readers, 0 to 8 for each lung
    found = read_csv(path, ("Subject_ID", *opacity), header=1)
    names = pd.Series([f"{row}.jpg" for row in range(len(found))])
    table = pd.DataFrame(
        {
            "image": names.str.removesuffix(".jpg"),
            "file": folder.locate("CXR_images_scored/" + names, parts=2),
            "patient_id": found["Subject_ID"],
            "view": "AP",  # all of them
        }
    )
    scored = np.mean([number(found[name]) for name in opacity], axis=0)
    opaque = np.where(np.isnan(scored), np.nan, scored > 0).astype(np.float32)
    return add_labels(table, {"covid19": np.ones(len(table), np.float32), "lung_opacity": opaque})


def _tcia(folder: Folder, path: Path) -> pd.DataFrame:
    """Read COVID-19-NY-SBU in the layout of the NBIA Data Retriever: a folder per series."""
    columns = ("Subject ID", "Study UID", "Modality", "Manufacturer", "File Location")
    found = read_csv(path, columns)
    found = found[found["Modality"].isin(["CR", "DX"])].reset_index(drop=True)
    if found.empty:
        raise CorpusError(f"{path}: no series of modality CR or DX")
    place = found["File Location"].str.replace("\\", "/", regex=False).str.removeprefix("./").str.strip("/")
    series = pd.DataFrame(
        {
            "place": place.str.split("/").str[-3:].str.join("/"),
            "patient_id": found["Subject ID"],
            "study_id": found["Study UID"],
            "hospital": found["Manufacturer"],
        }
    ).drop_duplicates("place")
    files = pd.DataFrame({"file": folder.below(suffixes=(".dcm",))})
    files["place"] = files["file"].str.split("/").str[-4:-1].str.join("/")
    files["image"] = files["file"].str.split("/").str[-4:].str.join("/")
    absent = ~series["place"].isin(files["place"])
    if absent.any():
        folder.warnings.append(f"{int(absent.sum())} of {len(series)} series have no file")
    table = files.merge(series, on="place").drop(columns="place")
    return add_labels(table, {"covid19": np.ones(len(table), np.float32)})


STONYBROOK = Corpus(
    name="stonybrook",
    title="Stony Brook University COVID-19 positive cases",
    images="2,373 JPEG (RALO, Zenodo), or the CR and DX series of COVID-19-NY-SBU (TCIA), DICOM",
    labels="covid19; RALO: lung_opacity from its scores",
    licence="CC BY 4.0 (TCIA); RALO: see its page",
    where="https://doi.org/10.5281/zenodo.4633999, https://doi.org/10.7937/TCIA.BBAG-2923",
    layout="CXR_images_scored/0.jpg, ralo-dataset-metadata.csv; or COVID-19-NY-SBU/PATIENT/STUDY/SERIES/*.dcm, "
    "metadata.csv",
    read=stonybrook,
    signs=("ralo-dataset-metadata.csv", "CXR_images_scored", "COVID-19-NY-SBU"),
)
