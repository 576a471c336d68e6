"""Corpora whose labels are the names of their folders."""

import re

import numpy as np
import pandas as pd

from sscxr.data.corpora.base import TEST, TRAIN, VALID, Corpus, CorpusError, Folder, add_labels
from sscxr.data.vocabulary import LABELS

MAX_CLASSES = 50  # folders; more are patients or studies, not classes (ours)
_PARTS = {"train": TRAIN, "training": TRAIN, "val": VALID, "valid": VALID, "validation": VALID, "test": TEST}
# Words that class folders are commonly called by, and the label each is.
_CLASSES = {
    "bacteria": "bacterial_pneumonia",
    "covid": "covid19",
    "covid-19": "covid19",
    "healthy": "normal",
    "no finding": "normal",
    "tb": "tuberculosis",
    "viral": "viral_pneumonia",
    "virus": "viral_pneumonia",
}


def kermany(folder: Folder, uncertain: str) -> pd.DataFrame:
    """The children of Guangzhou's hospital: train and test, NORMAL and PNEUMONIA; Kaggle's copy has a small val."""
    found = folder.below("NORMAL", "PNEUMONIA", suffixes=(".jpeg", ".jpg", ".png"))
    if not found:
        raise CorpusError(
            f"{folder.path}: train/NORMAL/*.jpeg and train/PNEUMONIA/*.jpeg were looked for and not found"
        )
    table = pd.DataFrame({"file": sorted(found)})
    parts = table["file"].str.split("/")
    kind, part, name = parts.str[-2].str.upper(), parts.str[-3].fillna("").str.lower(), parts.str[-1]
    table["split"] = part.map(_PARTS).fillna("")
    table["image"] = part + "/" + kind + "/" + name
    # person23_bacteria_78.jpeg, BACTERIA-1008087-0001.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-0518-0001.jpeg. Numbers
    # begin anew with the test part, and whether person23 with a virus is person23 with bacteria is not said.
    new = name.str.extract(r"^(person\d+)_")[0]
    old = name.str.extract(r"^((?:[A-Z0-9]+-)*?(?:IM-)?\d+)-\d+")[0]
    patient = new.fillna(old).fillna(name)
    table["patient_id"] = np.where(part == "test", "test/", "train/") + patient
    table["age_group"] = "paediatric"  # one to five years; no image's own is told
    ill = (kind == "PNEUMONIA").to_numpy()
    low = name.str.lower()
    bacteria, virus = low.str.contains("bacteria").to_numpy(), low.str.contains("virus").to_numpy()
    told = ~ill | bacteria | virus
    return add_labels(
        table,
        {
            "normal": (~ill).astype(np.float32),
            "pneumonia": ill.astype(np.float32),
            "bacterial_pneumonia": np.where(told, ill & bacteria, np.nan).astype(np.float32),
            "viral_pneumonia": np.where(told, ill & virus, np.nan).astype(np.float32),
        },
    )


KERMANY = Corpus(
    name="kermany",
    title="Kermany, Guangzhou paediatric chest X-rays",
    images="5,856 JPEG",
    labels="pneumonia (bacterial, viral), normal",
    licence="CC BY 4.0",
    where="https://doi.org/10.17632/rscbjbr9sj",
    layout="chest_xray/train/NORMAL/*.jpeg, train/PNEUMONIA/*.jpeg, test/..., (val/...)",
    read=kermany,
    signs=("person[0-9]*_bacteria_*", "BACTERIA-*", "VIRUS-*"),
)


def folders(folder: Folder, uncertain: str) -> pd.DataFrame:
    """A folder a class: `CLASS/image`, or `train/CLASS/image`."""
    found = [file for file in folder.below() if "/" in file]
    if not found:
        raise CorpusError(f"{folder.path}: folders of images, one a class, were looked for and not found")
    table = pd.DataFrame({"file": sorted(found), "image": sorted(found)})
    above = table["file"].str.split("/").str[:-1]
    table["split"] = above.map(
        lambda names: next((_PARTS[n.lower()] for n in names if n.lower() in _PARTS), "")
    )
    classes = above.map(lambda names: next((n for n in reversed(names) if n.lower() not in _PARTS), ""))
    if (classes == "").any():
        raise CorpusError(f"{folder.path}: images lie outside of any class's folder")
    names = sorted(set(classes))
    if len(names) > MAX_CLASSES:
        raise CorpusError(
            f"{folder.path}: {len(names)} folders hold images, more than {MAX_CLASSES}; they are no classes. "
            "Without `folders:` before it, the folder is read without labels"
        )
    label = classes.map({name: _label(name) for name in names})
    return add_labels(
        table, {name: (label == name).to_numpy(dtype=np.float32) for name in sorted(set(label))}
    )


def _label(name: str) -> str:
    """A folder's name as a label: one of ours where it is one."""
    plain = " ".join(re.sub(r"[_]+", " ", name).lower().split())
    known = _CLASSES.get(plain) or _CLASSES.get(plain.replace(" ", "-")) or plain.replace(" ", "_")
    return known if known in LABELS else plain.replace(" ", "_")


FOLDERS = Corpus(
    name="folders",
    title="A plain folder of class folders",
    images="DICOM, PNG, JPEG",
    labels="the names of the folders",
    licence="your own",
    where="-",
    layout="CLASS/image, or train/CLASS/image and test/CLASS/image; each image is a patient of its own unless its "
    "DICOM header says whose it is",
    read=folders,
    signs=(),
    public=False,
)
