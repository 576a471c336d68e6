"""Corpora of the COVID-19 pandemic, in little: the image data collection, COVIDx, Stony Brook."""

import csv
from pathlib import Path

from layouts.base import Truth, picture, write_table

COVID = (
    *("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "intubated"),
    *("intubation_present", "went_icu", "in_icu", "needed_supplemental_O2", "extubated", "temperature"),
    *(
        "pO2_saturation",
        "leukocyte_count",
        "neutrophil_count",
        "lymphocyte_count",
        "view",
        "modality",
        "date",
    ),
    *("location", "folder", "filename", "doi", "url", "license", "clinical_notes", "other_notes", ""),
)
FINDINGS: tuple[tuple[str, dict[str, int | None]], ...] = (
    ("Pneumonia/Viral/COVID-19", {"covid19": 1, "viral_pneumonia": 1, "pneumonia": 1, "normal": 0}),
    ("Pneumonia/Bacterial/Klebsiella", {"covid19": 0, "viral_pneumonia": 0, "pneumonia": 1, "normal": 0}),
    ("Pneumonia", {"covid19": None, "viral_pneumonia": None, "pneumonia": 1, "normal": 0}),
    ("No Finding", {"covid19": 0, "viral_pneumonia": 0, "pneumonia": 0, "normal": 1}),
    ("Tuberculosis", {"covid19": 0, "viral_pneumonia": 0, "pneumonia": 0, "normal": 0}),
    ("todo", {}),
)


def covid19(root: Path) -> Truth:
    truth, rows = Truth(), []
    places = (
        "Cho Ray Hospital, Ho Chi Minh City, Vietnam",
        "Changhua Christian Hospital, Changhua City, Taiwan",
    )
    views = ("PA", "AP", "AP Supine", "L", "AP Erect")
    for number in range(18):
        finding, said = FINDINGS[number % len(FINDINGS)]
        view, name = views[number % 5], f"auntminnie-{number}-2020_01_28_23_51.jpg"
        row = dict.fromkeys(COVID, "") | {
            "patientid": str(2 + number // 2), "offset": "0", "sex": "MF"[number % 2], "age": "65",
            "finding": finding,
            "view": view, "modality": "X-ray", "location": places[number % 2], "folder": "images", "filename": name,
            "license": "CC BY-NC-SA", "other_notes": "Credit to a hospital, with a comma",
        }  # fmt: skip
        rows.append(row)
        picture(root / "images" / name)
        told = {"AP Supine": "AP supine", "AP Erect": "AP"}.get(view, view)
        truth.add(row["patientid"], told, hospital=row["location"], **said)
    rows.append({**rows[0], "modality": "CT", "filename": "a.nii.gz", "folder": "volumes", "view": "Axial"})
    write_table(root / "metadata.csv", rows)
    return truth


def covidx(root: Path) -> Truth:
    """Every source has one class, as is nearly so in the published lists."""
    truth = Truth()
    said = {
        "COVID-19": {"covid19": 1, "pneumonia": 1, "normal": 0},
        "normal": {"covid19": 0, "pneumonia": 0, "normal": 1},
        "pneumonia": {"covid19": 0, "pneumonia": 1, "normal": 0},
    }
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for source, kind, images in (
        ("sirm", "COVID-19", 36),
        ("actmed", "normal", 30),
        ("rsna", "pneumonia", 30),
    ):
        for number in range(images):
            part = "test" if number >= images - 2 else "train"
            name = f"{source} ({number}).png" if source == "sirm" else f"{source}-{number:05d}.jpg"
            picture(root / part / name)
            lists[part].append(f"{source}{number} {name} {kind} {source}\n")
            truth.add(f"{source}{number}", "", test=part == "test", hospital=source, **said[kind])
    for part, text in lists.items():
        (root / f"{part}_COVIDx9A.txt").write_text("".join(text))
    return truth


def stonybrook(root: Path) -> Truth:
    truth, rows = Truth(), []
    for number in range(12):
        picture(root / "CXR_images_scored" / f"{number}.jpg")
        scores = (0, 0) if number % 3 == 0 else (4, 3)
        rows.append([f"{number // 2}", "20200401_120000", "5", str(scores[0]), "4", str(scores[1])])
        truth.add(str(number // 2), "AP", covid19=1, lung_opacity=int(number % 3 != 0))
    with (root / "ralo-dataset-metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "", "Rater 1", "", "Rater 2", ""])  # two rows of header; names come twice
        names = ("Total GEOGRAPHIC", "Total OPACITY", "Total GEOGRAPHIC", "Total OPACITY")
        writer.writerow(["Subject_ID", "Exam_DateTime", *names])
        writer.writerows(rows)
    return truth
