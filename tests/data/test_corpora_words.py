"""The words of labels, parts and folders, as they are found in copies and older versions of public corpora."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts.base import picture
from typer.testing import CliRunner

from sscxr.commands.cli import app
from sscxr.data import corpora
from sscxr.data.corpora.base import CorpusError
from sscxr.data.corpora.parts import part_of
from sscxr.data.corpora.vocabulary import PADCHEST_SILENT, PADCHEST_WORDS, spelled

KINDS = ("covid19", "pneumonia", "viral_pneumonia", "bacterial_pneumonia", "fungal_pneumonia", "normal")


def listed(name: str, root: Path) -> pd.DataFrame:
    return corpora.find(corpora.CORPORA[name], root, absent=True).table.set_index("image")


def test_a_flat_finding_is_what_its_path_is(tmp_path: Path) -> None:
    nan = np.nan
    truth = {
        "COVID-19": (1, 1, 1, 0, 0, 0),
        "COVID-19, ARDS": (1, 1, 1, 0, 0, 0),
        "Pneumonia/Viral/COVID-19": (1, 1, 1, 0, 0, 0),
        "SARS": (0, 1, 1, 0, 0, 0),
        "Streptococcus": (0, 1, 0, 1, 0, 0),
        "Mycoplasma Bacterial Pneumonia": (0, 1, 0, 1, 0, 0),
        "Pneumocystis": (0, 1, 0, 0, 1, 0),
        "Bacterial": (0, 1, 0, 1, 0, 0),
        "Viral": (nan, 1, 1, 0, 0, 0),
        "Pneumonia/Viral": (nan, 1, 1, 0, 0, 0),
        "Pneumonia": (nan, 1, nan, nan, nan, 0),
        "No Finding": (0, 0, 0, 0, 0, 1),
        "ARDS": (nan,) * 6,
        "Unknown": (nan,) * 6,
        "a word nobody has mapped": (nan,) * 6,
    }
    rows = [f"{place},{finding!r},PA,X-ray,{place}.png" for place, finding in enumerate(truth)]
    text = "\n".join(["patientid,finding,view,modality,filename", *rows]).replace("'", '"')
    (tmp_path / "metadata.csv").write_text(text)
    table = listed("covid19", tmp_path)
    for place, (finding, values) in enumerate(truth.items()):
        cells = table.loc[f"{place}.png", [f"label:{kind}" for kind in KINDS]].to_numpy(dtype=float)
        assert np.array_equal(cells, values, equal_nan=True), finding


def test_a_word_that_nobody_has_mapped_makes_nothing_absent() -> None:
    cells = pd.Series(["['pneumonia', 'pnuemothorax']", "['scoliosis']", "['pnuemonia']", "['unchanged']"])
    labels, unknown = spelled(
        cells,
        PADCHEST_WORDS,
        lambda text: text.strip("[]").replace("'", "").split(","),
        silent=PADCHEST_SILENT,
    )
    assert unknown == {"pnuemothorax", "pnuemonia"}
    assert np.array_equal(labels["pneumonia"], [1, 0, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(labels["pneumothorax"], [np.nan, 0, np.nan, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            "test",
            "test TEST Testing Test_set testset test2 holdout hold-out Held-Out internal-test",
        ),
        ("valid", "val Validation valid validate dev validation_set internal_validation"),
        ("train", "train Training TRAIN_SET trainset train1 trainval"),
        (None, "0 17 covid normal development testicle trainee"),
    ],
)
def test_words_for_parts(part: str | None, words: str) -> None:
    assert {word: part_of(word) for word in words.split(" ")} == dict.fromkeys(words.split(" "), part)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("100 5 1019", "3 numbers"),
        ("1 2 x 4", "not a whole number"),
        ("1e3 5", "not a whole number"),
        ("1048570 9", "leads out"),
        ("-1 5", "2 numbers"),
        ("99999999999999999999 1", "not a whole number"),
        ("9223372036854775807 9223372036854775807", "leads out"),
        ("", "empty cell"),
        (" ", "empty cell"),
    ],
)
def test_an_edited_run_length_is_one_line(cell: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "train-rle.csv").write_text(f"ImageId, EncodedPixels\na, -1\nb,-1.0\nd,100 5\nc,{cell}\n")
    with pytest.raises(CorpusError, match=f"line 5.*{said}") as caught:
        listed("siim", tmp_path)
    assert "\n" not in str(caught.value)


def test_no_mask_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    (tmp_path / "train-rle.csv").write_text("ImageId, EncodedPixels\na, -1 \nb,-1.0\nc,100 5\n")
    assert listed("siim", tmp_path)["label:pneumothorax"].to_dict() == {"a": 0, "b": 0, "c": 1}


def test_folders_of_images_beside_folders_of_masks(tmp_path: Path) -> None:
    for file in (
        *("COVID/images/COVID-1.png", "COVID/masks/COVID-1.png", "Normal/images/Normal-1.png"),
        *("Test set/Normal/512x512/a.png", "Test set/Normal/ground_truth/a_mask.png", "Pneumonia/png/b.png"),
        "COVID/masks/COVID-2.png",
    ):
        picture(tmp_path / file)
    found = corpora.find(corpora.CORPORA["folders"], tmp_path)
    table = found.table.set_index("image")
    assert found.labels == ["label:covid19", "label:normal", "label:pneumonia"]
    assert table["mask"].to_dict() == {
        "COVID/images/COVID-1.png": "COVID/masks/COVID-1.png",
        "Normal/images/Normal-1.png": "",
        "Pneumonia/png/b.png": "",
        "Test set/Normal/512x512/a.png": "Test set/Normal/ground_truth/a_mask.png",
    }
    assert table["label:pneumonia"].to_list() == [1, 0, 1, 0]  # a COVID-19 is a pneumonia
    assert table["split"].to_list() == ["", "", "", "test"]
    assert found.warnings == [
        "folders: 1 files of folders of masks belong to no image by name and are left out"
    ]


def test_the_first_lists_of_covidx(tmp_path: Path) -> None:
    (tmp_path / "train_COVIDx.txt").write_text("a a.png normal\nb b.jpg COVID-19\n")
    (tmp_path / "test_COVIDx.txt").write_text("c c.png pneumonia\n")
    table = listed("covidx", tmp_path)
    assert table["split"].to_dict() == {"train/a.png": "train", "train/b.jpg": "train", "test/c.png": "test"}
    assert table["label:covid19"].to_dict() == {"train/a.png": 0, "train/b.jpg": 1, "test/c.png": 0}


def test_the_list_of_corpora_as_json() -> None:
    told = json.loads(CliRunner().invoke(app, ["corpora", "--json"]).stdout)
    assert {name: facts["licence"] for name, facts in told.items()} == {
        name: corpus.licence for name, corpus in corpora.CORPORA.items()
    }
    assert list(json.loads(CliRunner().invoke(app, ["corpora", "nih", "--json"]).stdout)) == ["nih"]
