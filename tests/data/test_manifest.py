"""The CSV contract: what is stated is kept, what is not is unknown, and what is wrong is told in a line."""

from pathlib import Path

import pytest

from sscxr.data.corpora import manifest
from sscxr.data.corpora.manifest import ManifestError, Record
from sscxr.data.pixels.facts import normal_view

FULL = """file,source,patient_id,view,age,age_group,sex,label,labels_raw,mask,licence,orig_width,notes,split_group
images/a.png,hospital,p1,PA,76.0,adult,M,pneumonia,viral,masks/a.png,CC BY 4.0,640,x,g1
images/b.png,hospital,p2,AP Supine,,paediatric,female,normal,,,CC BY 4.0,640,x,
images/c.png,hospital,,L,1-5y cohort,unknown,,,,,,640,x,
"""


def read(folder: Path, text: str | bytes) -> list[Record]:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return manifest.read(path)


def complaint(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_column_of_the_contract(tmp_path: Path) -> None:
    a, b, c = read(tmp_path, FULL)
    assert a == Record(
        file=tmp_path / "images/a.png",
        name="images/a.png",
        source="hospital",
        patient="p1",
        group="g1",
        view="PA",
        sex="M",
        age_band="60-79",
        licence="CC BY 4.0",
        labels={"normal": 0, "pneumonia": 1},
        mask=tmp_path / "masks/a.png",
    )
    assert (b.group, b.view, b.sex, b.age_band, b.mask) == ("p2", "AP supine", "F", "paediatric", None)
    assert b.labels == {"normal": 1, "pneumonia": 0}
    assert (c.patient, c.group, c.view, c.age_band, c.labels) == ("", "", "L", "", {})


def test_a_patient_may_be_called_patient(tmp_path: Path) -> None:
    a, b = read(tmp_path, "image,patient,view,Mass,mask\na.png, p1 ,PA,1,m.png\nb.png,unknown,,0,\n")
    assert (a.patient, a.group, a.labels, a.mask) == ("p1", "p1", {"Mass": 1}, tmp_path / "m.png")
    assert (b.patient, b.group, b.labels) == ("", "", {"Mass": 0})
    assert [row.patient for row in read(tmp_path, "file,patient_id,patient\na.png,p1,x\nb.png,,x\n")] == [
        "p1",
        "",
    ]


@pytest.mark.parametrize("column", ["file", "image", "path"])
def test_a_file_column_and_labels_are_enough(tmp_path: Path, column: str) -> None:
    rows = read(tmp_path, f"{column},Oedema,Mass\na.png,1,0\nb.png,,-1\nc.png,nan,1.0\nd.png,NaN,\n")
    assert [row.labels for row in rows] == [{"Oedema": 1, "Mass": 0}, {}, {"Mass": 1}, {}]


def test_a_file_column_alone_is_enough(tmp_path: Path) -> None:
    assert [row.labels for row in read(tmp_path, "file\na.png\nb.png\n")] == [{}, {}]


def test_named_labels_may_be_several_and_prefixed_columns_are_labels_beside_them(tmp_path: Path) -> None:
    a, b, c = read(
        tmp_path, "file,label,label:Device,site_code\na,Mass;Oedema,1,x9\nb,No Finding,0,x9\nc,,,\n"
    )
    assert a.labels == {"Device": 1, "Mass": 1, "No Finding": 0, "Oedema": 1}
    assert b.labels == {"Device": 0, "Mass": 0, "No Finding": 1, "Oedema": 0}
    assert c.labels == {}


def test_a_numeric_label_column_is_one_label(tmp_path: Path) -> None:
    assert [row.labels for row in read(tmp_path, "file,label\na,1\nb,0\nc,\n")] == [
        {"label": 1},
        {"label": 0},
        {},
    ]


def test_semicolons_and_byte_order_marks_are_what_spreadsheets_write(tmp_path: Path) -> None:
    (row,) = read(tmp_path, b"\xef\xbb\xbffile;patient_id;Mass\r\na.png;p1;1\r\n")
    assert (row.name, row.patient, row.labels) == ("a.png", "p1", {"Mass": 1})


@pytest.mark.parametrize(
    ("age", "band"),
    [("45", "40-59"), ("45.5", "40-59"), ("045Y", "40-59"), ("018M", "0-4"), ("1-5y", ""), ("old", "")],
)
def test_ages_are_years_or_as_dicom_writes_them(tmp_path: Path, age: str, band: str) -> None:
    (row,) = read(tmp_path, f"file,age\na.png,{age}\n")
    assert row.age_band == band


@pytest.mark.parametrize(
    "name", ["../secret.png", "images/../../secret.png", "/etc/passwd", "..", "a\0b", ""]
)
def test_a_path_may_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (row,) = read(folder, f"file,mask\n{name},m.png\n")
    assert row.problem
    (row,) = read(folder, "file,mask\na.png,../../m.png\n")
    assert not row.problem
    assert row.mask is None
    assert "leads out" in row.warning


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture,label\na,b\n", "no column 'file'; 'picture', 'label'"),
        ("file,Mass\na.png,yes\n", "line 2; 'Mass'; 'yes'"),
        ("file,Mass\na.png,0.5\n", "line 2; 'Mass'; '0.5'; remove the column"),
        ("file,labels\na.png,Mass\n", "line 2; 'labels'; did you mean 'label'?"),
        ("file,Mass\na.png,1\nb.png,0\n./a.png,0\n", "lines 2 and 4; 'a.png'"),
        ("file,file\na,b\n", "'file' is there twice"),
        ("file\n", "no rows"),
        ("", "not readable"),
        ("file,x\na,1,2,3\nb,1\n", "manifest.csv"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "UTF-8"),
        (b"file,x\n\x00\xff\xfe\x00,1\n", "UTF-8"),
        ("file,label\n" + "".join(f"{i}.png,finding {i}\n" for i in range(200)), "200 different names"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    message = complaint(tmp_path, text)
    for word in words.split("; "):
        assert word in message


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        manifest.read(tmp_path / "none.csv")


@pytest.mark.data
def test_the_shared_manifests(shared_data: Path) -> None:
    rows = [row for path in sorted(shared_data.glob("cxr/*/manifest.csv")) for row in manifest.read(path)]
    assert len(rows) == 5515
    assert not any(row.problem or row.warning for row in rows)
    assert {row.view for row in rows} == {"", "AP", "AP supine", "L", "PA"}
    assert sum(row.mask is not None for row in rows) == 1153 + 49 + 68
    assert sum(row.labels.get("covid19", 0) for row in rows) == 182 + 86
    assert sum(row.labels.get("pneumonia", 0) for row in rows) == 859 + 2309 + 375 + 73


@pytest.mark.parametrize(
    ("written", "view"),
    [
        ("PA", "PA"),
        ("p.a.", "PA"),
        ("AP Supine", "AP supine"),
        ("Thorax a.p. liegend", "AP supine"),
        ("RL", "L"),
        ("AP LLD", ""),
        ("LT-DECUB", ""),
        ("RLO", ""),
        ("PA and lateral", ""),
    ],
)
def test_views_as_they_are_written(written: str, view: str) -> None:
    assert normal_view(written) == view
