"""What is listed of a corpus, laid out as published, against what plain reading counts."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS
from layouts.base import Truth, picture, write_table
from layouts.labeller import labelled

from sscxr.data import corpora
from sscxr.data.corpora import vocabulary
from sscxr.data.corpora.base import CorpusError


def counted(found: corpora.Found) -> Truth:
    """A listing, counted as `Truth` counts."""
    truth = Truth()
    for row in found.table.to_dict("records"):
        cells = {name: row[name] for name in found.labels}
        truth.add(
            str(row["patient_id"]),
            str(row["view"]),
            test=bool(row["held_out"]),
            hospital=str(row["hospital"]),
            **{name.removeprefix("label:"): None if np.isnan(v) else int(v) for name, v in cells.items()},
        )
        truth.masks += bool(row["mask"])
    return truth


def test_every_corpus_has_a_layout_here() -> None:
    assert set(LAYOUTS) == set(corpora.CORPORA)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_listing_counts_what_plain_reading_counts(name: str, corpus) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus(name)
    found = corpora.find(corpora.CORPORA[name], root)
    told = counted(found)
    assert found.missing == 0
    assert (told.images, told.tests, told.masks) == (truth.images, truth.tests, truth.masks)
    assert told.views == truth.views
    if name != "folders":  # where nothing tells whose they are
        assert len(told.patients) == len(truth.patients)
    if set(truth.hospitals) != {"?"}:
        assert told.hospitals == truth.hospitals
    for label, counts in truth.labels.items():
        assert told.labels.get(label) == counts, label
    assert set(told.labels) <= set(vocabulary.LABELS)
    assert found.table["image"].is_unique
    assert all((root / file).is_file() for file in found.table["file"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_are_those_of_the_listing(name: str, corpus) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus(name)
    found = corpora.find(corpora.CORPORA[name], root)
    records = list(corpora.records(found))
    assert len(records) == truth.images
    assert sum(record.held_out for record in records) == truth.tests
    for label, counts in truth.labels.items():
        assert Counter(record.labels[label] for record in records if label in record.labels) == counts
    public = name != "folders"
    assert all(bool(record.public_id) == public and bool(record.place) == public for record in records)


def test_uncertain_labels_by_the_setting(corpus) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("chexpert")
    with (root / "CheXpert-v1.0-small" / "train.csv").open() as file:
        rows = {row["Path"].split("/", 2)[2]: row for row in csv.DictReader(file)}
    assert any("-1.0" in row.values() for row in rows.values())
    for setting, value in (("ignore", None), ("zeros", 0), ("ones", 1)):
        found = corpora.find(corpora.CORPORA["chexpert"], root, uncertain=setting)
        ours = {record.public_id: record.labels for record in corpora.records(found)}
        for image, row in rows.items():
            told = {name: v for name, v in labelled(row, uncertain=value).items() if v is not None}
            assert ours[image] == told, (setting, image)
    with pytest.raises(CorpusError, match="'maybe' is none of ignore, zeros, ones"):
        corpora.find(corpora.CORPORA["chexpert"], root, uncertain="maybe")


def test_chexpert_s_full_release_lies_in_batches_and_has_the_same_ids(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    small, _ = corpus("chexpert")
    whole = tmp_path / "chexpertchestxrays-u20210408"
    first = small / "CheXpert-v1.0-small"
    shutil.copytree(first / "train", whole / "CheXpert-v1.0 batch 2 (train 1)")
    batch = whole / "CheXpert-v1.0 batch 1 (validate & csv)"
    shutil.copytree(first / "valid", batch / "valid")
    for name in ("train.csv", "valid.csv"):
        (batch / name).write_text((first / name).read_text().replace("CheXpert-v1.0-small", "CheXpert-v1.0"))
    ours, theirs = (corpora.find(corpora.CORPORA["chexpert"], folder).table for folder in (small, tmp_path))
    assert ours["image"].tolist() == theirs["image"].tolist()
    assert ours["patient_id"].tolist() == theirs["patient_id"].tolist()


def test_tcia_s_layout_of_stony_brook(tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        place = f"COVID-19-NY-SBU/A{number:06d}/12-18-1900-NA-CHEST-74312/1.000000-AP-{number:05d}"
        picture(tmp_path / "manifest-1628608914773" / place / "1-1.dcm", PatientID=f"A{number:06d}")
        rows.append(
            {
                "Series UID": f"1.3.{number}", "Collection": "COVID-19-NY-SBU", "3rd Party Analysis": "NO",
                "Data Description URI": "x", "Subject ID": f"A{number:06d}", "Study UID": f"1.2.{number}",
                "Study Description": "CHEST", "Study Date": "12-18-1900", "Series Description": "AP",
                "Manufacturer": "Carestream", "Modality": "CT" if number == 3 else "DX", "SOP Class Name": "",
                "SOP Class UID": "", "Number of Images": "1", "File Size": "1 MB",
                "File Location": ".\\" + place.replace("/", "\\"), "Download Timestamp": "x",
            }
        )  # fmt: skip
    write_table(tmp_path / "manifest-1628608914773" / "metadata.csv", rows)
    table = corpora.find(corpora.CORPORA["stonybrook"], tmp_path).table
    assert table["patient_id"].tolist() == [f"stonybrook:A{number:06d}" for number in range(3)]
    assert set(table["hospital"]) == {"Carestream"}
    assert (table["label:covid19"] == 1).all()


def test_patients_of_two_corpora_are_two_but_where_a_corpus_was_made_of_another(corpus) -> None:  # type: ignore[no-untyped-def]
    found = {
        name: corpora.find(corpora.CORPORA[name], corpus(name)[0]).table for name in ("nih", "rsna", "covidx")
    }
    assert found["nih"]["patient_id"].str.fullmatch(r"nih:\d+").all()
    assert found["rsna"].loc[found["rsna"]["split"] == "train", "patient_id"].str.fullmatch(r"nih:\d+").all()
    patients = found["covidx"].set_index("hospital")["patient_id"]
    assert patients["rsna"].str.startswith("rsna:").all()
    assert patients["sirm"].str.startswith("covidx:sirm/").all()
