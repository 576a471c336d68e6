"""Corpora that radiologists or report readers labelled, in little: PadChest, VinDr-CXR, Open-i, JSRT."""

from itertools import islice
from pathlib import Path

from layouts.base import Truth, mask, picture, shipped, write_table

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
    write_table(root / PADCHEST, rows)
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
    write_table(root / "train.csv", rows)
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
