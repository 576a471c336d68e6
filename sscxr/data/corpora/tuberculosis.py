"""Corpora of tuberculosis: Montgomery and Shenzhen, TBX11K."""

import json
import re

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.data.corpora.base import Corpus, CorpusError, Folder, add_labels, both_sides, lines
from sscxr.data.corpora.parts import TEST, TRAIN, VALID


def _named(folder: Folder, prefix: str) -> pd.DataFrame:
    """Read a collection of the National Library of Medicine, whose names end in 0, or in 1 for TB."""
    pattern = re.compile(rf"({prefix}_(\d+)_([01]))\.png")
    rows = []
    for file in folder.below(suffixes=(".png",)):
        match = pattern.fullmatch(file.rpartition("/")[2])
        if match and "mask" not in file.lower():
            rows.append((match[1], file, match[2], match[3] == "1"))
    if not rows:
        raise CorpusError(f"{folder.path}: CXR_png/{prefix}_0001_0.png was not found")
    table = pd.DataFrame(rows, columns=["image", "file", "patient_id", "ill"]).drop_duplicates("image")
    table = table.sort_values("image", ignore_index=True)
    table["view"] = "PA"  # all of them (Jaeger et al. 2014)
    readings = folder.stems("ClinicalReadings", suffixes=(".txt",))
    texts = [
        (folder.path / readings[name]).read_text("utf-8", "replace") if name in readings else ""
        for name in table["image"]
    ]
    # Montgomery: "Patient's Sex: F", "Patient's Age: 027Y"; Shenzhen: "male 45yrs", "Female, 12 mths".
    table["sex"] = [_found(r"Sex:\s*([MF])", text) or _found(r"\b(female|male)\b", text) for text in texts]
    table["age"] = [_years(text) for text in texts]
    ill = table.pop("ill").to_numpy(dtype=np.float32)
    return add_labels(table, {"tuberculosis": ill, "normal": 1 - ill})


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.IGNORECASE)
    return match[1] if match else ""


def _years(text: str) -> float:
    years = _found(r"Age:\s*(\d{1,3})\s*Y", text) or _found(r"(\d{1,3})\s*-?\s*(?:yrs?|years?|yr)\b", text)
    months = _found(r"(\d{1,3})\s*-?\s*(?:mths?|months?)\b", text)
    return float(years) if years else float(months) / 12 if months else np.nan


def montgomery(folder: Folder, uncertain: str) -> pd.DataFrame:
    table = _named(folder, "MCUCXR")
    sides = (folder.stems(side, suffixes=(".png",)) for side in ("leftMask", "rightMask"))
    table["mask"] = both_sides(*(table["image"].map(masks).fillna("") for masks in sides))
    return table


MONTGOMERY = Corpus(
    name="montgomery",
    title="Montgomery County chest X-rays",
    images="138 PNG",
    labels="tuberculosis, normal; lung masks, left and right joined",
    licence="public domain (NLM), with citation",
    where="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/",
    layout="MontgomerySet/CXR_png/MCUCXR_0001_0.png, ManualMask/leftMask/, ManualMask/rightMask/, "
    "ClinicalReadings/",
    read=montgomery,
    signs=("MCUCXR_*",),
)


def shenzhen(folder: Folder, uncertain: str) -> pd.DataFrame:
    table = _named(folder, "CHNCXR")
    table["mask"] = (table["image"] + "_mask").map(folder.stems(suffixes=("_mask.png",))).fillna("")
    return table


SHENZHEN = Corpus(
    name="shenzhen",
    title="Shenzhen Hospital chest X-rays",
    images="662 PNG",
    labels="tuberculosis, normal; lung masks of 566, if present",
    licence="public domain (NLM), with citation",
    where="https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/",
    layout="ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png, ClinicalReadings/; masks, published separately: "
    "mask/CHNCXR_0001_0_mask.png",
    read=shenzhen,
    signs=("CHNCXR_*",),
)

_TBX_KINDS = {
    "ActiveTuberculosis": "active_tuberculosis",
    "ObsoletePulmonaryTuberculosis": "latent_tuberculosis",
}


def tbx11k(folder: Folder, uncertain: str) -> pd.DataFrame:
    # imgs/extra has Montgomery, Shenzhen and two more, which are separate corpora.
    found = [
        file
        for file in folder.below("health", "sick", "tb", "test", suffixes=(".png",))
        if "extra" not in file.split("/")
    ]
    if not found:
        raise CorpusError(f"{folder.path}: imgs/health/*.png, imgs/sick, imgs/tb were not found")
    table = pd.DataFrame({"file": sorted(found)})
    parts = table["file"].str.split("/")
    kind = parts.str[-2].to_numpy()
    table["image"] = parts.str[-2] + "/" + parts.str[-1]
    table["patient_id"] = table["image"]  # patients are not published
    table["split"] = np.where(kind == "test", TEST, "")
    for split, name in ((TRAIN, "TBX11K_train.txt"), (VALID, "TBX11K_val.txt")):
        path = folder.has(name)
        if path is not None:
            table["split"] = table["split"].mask(table["image"].isin(lines(path)), split)
    known = kind != "test"
    labels = {
        "tuberculosis": np.where(known, kind == "tb", np.nan).astype(np.float32),
        "normal": np.where(known, kind == "health", np.nan).astype(np.float32),
    }
    kinds, table["boxes"] = _tbx_kinds(folder, table["image"], kind == "tb")
    for name, there in kinds.items():
        # An uncertain case of TB has no box, and its kind is not known.
        drawn = kinds["active_tuberculosis"] | kinds["latent_tuberculosis"]
        present = np.where((kind == "tb") & ~drawn, np.nan, there)
        labels[name] = np.where(known, present, np.nan).astype(np.float32)
    return add_labels(table, labels)


def _tbx_kinds(
    folder: Folder, images: "pd.Series[str]", tb: npt.NDArray[np.bool_]
) -> tuple[dict[str, npt.NDArray[np.bool_]], "pd.Series[str]"]:
    """Return which images have a box of active or latent TB, and the boxes as text; empty without annotations."""
    boxes: dict[str, list[str]] = {}
    kinds: dict[str, set[str]] = {name: set() for name in _TBX_KINDS.values()}
    whole = folder.has("TBX11K_trainval.json")
    parts = [whole] if whole else [folder.has("TBX11K_train.json"), folder.has("TBX11K_val.json")]
    for path in filter(None, parts):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            files = {image["id"]: image["file_name"] for image in found["images"]}
            names = {category["id"]: category["name"] for category in found["categories"]}
            for one in found["annotations"]:
                image, label = files[one["image_id"]], _TBX_KINDS.get(names[one["category_id"]])
                if label:
                    kinds[label].add(image)
                    boxes.setdefault(image, []).append(
                        " ".join([label, *(f"{side:g}" for side in one["bbox"])])
                    )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}: not TBX11K's annotations ({type(error).__name__}: {error})") from None
    drawn = images.map({image: "|".join(one) for image, one in boxes.items()}).fillna("")
    if not boxes:
        return {}, drawn
    return {name: images.isin(found).to_numpy() & tb for name, found in kinds.items()}, drawn


TBX11K = Corpus(
    name="tbx11k",
    title="TBX11K",
    images="11,200 PNG of 512 px",
    labels="tuberculosis (active, latent), normal; boxes",
    licence="CC BY-NC-SA 2.0 for research",
    where="https://github.com/yun-liu/Tuberculosis",
    layout="imgs/health/*.png, imgs/sick, imgs/tb, imgs/test, lists/TBX11K_train.txt, lists/TBX11K_val.txt, "
    "annotations/json/TBX11K_trainval.json; imgs/extra is left out",
    read=tbx11k,
    signs=("TBX11K_*.txt", "TBX11K*"),
)
