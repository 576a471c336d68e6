"""Corpora whose labels are the names of their folders."""

import re

import numpy as np
import pandas as pd

from sscxr.data.corpora.base import Corpus, CorpusError, Folder, add_labels
from sscxr.data.corpora.parts import part_of
from sscxr.data.corpora.vocabulary import LABELS, PARENTS

MAX_CLASSES = 50  # folders; more are patients or studies, not classes (ours)
# Folders named for the kind of their files, not for a class; `256x256` and `1024` as well.
_PICTURES = {
    "image", "images", "img", "imgs", "picture", "pictures", "png", "pngs", "jpg", "jpgs", "jpeg", "jpegs", "dcm",
    "dicom", "dicoms", "data", "xray", "xrays", "x-ray", "x-rays", "cxr", "cxrs", "original", "originals",
}  # fmt: skip
_MASKS = {
    "mask", "masks", "ground_truth", "ground_truths", "ground-truth", "groundtruth", "gt", "label", "labels",
    "segmentation", "segmentations", "lung_mask", "lung_masks", "annotation", "annotations",
}  # fmt: skip
_RESOLUTION = re.compile(r"\d{2,4}(?:\s*[x_-]\s*\d{2,4})?(?:\s*px)?")
# Common names of class folders -> label.
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
    """Read Guangzhou's children: train and test, NORMAL and PNEUMONIA; Kaggle's copy has a small val."""
    found = folder.below("NORMAL", "PNEUMONIA", suffixes=(".jpeg", ".jpg", ".png"))
    if not found:
        raise CorpusError(f"{folder.path}: train/NORMAL/*.jpeg and train/PNEUMONIA/*.jpeg were not found")
    table = pd.DataFrame({"file": sorted(found)})
    parts = table["file"].str.split("/")
    kind, part, name = parts.str[-2].str.upper(), parts.str[-3].fillna("").str.lower(), parts.str[-1]
    table["split"] = part.map(lambda word: part_of(word) or "")
    table["image"] = part + "/" + kind + "/" + name
    # person23_bacteria_78.jpeg, BACTERIA-1008087-0001.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-0518-0001.jpeg. Numbers
    # start again in the test part, and whether person23 with a virus is person23 with bacteria is unknown.
    new = name.str.extract(r"^(person\d+)_")[0]
    old = name.str.extract(r"^((?:[A-Z0-9]+-)*?(?:IM-)?\d+)-\d+")[0]
    patient = new.fillna(old).fillna(name)
    table["patient_id"] = np.where(part == "test", "test/", "train/") + patient
    table["age_group"] = "paediatric"  # one to five years; individual ages are not published
    ill = (kind == "PNEUMONIA").to_numpy()
    low = name.str.lower()
    bacteria, virus = low.str.contains("bacteria").to_numpy(), low.str.contains("virus").to_numpy()
    cause_known = ~ill | bacteria | virus
    return add_labels(
        table,
        {
            "normal": (~ill).astype(np.float32),
            "pneumonia": ill.astype(np.float32),
            "bacterial_pneumonia": np.where(cause_known, ill & bacteria, np.nan).astype(np.float32),
            "viral_pneumonia": np.where(cause_known, ill & virus, np.nan).astype(np.float32),
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
    """Read class folders: `CLASS/image`, `train/CLASS/image`, or `CLASS/images/image` and `CLASS/masks/image`."""
    within = [file for file in folder.below() if "/" in file]
    if not within:
        raise CorpusError(f"{folder.path}: folders of images, one per class, were not found")
    masks = {file for file in within if any(name.lower() in _MASKS for name in file.split("/")[:-1])}
    found = sorted(set(within) - masks)
    if not found:
        raise CorpusError(f"{folder.path}: all of its folders are of masks, by their names")
    table = pd.DataFrame({"file": found, "image": found})
    above = table["file"].str.split("/").str[:-1]
    table["split"] = above.map(lambda names: next((part for n in names if (part := part_of(n))), ""))
    classes = above.map(
        lambda names: next((n for n in reversed(names) if not (part_of(n) or _says_no_class(n))), "")
    )
    if (classes == "").any():
        raise CorpusError(f"{folder.path}: some images are not in a class's folder")
    names = sorted(set(classes))
    if len(names) > MAX_CLASSES:
        raise CorpusError(
            f"{folder.path}: {len(names)} folders have images, more than {MAX_CLASSES}; they are not classes. "
            "Without `folders:` before it, the folder is read without labels"
        )
    if masks:
        table["mask"] = _masks(folder, table["file"], masks)
    label = classes.map({name: _label(name) for name in names})
    labels = {name: (label == name).to_numpy(dtype=np.float32) for name in sorted(set(label))}
    for kind in set(label):  # a COVID-19 is a pneumonia too, if there is such a class
        for parent in set(PARENTS.get(kind, ())) & set(labels):
            labels[parent] = np.maximum(labels[parent], labels[kind])
    return add_labels(table, labels)


def _says_no_class(name: str) -> bool:
    low = name.strip().lower()
    return low in _PICTURES or _RESOLUTION.fullmatch(low) is not None


def _masks(folder: Folder, images: "pd.Series[str]", masks: set[str]) -> "pd.Series[str]":
    """Find each image's mask: the same path with `masks` for `images`, ignoring the suffix and `_mask`."""
    known = {_place(file): file for file in sorted(masks)}
    found = images.map(lambda file: known.get(_place(file), ""))
    left_out = len(masks) - int((found != "").sum())
    if left_out:
        folder.warnings.append(
            f"{left_out} files of folders of masks belong to no image by name and are left out"
        )
    return found


def _place(file: str) -> str:
    *above, name = file.lower().split("/")
    plain = [part for part in above if part not in _MASKS and not _says_no_class(part)]
    return "/".join([*plain, re.sub(r"[ _-]?(?:mask|label|gt)$", "", name.rpartition(".")[0])])


def _label(name: str) -> str:
    """Return a folder's name as a label, ours if possible."""
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
    layout="CLASS/image, or train/CLASS/image and test/CLASS/image, or CLASS/images/image and its mask "
    "CLASS/masks/image; each image counts as a separate patient unless its DICOM header names the patient",
    read=folders,
    signs=(),
    public=False,
)
