"""ChestX-ray14 of the NIH in little, and the two challenges made from it: RSNA, SIIM."""

import json
from itertools import islice
from pathlib import Path

from layouts.base import Truth, picture, shipped, write_table

NIH = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)


def nih(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("Data_Entry_2017_v2020.csv.gz"), 40))
    tests = {row["Image Index"] for row in rows if int(row["Patient ID"]) % 3 == 0}
    for place, row in enumerate(rows):
        folder = f"images_{1 + place // 20:03d}/images"
        picture(root / folder / row["Image Index"])
        found = row["Finding Labels"].split("|")
        truth.add(
            row["Patient ID"],
            row["View Position"],
            test=row["Image Index"] in tests,
            **{name.lower(): int(name in found) for name in NIH},
            normal=int(found == ["No Finding"]),
        )
    # As v2020 names the sex; the header is cut in two within the size and the spacing, as published.
    rows = [{("Patient Sex" if k == "Patient Gender" else k): v for k, v in row.items()} for row in rows]
    write_table(root / "Data_Entry_2017_v2020.csv", rows)
    (root / "test_list.txt").write_text("".join(f"{name}\n" for name in sorted(tests)))
    rest = sorted({row["Image Index"] for row in rows} - tests)
    (root / "train_val_list.txt").write_text("".join(f"{name}\n" for name in rest))
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    (root / "BBox_List_2017.csv").write_text(f"{header}{rest[0]},Infiltrate,10.5,20,30,40,,,\n")
    return truth


def rsna(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("kaggle_stage_2_train_labels.csv.zip"), 20))
    names = list(dict.fromkeys(row["patientId"] for row in rows))
    headers = {row["PatientID"]: row for row in shipped("kaggle_stage_2_train_images_dicom_headers.csv.gz")}
    details, mapping = [], []
    for place, name in enumerate(names):
        picture(root / "stage_2_train_images" / f"{name}.dcm", PatientID=name)
        target = int(any(row["Target"] == "1" for row in rows if row["patientId"] == name))
        kind = "Lung Opacity" if target else "Normal" if place % 2 else "No Lung Opacity / Not Normal"
        details += [{"patientId": name, "class": kind}] * (1 + target)
        # Two images of one patient of NIH's.
        image = f"{30000 + place // 2:08d}_{place % 2:03d}.png"
        mapping.append({"subset_img_id": name, "img_id": image, "SOPInstanceUID": f"1.2.{place}"})
        view = headers[name]["ViewPosition"]
        truth.add(image[:8], view, pneumonia=target, lung_opacity=target, normal=int(kind == "Normal"))
    for number in range(2):
        name = f"0000a175-0e68-4ca4-b1af-16720418000{number}"
        picture(root / "stage_2_test_images" / f"{name}.dcm", PatientID=name, ViewPosition=None)
        truth.add(name, "", test=True)
    write_table(root / "stage_2_train_labels.csv", rows)
    write_table(root / "stage_2_detailed_class_info.csv", details)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    return truth


def siim(root: Path) -> Truth:
    truth, rows = Truth(), list(islice(shipped("siim-pneumothorax-train-rle.csv.gz"), 20))
    for place, name in enumerate(dict.fromkeys(row["ImageId"] for row in rows)):
        study = f"1.2.276.0.7230010.3.1.2.8323329.{place}"
        picture(
            root / "dicom-images-train" / study / f"{study}.1" / f"{name}.dcm",
            PatientID=f"uuid-{place}",
            ViewPosition=None,
        )
        drawn = any(row[" EncodedPixels"].strip() != "-1" for row in rows if row["ImageId"] == name)
        truth.add(name, "", pneumothorax=int(drawn))
    picture(root / "dicom-images-test/1.2.9/1.2.9.1/1.2.276.9.dcm", PatientID="uuid-t", ViewPosition=None)
    truth.add("1.2.276.9", "", test=True)
    write_table(root / "train-rle.csv", rows)
    return truth
