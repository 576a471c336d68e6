"""The corpora whose labels the CheXpert labeller wrote, in little: CheXpert, MIMIC-CXR-JPG, BRAX."""

from itertools import islice
from pathlib import Path

from layouts.base import Row, Truth, picture, shipped, write_table

CHEXPERT = {
    "Enlarged Cardiomediastinum": "enlarged_cardiomediastinum", "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung_opacity", "Lung Lesion": "lung_lesion", "Edema": "edema",
    "Consolidation": "consolidation", "Pneumonia": "pneumonia", "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "effusion", "Pleural Other": "pleural_other", "Fracture": "fracture",
    "Support Devices": "support_devices",
}  # fmt: skip


def labelled(row: Row, uncertain: int | None = None) -> dict[str, int | None]:
    """The labels of one row of the CheXpert labeller, told without our code."""
    told: dict[str, int | None] = {}
    healthy = row["No Finding"] in ("1.0", "1")
    for column, name in CHEXPERT.items():
        cell = row[column]
        told[name] = {"": None, "-1.0": uncertain, "-1": uncertain}.get(cell, None if cell == "" else 0)
        if cell in ("1.0", "1"):
            told[name] = 1
        if healthy and column != "Support Devices":
            told[name] = 0
    ill = any(row[c] in ("1.0", "1") for c in CHEXPERT if c != "Support Devices")
    told["normal"] = 1 if healthy else 0 if ill else None
    return told


def chexpert(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("chexpert_train.csv.gz"), 30))
    valid = []
    for number in range(4):
        row = {
            **rows[number],
            "Path": f"CheXpert-v1.0-small/valid/patient{64541 + number}/study1/view1_frontal.jpg",
        }
        valid.append({**row, **{name: row[name] or "0.0" for name in CHEXPERT}, "No Finding": "0.0"})
    for row in [*rows, *valid]:
        picture(root / row["Path"])
        view = "L" if row["Frontal/Lateral"] == "Lateral" else row["AP/PA"]
        truth.add(row["Path"].split("/")[2], view, test="/valid/" in row["Path"], **labelled(row))
    write_table(root / "CheXpert-v1.0-small" / "train.csv", rows)
    write_table(root / "CheXpert-v1.0-small" / "valid.csv", valid)
    return truth


def mimic(root: Path) -> Truth:
    truth = Truth()
    metadata, findings, parts = [], [], []
    views = ("PA", "LATERAL", "AP", "")
    for patient in range(10):
        subject, study = 10000032 + patient, 50414267 + patient
        cells = dict.fromkeys(["No Finding", *CHEXPERT], "")
        cells |= (
            {"No Finding": "1.0"}
            if patient % 3 == 0
            else {"Edema": "1.0", "Pneumonia": "-1.0", "Fracture": "0.0"}
        )
        split = "test" if patient == 9 else "validate" if patient == 8 else "train"
        findings.append({"subject_id": str(subject), "study_id": str(study), **cells})
        for number in range(2):
            name = f"02aa804e-bde0afdd-112c0b34-7bc16630-{patient:04d}{number:04d}"
            view = views[(patient + number) % 4]
            picture(root / f"files/p{str(subject)[:2]}/p{subject}/s{study}/{name}.jpg")
            ids = {"dicom_id": name, "subject_id": str(subject), "study_id": str(study)}
            metadata.append(
                {
                    **ids,
                    "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
                    "ViewPosition": view,
                    "Rows": "96",
                    "Columns": "80",
                    "StudyDate": "21800506",
                    "StudyTime": "213014.531",
                    "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
                    "ViewCodeSequence_CodeMeaning": "postero-anterior",
                    "PatientOrientationCodeSequence_CodeMeaning": "Erect",
                }
            )
            parts.append(
                {"dicom_id": name, "study_id": str(study), "subject_id": str(subject), "split": split}
            )
            said = labelled(cells)
            truth.add(str(subject), {"LATERAL": "L"}.get(view, view), test=split == "test", **said)
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", metadata, packed=True)
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", findings, packed=True)
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", parts, packed=True)
    return truth


def brax(root: Path) -> Truth:
    truth, rows = Truth(), []
    for number in range(12):
        patient, view = f"id_{number // 2:08x}-a1", ("PA", "L", "AP", "")[number % 4]
        path = f"{patient}/Study_{number}.{number}/Series_{number}.1/image-{number}.2"
        picture(root / "images" / f"{path}.png")
        cells = dict.fromkeys(["No Finding", *CHEXPERT], "")
        cells |= (
            {"No Finding": "1"} if number % 2 else {"Cardiomegaly": "1", "Edema": "-1", "Lung Lesion": "0"}
        )
        rows.append(
            {
                "DicomPath": f"Anonymized_DICOMs/{path}.dcm", "PngPath": f"images/{path}.png", "PatientID": patient,
                "PatientSex": "F", "PatientAge": "85 or more" if number < 2 else "45",
                "AccessionNumber": f"a{number}",
                "StudyDate": "20120703", **cells, "ViewPosition": view, "Rows": "96", "Columns": "80",
                "Manufacturer": "CARESTREAM",
            }
        )  # fmt: skip
        truth.add(patient, view, hospital="CARESTREAM", **labelled(cells))
    write_table(root / "master_spreadsheet_update.csv", rows)
    return truth
