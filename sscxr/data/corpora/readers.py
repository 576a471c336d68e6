"""Corpora that radiologists or report readers labelled: PadChest, VinDr-CXR, Open-i, JSRT."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.data.corpora.base import (
    Corpus,
    CorpusError,
    Folder,
    add_labels,
    both_sides,
    boxes,
    column_names,
    first_rows,
    from_torchxrayvision,
    number,
    read_by,
    read_csv,
    unknown_words,
    with_hidden,
)
from sscxr.data.corpora.parts import TEST, TRAIN
from sscxr.data.corpora.vocabulary import (
    OPENI_SILENT,
    OPENI_WORDS,
    PADCHEST_SILENT,
    PADCHEST_WORDS,
    VINDR_WORDS,
    spelled,
)


def _listed(text: str) -> Sequence[str]:
    """Split PadChest's `['pulmonary fibrosis', 'kyphosis']` into words; an empty cell is one empty word."""
    return [word.strip(" '\"") for word in text.strip("[]").split(",")]


def padchest(folder: Folder, uncertain: str) -> pd.DataFrame:
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    path = folder.table(name, shipped=f"{name}.gz")
    found = read_csv(
        path,
        (
            *("ImageID", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
            *("Projection", "Manufacturer_DICOM", "Labels"),
        ),
    )
    found = first_rows(found, folder, "ImageID")
    view = found["Projection"].replace(
        {"AP_horizontal": "AP supine", "COSTAL": "", "EXCLUDE": "", "UNK": ""}  # COSTAL: of the ribs
    )
    table = pd.DataFrame(
        {
            "image": found["ImageID"],
            "file": folder.locate(found["ImageID"]),  # in a folder by ImageDir, 0 to 54, or all in one
            "patient_id": found["PatientID"],
            "study_id": found["StudyID"],
            "view": view,
            "age": number(found["StudyDate_DICOM"].str[:4]) - number(found["PatientBirth"]),
            "sex": found["PatientSex_DICOM"],
            "hospital": found["Manufacturer_DICOM"],
        }
    )
    labels, unknown = spelled(found["Labels"], PADCHEST_WORDS, _listed, silent=PADCHEST_SILENT)
    unknown_words(folder, unknown)
    return add_labels(table, labels)


PADCHEST = Corpus(
    name="padchest",
    title="PadChest",
    images="160,861 PNG of 16 bits",
    labels="195 words; 70 of them map to 18 labels here",
    licence="PadChest terms: non-commercial research",
    where="https://bimcv.cipf.es/bimcv-projects/padchest/",
    layout="0/*.png ... 54/*.png, PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv; its manufacturer stands "
    "for the hospital",
    read=padchest,
    signs=("PADCHEST_chest_x_ray_images_labels*",),
)


def vindr(folder: Folder, uncertain: str) -> pd.DataFrame:
    parts = []
    for split, labelled, drawn in (
        (TRAIN, "image_labels_train.csv", ("annotations_train.csv", "train.csv")),
        (TEST, "image_labels_test.csv", ("annotations_test.csv",)),
    ):
        whole, local = folder.has(labelled), folder.has(*drawn)
        if split == TRAIN and whole is None and local is None:
            local = folder.table(labelled, *drawn, shipped="vinbigdata-train.csv.gz")
        if whole is not None or local is not None:
            parts.append(_vindr_part(folder, whole, local).assign(split=split))
    table = pd.concat(parts, ignore_index=True)
    named, there = set(table["image"]), folder.stems("test", suffixes=(".dicom", ".dcm"))
    table = with_hidden(table, (name for name in there if name not in named))  # Kaggle's
    table["file"] = folder.locate(table["image"], suffixes=(".dicom", ".dcm", ".png", ".jpg"))
    table["view"] = "PA"  # all of them (Nguyen et al. 2022, Methods)
    # Patients are not published; each image counts as one.
    table["patient_id"] = table["image"]
    return table.fillna({"boxes": ""})


def _vindr_part(folder: Folder, whole: Path | None, local: Path | None) -> pd.DataFrame:
    """Read one part; a finding counts if any of its readers named it."""
    rows = read_csv(local, ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")) if local else None
    if whole is not None:
        columns = [name for name in column_names(whole) if name.lower() in VINDR_WORDS]
        votes = read_csv(whole, ("image_id", *columns))
        values = pd.DataFrame({name: number(votes[name]) for name in columns})
        named = values.groupby(votes["image_id"], sort=True).max() > 0
        images, names, present = named.index.to_numpy(dtype=str), columns, named.to_numpy()
    else:
        assert rows is not None
        codes, listed = pd.factorize(rows["image_id"], sort=True)
        classes, found = pd.factorize(rows["class_name"])
        images, names = np.asarray(listed, dtype=str), [str(name) for name in found]
        present = np.zeros((len(images), len(names)), dtype=bool)
        present[codes, classes] = True
    table = add_labels(pd.DataFrame({"image": images}), _vindr_labels(folder, names, present))
    table["boxes"] = ""
    if rows is not None:
        place = ("x_min", "y_min", "w", "h")
        edges = {name: number(rows[name]) for name in ("x_min", "y_min", "x_max", "y_max")}
        for name, low, high in (("w", "x_min", "x_max"), ("h", "y_min", "y_max")):
            size = edges[high] - edges[low]
            rows[name] = np.where(np.isfinite(size), size.astype(str), "")
        table["boxes"] = table["image"].map(boxes(rows, "image_id", "class_name", place)).fillna("")
    return table


def _vindr_labels(
    folder: Folder, names: Sequence[str], present: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.float32]]:
    unknown_words(folder, [name for name in names if name.lower() not in VINDR_WORDS])
    labels: dict[str, npt.NDArray[np.float32]] = {}
    ill = present[:, [name.lower() != "no finding" for name in names]].any(axis=1)
    for column, name in enumerate(names):
        for label in VINDR_WORDS.get(name.lower(), ()):
            here = present[:, column] & ~ill if label == "normal" else present[:, column]
            labels[label] = np.maximum(labels.get(label, np.float32(0)), here.astype(np.float32))
    return labels


VINDR = Corpus(
    name="vindr",
    title="VinDr-CXR 1.0.0",
    images="15,000 DICOM, and 3,000 of the test set",
    labels="17 findings, normal; boxes; 3 readers, 5 for the test set",
    licence="PhysioNet Credentialed Health Data License 1.5.0",
    where="https://physionet.org/content/vindr-cxr/",
    layout="train/*.dicom, test/*.dicom, annotations/annotations_train.csv, annotations/image_labels_train.csv and "
    "the same of test; or Kaggle's train/*.dicom and train.csv. The hospital of an image is not published",
    read=vindr,
    signs=("annotations_train.csv", "image_labels_train.csv", "*.dicom"),
)


def openi(folder: Folder, uncertain: str) -> pd.DataFrame:
    reports = folder.below("ecgen-radiology", suffixes=(".xml",))
    if not reports:
        raise CorpusError(
            f"{folder.path}: ecgen-radiology/*.xml was not found; NLMCXR_reports.tgz contains it"
        )
    rows = [row for report in reports for row in _openi_report(folder.path / report)]
    found = first_rows(pd.DataFrame(rows), folder)
    table = found.drop(columns="codes").assign(
        file=folder.locate(found["image"], suffixes=(".png", ".jpg", ".dcm")), view="", sex=""
    )
    headers = _openi_headers()
    if headers is None:
        folder.warnings.append(
            "views are not known without torchxrayvision, which has them, so laterals are not left out: "
            "pip install 'sscxr[corpora]'"
        )
    else:
        for column in ("view", "hospital", "sex"):
            table[column] = table["image"].map(headers[column]).fillna("")
    # MeSH has about a hundred heads that are not findings of the lung.
    labels, _ = spelled(
        found["codes"], OPENI_WORDS, lambda text: text.split("|"), silent=OPENI_SILENT, others=True
    )
    return add_labels(table, labels)


def _openi_report(path: Path) -> list[dict[str, str]]:
    """Return a row for each image of a report, with the heads of its manual MeSH codes."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise CorpusError(f"{path}: not readable as XML ({error})") from None
    uid, licence = root.find("uId"), root.findtext("licenseURL", "").strip()
    patient = uid.get("id", "") if uid is not None else ""
    majors = [(node.text or "").lower() for node in root.findall(".//MeSH/major")]
    heads = {text.split("/")[0].strip() for text in majors}
    thick = {"pleural thickening" for text in majors if text.startswith("thickening/pleura")}
    codes = "|".join(sorted(heads | thick))
    common = {"patient_id": patient, "study_id": patient, "codes": codes, "licence": licence}
    return [{"image": image.get("id", "")} | common for image in root.findall(".//parentImage")]


def _openi_headers() -> pd.DataFrame | None:
    """Return facts that torchxrayvision has from the DICOM headers, by image; None if it is not installed."""
    path = from_torchxrayvision("nlmcxr_dicom_metadata.csv.gz")
    if path is None:
        return None
    names = {"View Position": "view", "Manufacturer": "hospital", "Patient's Sex": "sex"}
    return read_by(path, "imageid", *names).rename(columns=names)


OPENI = Corpus(
    name="openi",
    title="Open-i, Indiana University chest X-rays",
    images="7,470 PNG of 3,955 reports",
    labels="18 findings from the reports' manual MeSH codes, normal",
    licence="CC BY-NC-ND 4.0",
    where="https://openi.nlm.nih.gov/faq",
    layout="NLMCXR_png/*.png, ecgen-radiology/*.xml; a report counts as a patient. Views: from torchxrayvision",
    read=openi,
    signs=("CXR[0-9]*_IM-*",),
)


def jsrt(folder: Folder, uncertain: str) -> pd.DataFrame:
    found = [
        file
        for file in folder.files
        if re.fullmatch(r"JPC[LN]N\d{3}\.(img|png|dcm)", file.rpartition("/")[2], re.I)
        and "mask" not in file.lower()
    ]
    if not found:
        raise CorpusError(f"{folder.path}: JPCLN001.IMG and JPCNN001.IMG were not found")
    table = pd.DataFrame({"file": found})
    table["image"] = table["file"].str.extract(r"(JPC[LN]N\d{3})", flags=re.I)[0].str.upper()
    table = first_rows(table.sort_values(["image", "file"], ignore_index=True), folder)
    table["patient_id"] = table["image"]
    table["view"] = "PA"  # all of them (Shiraishi et al. 2000)
    facts = _jsrt_facts(folder)
    for column in ("age", "sex", "boxes"):
        table[column] = table["image"].map(facts[column]) if column in facts else ""
    table["age"] = pd.to_numeric(table["age"], errors="coerce")
    table = table.fillna({"sex": "", "boxes": ""})
    table["mask"] = _jsrt_masks(folder, table["image"])
    nodule = table["image"].str.startswith("JPCL").to_numpy().astype(np.float32)
    return add_labels(table, {"nodule": nodule})


def _jsrt_facts(folder: Folder) -> pd.DataFrame:
    """Return age, sex and nodule by image, from the two lists beside the images."""
    rows = []
    for line in _jsrt_lines(folder.has("CLNDAT_EN.txt", "CLNDAT_EN.TXT")):
        # File, subtlety, size in mm, age, sex, x, y, malignant or benign, place, diagnosis.
        cell = [part.strip() for part in line.split("\t")]
        if len(cell) >= 8 and cell[0].upper().startswith("JPCLN"):
            size = int(cell[2]) / 0.175 if cell[2].isdigit() else 0  # mm to px
            box = ""
            if cell[5].isdigit() and cell[6].isdigit():
                left, top = (max(0, round(int(centre) - size / 2)) for centre in cell[5:7])
                box = f"nodule {left} {top} {round(size)} {round(size)}"
            rows.append({"image": cell[0][:8].upper(), "age": cell[3], "sex": cell[4], "boxes": box})
    for line in _jsrt_lines(folder.has("CNNDAT_EN.TXT", "CNNDAT_EN.txt")):
        cell = line.split()  # file, age, sex, "non-nodule"
        if len(cell) >= 3 and cell[0].upper().startswith("JPCNN"):
            age, sex = (cell[1], cell[2]) if cell[1].isdigit() else (cell[2], cell[1])
            rows.append({"image": cell[0][:8].upper(), "age": age, "sex": sex, "boxes": ""})
    facts = pd.DataFrame(rows, columns=["image", "age", "sex", "boxes"])
    return facts.drop_duplicates("image").set_index("image")


def _jsrt_lines(path: Path | None) -> list[str]:
    return re.split(r"[\r\n]+", path.read_text(encoding="latin-1")) if path else []


def _jsrt_masks(folder: Folder, images: "pd.Series[str]") -> "pd.Series[str]":
    """Find the SCR database's masks, left and right, if its folds are beside the images."""
    found = (folder.stems(f"{side} lung", suffixes=(".gif", ".png")) for side in ("left", "right"))
    left, right = (images.map({name.upper(): file for name, file in one.items()}).fillna("") for one in found)
    return both_sides(left, right)


JSRT = Corpus(
    name="jsrt",
    title="JSRT (Japanese Society of Radiological Technology)",
    images="247 raw .IMG of 12 bits",
    labels="nodule; lung masks of the SCR database, if present",
    licence="JSRT terms: free for research, with citation",
    where="http://db.jsrt.or.jp/eng.php",
    layout="All247images/JPCLN001.IMG, CLNDAT_EN.txt, CNNDAT_EN.TXT; SCR: scratch/fold1/masks/left lung/*.gif, "
    "scratch/fold1/masks/right lung/*.gif",
    read=jsrt,
    signs=("JPCLN[0-9][0-9][0-9].*", "CLNDAT_EN.*"),
)
