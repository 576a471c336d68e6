"""Predictions of files: as on the cache, at the files' own geometry, and none stopped by another."""

import csv
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import highdicom
import killing
import numpy as np
import pydicom
import pytest
from dicoms import chest, dataset, save
from PIL import Image
from tuned import make_model

from sscxr.data.pixels import decode
from sscxr.data.prepare.prepare import prepare
from sscxr.errors import SscxrError
from sscxr.finetuning import judge
from sscxr.models import inference
from sscxr.predict import dicom_seg, overlay, predict, reading

pytestmark = pytest.mark.usefixtures("any_posture")

HIGH, WIDE = 120, 100


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", labels=["pneumonia", "covid19"])


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", task="segment", labels=["lung"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DICOM of each kind of orientation, a picture, and files that are none."""
    folder = tmp_path / "files"
    folder.mkdir()
    tags = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}
    tags |= {"WindowCenter": 2048, "WindowWidth": 4096}  # the grey levels as stored
    picture = chest(HIGH, WIDE)
    save(dataset(picture, **tags), folder / "plain.dcm")
    turned = np.ascontiguousarray(picture[:, ::-1].T)
    save(dataset(turned, PatientOrientation=["F", "R"], **tags), folder / "turned.dcm")
    Image.fromarray((picture >> 4).astype(np.uint8)).save(folder / "plain.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "short.png").write_bytes((folder / "plain.png").read_bytes()[:500])
    return folder


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / predict.TABLE).open(newline="") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


def test_probabilities_are_those_of_the_cached_image(classifier: Path, folder: Path, tmp_path: Path) -> None:
    found = predict.predict(classifier, [folder], tmp_path / "out")
    cache = prepare([folder], tmp_path / "cache", size=32, workers=0, progress=False)
    opened = judge.open_model(classifier)
    expected = inference.probabilities(opened.model, cache.images, wants=opened.input)
    table = rows(tmp_path / "out")
    assert set(table) == {"plain.dcm", "turned.dcm", "plain.png", "notes.txt", "short.png"}
    said = [
        [float(table[name][label]) for label in ("pneumonia", "covid19")]
        for name in ("plain.dcm", "plain.png")
    ]
    for one in said:
        assert np.abs(expected - one).max(axis=1).min() < 2e-6
    assert {path.name for path, _ in found.failed} == {"notes.txt", "short.png"}
    assert (found.done, table["notes.txt"]["pneumonia"]) == (3, "")
    assert "not an image" in table["notes.txt"]["warnings"]


def test_a_turned_file_is_the_same_image(classifier: Path, folder: Path, tmp_path: Path) -> None:
    predict.predict(
        classifier, [folder / "plain.dcm", folder / "turned.dcm"], tmp_path / "out", options=["--saliency"]
    )
    table = rows(tmp_path / "out")
    assert table["plain.dcm"]["pneumonia"] == table["turned.dcm"]["pneumonia"]
    pages = [Image.open(tmp_path / "out" / table[f"{name}.dcm"]["saliency"]) for name in ("plain", "turned")]
    assert pages[0].size == (3 * round(overlay.PANEL * WIDE / HIGH), overlay.PANEL + overlay.CAPTION)
    assert np.array_equal(*map(np.asarray, pages))


@pytest.mark.parametrize(("task", "more"), [("classify", {"options": ["--saliency"]}), ("segment", {})])
def test_a_file_is_decoded_once(
    classifier: Path,
    segmenter: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    more: dict[str, list[str]],
) -> None:
    decoded: list[Path] = []

    def counted(file: Path, *rest: Any) -> Any:
        decoded.append(file)
        return read(file, *rest)

    read = decode.read
    monkeypatch.setattr(decode, "read", counted)
    model = classifier if task == "classify" else segmenter
    assert predict.predict(model, [folder / "turned.dcm"], tmp_path / "out", **more).done == 1
    assert decoded == [folder / "turned.dcm"]


@pytest.mark.slow
def test_masks_lie_as_the_files_store_them(
    segmenter: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that sees lung wherever the image is dark: the mask then follows the pixels, however stored."""

    def dark(model: Any, forward: Any, images: np.ndarray, *rest: Any) -> Any:
        import torch

        yield torch.from_numpy(0.4 - images[:, None] / 255.0).float()

    monkeypatch.setattr(inference, "batches", dark)
    out = tmp_path / "out"
    found = predict.predict(segmenter, [folder], out, options=["--dicom-seg"])
    assert found.done == 3
    for name in ("plain", "turned"):
        source = pydicom.dcmread(folder / f"{name}.dcm")
        mask = np.asarray(Image.open(out / f"{name}_mask.png")) == 255
        assert mask.shape == source.pixel_array.shape
        truth = source.pixel_array < 0.4 * 4095
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8
        written = highdicom.seg.segread(out / f"{name}_seg.dcm")
        assert np.array_equal(np.squeeze(written.pixel_array) == 1, mask)
        study, series, instance = written.get_source_image_uids()[0]
        assert (study, series, instance) == ("1.2.3", "1.2.3.4", source.SOPInstanceUID)
        assert written.PatientID == source.PatientID
        assert pydicom.dcmread(out / f"{name}_seg.dcm").Modality == "SEG"
        assert Image.open(out / f"{name}_overlay.png").size == (WIDE, HIGH)
    table = rows(out)
    assert table["plain.png"]["dicom_seg"] == ""
    assert table["plain.png"]["mask"] == "plain-2_mask.png"  # a name of its own beside plain.dcm's
    assert 0 < float(table["plain.dcm"]["lung_share"]) < 1


def test_files_named_by_their_uids_and_manifests(tmp_path: Path) -> None:
    for name in ("1.2.840.77", "1.2.840.78", "a.PNG"):
        (tmp_path / name).write_bytes(b"no picture")
    names = [read.name for read in reading.read(reading.files([tmp_path]), size=32)]
    assert names == ["1.2.840.77", "1.2.840.78", "a"]
    table = tmp_path / "list.CSV"
    table.write_text(f"image,patient\n{tmp_path / 'a.PNG'},p\n")
    assert reading.files([table]) == [(tmp_path / "a.PNG", "")]


def test_a_very_long_name_stops_nothing(classifier: Path, folder: Path, tmp_path: Path) -> None:
    pictures = [folder / f"{'ü' * 125}{letter}.png" for letter in "xy"]
    pictures[0].write_bytes((folder / "plain.png").read_bytes())
    pictures[1].write_bytes((folder / "plain.png").read_bytes())
    assert predict.predict(classifier, pictures, tmp_path / "out", options=["--saliency"]).done == 2
    assert len({row["saliency"] for row in rows(tmp_path / "out").values()}) == 2


def test_a_dicom_seg_that_cannot_be_made_is_told(segmenter: Path, folder: Path, tmp_path: Path) -> None:
    save(dataset(chest(HIGH, WIDE)), folder / "bare.dcm")
    found = predict.predict(
        segmenter, [folder / "bare.dcm", folder / "plain.png"], tmp_path / "out", options=["--dicom-seg"]
    )
    assert (found.done, found.failed) == (2, [])
    assert [path.name for path, _ in found.without_seg] == ["bare.dcm"]
    assert "no StudyInstanceUID" in rows(tmp_path / "out")["bare.dcm"]["warnings"]


def test_values_come_back_to_the_originals_pixels() -> None:
    """A ramp over the content, brought back, is the ramp over the original."""
    place = {"top": 0, "left": 3, "content_height": 32, "content_width": 26}
    prepared = decode.Prepared("", np.zeros((32, 32), np.uint8), None, decode.Facts(), 320, 260, **place)
    ramp = np.tile(np.arange(32, dtype=np.float32), (32, 1))
    found = reading.to_original(ramp, prepared)
    assert found.shape == (320, 260)
    expected = (np.arange(260) + 0.5) / 10 - 0.5 + 3
    assert found[100, 5:-5] == pytest.approx(expected[5:-5], abs=1e-3)


@pytest.mark.slow
def test_the_same_prediction_is_one_dicom_instance(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((HIGH, WIDE), dtype=bool)
    mask[10:20] = True
    uids = []
    for number, (model, drawn) in enumerate((("ab", mask), ("ab", mask), ("cd", mask), ("ab", ~mask))):
        dicom_seg.write(folder / "plain.dcm", drawn, tmp_path / f"{number}.dcm", model=model)
        uids.append(pydicom.dcmread(tmp_path / f"{number}.dcm").SOPInstanceUID)
    assert uids[0] == uids[1]
    assert len(set(uids)) == 3
    dicom_seg.write(folder / "plain.dcm", mask & False, tmp_path / "none.dcm", model="ab")
    assert not highdicom.seg.segread(tmp_path / "none.dcm").pixel_array.any()


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "Japanese": (
        {
            "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        },
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "Korean": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞=홍^길동"},
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    "Cyrillic": ({"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Иванов^Иван"}, "Иванов^Иван"),
    "Chinese": ({"SpecificCharacterSet": "GB18030", "PatientName": "王^小东"}, "王^小东"),
    "unknown set": ({"SpecificCharacterSet": "Not Supplied", "PatientName": "DOE^JANE"}, "DOE^JANE"),
    "no carets": ({"PatientName": "MUSTERMANN ERIKA"}, "MUSTERMANN ERIKA"),
}


@pytest.mark.parametrize(("changes", "name"), HEADERS.values(), ids=HEADERS)
def test_a_header_of_any_script_gives_a_segmentation_and_shows_no_name(
    folder: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    name: str,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    source = pydicom.dcmread(folder / "plain.dcm")
    odd = {"PatientBirthDate": "1979-01-01", "StudyTime": "10:15", "PatientSex": "FEMALE", "StudyDate": "n/a"}
    with warnings.catch_warnings(action="ignore"):
        for keyword, value in (changes | odd).items():
            setattr(source, keyword, value)
        source.save_as(tmp_path / "source.dcm")
    capfd.readouterr()
    recwarn.clear()
    dicom_seg.write(tmp_path / "source.dcm", np.ones((HIGH, WIDE), bool), tmp_path / "seg.dcm", model="ab")
    said = "".join(capfd.readouterr()) + "".join(str(warning.message) for warning in recwarn)
    assert said == ""
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(written.PatientName), written.SpecificCharacterSet) == (name, "ISO_IR 192")
    assert (written.PatientBirthDate, written.StudyTime) == ("19790101", "1015")
    assert (written.StudyDate, written.PatientSex) == ("", "")
    assert "PatientOrientation" in written
    if shutil.which("dciodvfy"):
        checked = subprocess.run(["dciodvfy", tmp_path / "seg.dcm"], capture_output=True)
        assert b"Error" not in checked.stderr


def test_what_a_segmentation_cannot_be_made_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(dataset(chest(HIGH, WIDE)), folder / "bare.dcm")
    with pytest.raises(SscxrError, match="no StudyInstanceUID"):
        dicom_seg.write(folder / "bare.dcm", np.zeros((HIGH, WIDE), bool), tmp_path / "x.dcm", model="ab")
    with pytest.raises(SscxrError, match="100 x 120"):
        dicom_seg.write(folder / "plain.dcm", np.zeros((9, 9), bool), tmp_path / "x.dcm", model="ab")
    monkeypatch.setattr(dicom_seg.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SscxrError, match=r"pip install 'sscxr\[seg\]'"):
        dicom_seg.require()


def test_a_file_that_kills_its_reader_stops_no_other(
    classifier: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GDCM does, which aborts on some damaged headers."""
    shutil.copy(folder / "plain.png", folder / "7.png")
    monkeypatch.setattr(reading, "WORKERS", 1)
    monkeypatch.setattr("sscxr.data.prepare.pool._limited", killing.limited)
    files = [folder / name for name in ("short.png", "7.png", "notes.txt", "short.png")]
    found = predict.predict(classifier, files, tmp_path / "out")
    problems = {path.name: problem for path, problem in found.failed}
    assert list(problems) == ["short.png", "7.png", "notes.txt"]
    assert "kills its reader" in problems["7.png"]


def test_bad_requests_are_said(classifier: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SscxrError, match="--dicom-seg needs a model made to segment"):
        predict.predict(classifier, [folder], out, options=["--dicom-seg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SscxrError, match="no files in"):
        predict.predict(classifier, [tmp_path / "empty"], out)
    with pytest.raises(SscxrError, match="other than predictions"):
        predict.predict(classifier, [folder], folder)
    found = predict.predict(classifier, [tmp_path / "nowhere.png", folder / "plain.png"], out)
    assert [problem for _, problem in found.failed] == ["no such file or folder"]
    with pytest.raises(SscxrError, match="give --force"):
        predict.predict(classifier, [folder], out)
    assert predict.predict(classifier, [folder], out, overwrite=True).done == 3


@pytest.mark.data
@pytest.mark.slow
def test_the_originals(
    shared_data: Path, segmenter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    files = sorted((shared_data / "originals").glob("nih*"))
    found = predict.predict(segmenter, files, tmp_path / "out", options=["--dicom-seg"])
    assert [path.name for path, _ in found.failed] == ["nih_udacity_test4.dcm"]  # ribs, as its header says
    for file in files:
        if file.suffix == ".dcm" and file.stem != "nih_udacity_test4":
            source = pydicom.dcmread(file)
            written = highdicom.seg.segread(tmp_path / "out" / f"{file.stem}_seg.dcm")
            assert written.get_source_image_uids()[0][2] == source.SOPInstanceUID
            assert np.squeeze(written.pixel_array).shape == source.pixel_array.shape
