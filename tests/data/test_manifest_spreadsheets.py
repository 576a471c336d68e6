"""Tables as spreadsheets save them, exports with links: what is guessed is warned of, the rest is refused."""

from pathlib import Path

import pytest
from layouts.base import picture

from sscxr.data.cache.assemble import remove
from sscxr.data.cache.cache import CacheError
from sscxr.data.corpora import manifest
from sscxr.data.corpora.manifest import ManifestError, Record
from sscxr.data.pixels.facts import is_placeholder, normal_id
from sscxr.data.prepare import listing
from sscxr.data.prepare.prepare import prepare


def read(folder: Path, text: str | bytes) -> tuple[list[Record], str]:
    path, warnings = folder / "m.csv", list[str]()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return manifest.read(path, warnings), "\n".join(warnings)


TABLE = "File;Patient_ID;Age;Edema\na.png;P1;45,5;TRUE\nb.png;P2;#N/A;FALSE\n;;;\nc.png;#N/A;17;#N/A\n"


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode(),
        ("sep=;\r\n" + TABLE).encode(),
        TABLE.replace(";", "\t").encode("utf-16"),
        TABLE.replace(",", ".").replace(";", ",").encode(),
        ("sep=,\n" + TABLE.replace(",", ".").replace(";", ",")).encode(),
    ],
)
def test_a_spreadsheets_table_is_read(content: bytes, tmp_path: Path) -> None:
    records, warnings = read(tmp_path, content)
    assert [(one.name, one.patient, one.age_band, one.labels) for one in records] == [
        ("a.png", "P1", "40-59", {"Edema": 1}),
        ("b.png", "P2", "", {"Edema": 0}),
        ("c.png", "", "5-17", {}),
    ]
    assert warnings == ""


def test_a_line_is_counted_as_an_editor_counts_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="line 5: label column 'x' has '7'"):
        read(tmp_path, "sep=,\nfile,x\na,1\n\nb,7\n")
    with pytest.raises(ManifestError, match="save it as 'CSV UTF-8'"):
        read(tmp_path, "file\nMüller\n".encode("cp1252"))


def test_names_that_differ_by_case_are_one_label_and_slips_are_warned_of(tmp_path: Path) -> None:
    text = "file,label\na,Pneumonia\nb,pneumonia"
    text += "\nc,PNEUMONIA\nd,pneumonia\ne,Normal\nf,pnuemonia|lobe 1\ng,lobe 2\n"
    records, warnings = read(tmp_path, text)
    assert [record.labels["pneumonia"] for record in records] == [1, 1, 1, 1, 0, 0, 0]
    assert set(records[0].labels) == {"pneumonia", "pnuemonia", "Normal", "lobe 1", "lobe 2"}
    assert "'Pneumonia' is 'pneumonia'" in warnings
    assert "'pneumonia' and 'pnuemonia' are nearly" in warnings
    assert warnings.count("nearly alike") == 1
    with pytest.raises(ManifestError, match="twice, in another case"):
        read(tmp_path, "file,label:Edema,label:edema\na,1,0\n")


def test_no_word_of_a_split_is_passed_over(tmp_path: Path) -> None:
    words = {"Testing": "test", "test ": "test", "holdout": "test", "Test set": "test", "validation": "valid"}
    words |= {"internal test": "test", "dev": "valid", "TRAIN": "train", "": "", "n/a": ""}
    records, _ = read(tmp_path, "file,split\n" + "".join(f"{n},{word}\n" for n, word in enumerate(words)))
    assert [record.published for record in records] == [*words.values()]
    assert [record.held_out for record in records] == [part == "test" for part in words.values()]
    with pytest.raises(ManifestError, match="line 3: column 'split' has a word") as error:
        read(tmp_path, "file,split\na,train\nb,cohort B\n")
    assert "cohort" not in str(error.value), "a cell in the wrong column could be a patient's"


@pytest.mark.parametrize("none", ["", "---", "000", "٠٠٠", "０００", "ANON", "ａｎｏｎ", "xxxx", "N/A"])
def test_ids_that_name_nobody(none: str) -> None:
    assert is_placeholder(none)


@pytest.mark.parametrize("one", ["ИВАНОВ", "Παπαδόπουλος", "محمد", "患者000", "山田", "김", "שלום", "P000"])
def test_ids_of_any_script_name_a_patient(one: str) -> None:
    assert not is_placeholder(one)


def test_ids_that_are_one() -> None:
    same = (
        ("1000", "1000.0", "01000", "1,000", "1.000", "1000.00", "１０００", "١٠٠٠"),
        ("ß1", "SS1"),
        ("иванов", "ИВАНОВ "),
    )
    for names in same:
        assert len({normal_id(name) for name in names}) == 1
    apart = ("1", "10", "100", "1.5", "1.2.840.10008", "P1", "P01", "1.23457E+11", "a 1", "a1")
    assert len({normal_id(name) for name in apart}) == len(apart)


def test_one_patient_of_many_spellings(tmp_path: Path) -> None:
    """Grouped as one, with a warning that names nobody, removed under any spelling, and not brought back."""
    ids = ["1000", "1000.0", "01000", "ИВАНОВ", "иванов", "1.23457E+11", "1.23457E+11", "P7"]
    for number in range(len(ids)):
        picture(tmp_path / f"{number}.png")
    text = "file,patient_id\n" + "".join(f"{number}.png,{one}\n" for number, one in enumerate(ids))
    _, warnings = read(tmp_path, text)
    assert "5 different patient_ids (line 2" in warnings
    assert "of 2 rows (line 7" in warnings
    assert "1000" not in warnings
    assert "ванов" not in warnings.lower()
    out = tmp_path / "out"
    cache = prepare([tmp_path / "m.csv"], out, workers=0, progress=False)
    assert sorted(cache.index["group"].value_counts()) == [1, 2, 2, 3]
    assert remove(out, patients=["Иванов"]) == 2
    assert remove(out, patients=["001000"]) == 3
    assert len(prepare([tmp_path / "m.csv"], out, workers=0, progress=False)) == 3


def test_a_public_patient_is_named_with_the_corpus(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "nih" / "images" / f"0000001{number}_000.png")
    head = "Image Index,Finding Labels,Patient ID,Patient Age,View Position\n"
    rows = "".join(f"0000001{number}_000.png,Edema,{10 + number},40,PA\n" for number in range(3))
    (tmp_path / "nih" / "Data_Entry_2017.csv").write_text(head + rows)
    prepare([f"nih:{tmp_path / 'nih'}"], tmp_path / "out", workers=0, progress=False)
    for written in ("12", "00000012"):
        with pytest.raises(CacheError, match="give --patient nih:12"):
            remove(tmp_path / "out", patients=[written])
    assert remove(tmp_path / "out", patients=["nih:12"]) == 1


def test_no_link_leads_out_of_an_export(tmp_path: Path) -> None:
    export, other = tmp_path / "export", tmp_path / "other"
    for file in (export / "in/a.png", export / "b.png", other / "secret.png", other / "more/c.png"):
        picture(file)
    (export / "link.png").symlink_to(other / "secret.png")
    (export / "away").symlink_to(other / "more")
    (export / "within").symlink_to(export / "in")
    (export / "again.png").symlink_to(export / "b.png")
    listed = listing.collect([export], labels=None, skip=None)
    assert sorted(item.name for item in listed.items) == ["again.png", "b.png", "in/a.png"]
    assert listed.warnings == [
        "2 links in a folder lead out of it and are left out; to include the target, give that folder as well"
    ]
    rows = "link.png,\naway/c.png,\nwithin/a.png,\nb.png,link.png\nagain.png,in/a.png\n"
    (export / "m.csv").write_text("file,mask\n" + rows)
    listed = listing.collect([export / "m.csv"], labels=None, skip=None)
    assert [item.name for item in listed.items if not item.problem] == ["within/a.png", "b.png", "again.png"]
    assert listed.items[3].record is not None
    assert listed.items[3].record.mask is None
    assert "3 rows name files" in listed.warnings[0]
    assert manifest.inside(export, "away/c.png")[1] == manifest.LINKED
    of_corpus = listing.collect([Path(f"folders:{export}")], labels=None, skip=None)
    assert [item.name for item in of_corpus.items] == ["in/a.png"]
