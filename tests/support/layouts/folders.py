"""Corpora whose labels are the names of their folders, in little."""

from pathlib import Path

from layouts.base import Truth, picture


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


def folders(root: Path) -> Truth:
    truth = Truth()
    for part in ("train", "test"):
        for kind, label in (("COVID-19", "covid19"), ("Normal", "normal")):
            for number in range(8 if part == "train" else 2):
                picture(root / part / kind / f"{kind}-{number}.png")
                said = {"covid19": 0, "normal": 0} | {label: 1}
                truth.add(f"{part}{kind}{number}", "", test=part == "test", **said)
    return truth
