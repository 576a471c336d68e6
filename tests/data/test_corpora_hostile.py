"""Hostile folders: what is good in them is listed, what is wrong is one line."""

import gzip
import shutil
from pathlib import Path

import pytest
from layouts import LAYOUTS

from sscxr.data import corpora
from sscxr.data.corpora import base
from sscxr.data.corpora.base import CorpusError


def test_half_a_download_goes_on_and_says_how_much_is_missing(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus("nih")
    half = tmp_path / "nih"
    shutil.copytree(root, half)
    shutil.rmtree(half / "images_002")
    found = corpora.find(corpora.CORPORA["nih"], half)
    assert found.missing == 20
    assert len(found.table) == truth.images - 20
    assert (
        "nih: 20 of 40 images (50.0%) are not in the folder; continuing with those that are" in found.warnings
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_another_corpus_is_named(name: str, corpus) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus(name)
    other = "montgomery" if name != "montgomery" else "mimic"
    with pytest.raises(CorpusError, match="not found") as error:
        corpora.find(corpora.CORPORA[other], root)
    assert "\n" not in str(error.value)
    if name != "folders":
        assert name in str(error.value).rpartition("looks like")[2]


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"folders"}))
def test_an_empty_folder_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name != "siim":  # its table is the quickest of those that torchxrayvision brings
        monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(CorpusError, match=r"not found|looked for") as error:
        corpora.find(corpora.CORPORA[name], tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match="no such folder"):
        corpora.find(corpora.CORPORA[name], tmp_path / "x")


def test_a_mistyped_corpus_is_told_the_nearest() -> None:
    with pytest.raises(CorpusError, match="no corpus is called 'chexpart'; did you mean chexpert"):
        corpora.named("chexpart:/data")
    assert corpora.named("/data/nih") is None
    assert corpora.named("MANIFEST.csv") is None


def test_a_table_with_an_unknown_word_is_listed_and_said(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("nih")
    folder = tmp_path / "nih"
    shutil.copytree(root, folder)
    table = folder / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Cardiomegaly|Emphysema", "Cardiomegaly|Dragon"))
    found = corpora.find(corpora.CORPORA["nih"], folder)
    assert any("1 word of its labels map" in line and "'dragon'" in line for line in found.warnings)


def test_rows_that_repeat_an_image_count_once(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus("nih")
    folder = tmp_path / "nih"
    shutil.copytree(root, folder)
    table = folder / "Data_Entry_2017_v2020.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines, lines[1], lines[2]]))
    found = corpora.find(corpora.CORPORA["nih"], folder)
    assert len(found.table) == truth.images
    assert "nih: 2 rows repeat an image; the first of each counts" in found.warnings


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "word"),
    [
        ("nih", "Data_Entry_2017_v2020.csv", "Finding Labels", "Findings", "no column 'Finding Labels'"),
        ("covid19", "metadata.csv", "filename", "name", "no column 'filename'"),
        ("covidx", "train_COVIDx9A.txt", " COVID-19 sirm", "", "line 1 has"),
        ("rsna", "pneumonia-challenge-dataset-mappings_2018.json", "subset_img_id", "x", "not the mapping"),
        (
            "tbx11k",
            "TBX11K/annotations/json/TBX11K_trainval.json",
            "categories",
            "x",
            "not TBX11K's annotations",
        ),
        ("openi", "ecgen-radiology/0.xml", "</eCitation>", "", "not readable as XML"),
        ("nih", "BBox_List_2017.csv", ",", "", "not readable as CSV"),
    ],
)
def test_a_damaged_table_is_one_line(
    name: str, file: str, old: str, new: str, word: str, corpus, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus(name)
    folder = tmp_path / name
    shutil.copytree(root, folder)
    text = (folder / file).read_text()
    if name == "covidx":  # a line of two words
        text = "one two\n" + text
    (folder / file).write_text(text.replace(old, new) if name != "covidx" else text)
    with pytest.raises(CorpusError, match=word) as error:
        corpora.find(corpora.CORPORA[name], folder)
    assert "\n" not in str(error.value)


def test_half_of_a_packed_table_is_one_line(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _ = corpus("nih")
    folder = tmp_path / "nih"
    shutil.copytree(root, folder)
    table = folder / "Data_Entry_2017_v2020.csv"
    packed = gzip.compress(table.read_bytes())
    (folder / f"{table.name}.gz").write_bytes(packed[: len(packed) // 2])
    table.unlink()
    with pytest.raises(CorpusError, match=r"csv\.gz: not readable as CSV") as error:
        corpora.find(corpora.CORPORA["nih"], folder)
    assert "\n" not in str(error.value)


def test_a_patient_a_folder_is_no_class(tmp_path: Path) -> None:
    for number in range(51):
        (tmp_path / f"patient{number}").mkdir()
        (tmp_path / f"patient{number}" / "1.png").touch()
    with pytest.raises(CorpusError, match="51 folders have images, more than 50"):
        corpora.find(corpora.CORPORA["folders"], tmp_path)


def test_links_that_go_round_end(corpus, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, truth = corpus("montgomery")
    folder = tmp_path / "m"
    shutil.copytree(root, folder)
    (folder / "MontgomerySet" / "again").symlink_to(folder)
    assert len(corpora.find(corpora.CORPORA["montgomery"], folder).table) == truth.images
