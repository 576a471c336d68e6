"""Corpora of tuberculosis, in little: Montgomery and Shenzhen, TBX11K."""

import json
from pathlib import Path

from layouts.base import Truth, mask, picture


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
