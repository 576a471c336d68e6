"""Phantoms: the same bytes from the same seed, well-formed DICOM, upright, and told apart by site."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from sscxr.data.cache.cache import open_cache
from sscxr.data.phantoms import phantom
from sscxr.data.phantoms.anatomy import draw_patient
from sscxr.data.phantoms.findings import LABELS
from sscxr.data.phantoms.scanner import draw_style
from sscxr.data.prepare.prepare import prepare


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "set"
    phantom.write(folder, images=24, sites=3, seed=5, size=96)
    return folder


def rows_of(folder: Path) -> list[tuple[Path, dict[str, str]]]:
    found = []
    for manifest in sorted(folder.glob("site-*/manifest.csv")):
        with manifest.open() as file:
            found += [(manifest.parent, row) for row in csv.DictReader(file)]
    return found


@pytest.mark.slow
def test_same_seed_same_bytes_in_another_process(written: Path, tmp_path: Path) -> None:
    code = "import sys, sscxr.data.phantoms.phantom as p; p.write(sys.argv[1], images=24, sites=3, seed=5, size=96)"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())},
    )
    assert files(tmp_path / "again") == files(written)


def test_another_seed_gives_other_patients(written: Path, tmp_path: Path) -> None:
    phantom.write(tmp_path / "other", images=6, sites=3, seed=6, size=64)
    ids = {row["patient_id"] for _, row in rows_of(written)}
    assert not ids & {row["patient_id"] for _, row in rows_of(tmp_path / "other")}


def test_a_finished_folder_is_left_alone_and_a_different_one_refused(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    manifests = phantom.write(written, images=24, sites=3, seed=5, size=96)
    assert manifests == [written / f"site-{index}" / "manifest.csv" for index in range(3)]
    assert before == {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    with pytest.raises(phantom.PhantomError, match="other phantoms"):
        phantom.write(written, images=25, sites=3, seed=5, size=96)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "patients.txt").write_text("mine")
    with pytest.raises(phantom.PhantomError, match="other files"):
        phantom.write(tmp_path, images=4, sites=2, seed=0, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["patients.txt"]


def test_an_unfinished_folder_is_completed(written: Path, tmp_path: Path) -> None:
    phantom.write(tmp_path / "set", images=24, sites=3, seed=5, size=96)
    note = tmp_path / "set" / "phantoms.json"
    note.write_text(note.read_text().replace("true", "false"))
    next((tmp_path / "set").rglob("*.dcm")).write_bytes(b"half")
    phantom.write(tmp_path / "set", images=24, sites=3, seed=5, size=96)
    assert files(tmp_path / "set") == files(written)


@pytest.mark.parametrize(
    "wrong",
    [{"images": 2, "sites": 3}, {"sites": 0}, {"size": 8}, {"seed": -1}, {"test": 1}],
    ids=lambda wrong: str(wrong),
)
def test_wrong_parameters_are_one_clear_error(wrong: dict[str, int], tmp_path: Path) -> None:
    parameters = {"images": 4, "sites": 2, "seed": 0, "size": 64} | wrong
    with pytest.raises(phantom.PhantomError):
        phantom.write(tmp_path / "set", **parameters)
    assert not (tmp_path / "set").exists()


def test_a_test_set_has_whole_patients_and_the_same_pictures(written: Path, tmp_path: Path) -> None:
    phantom.write(tmp_path / "set", images=24, sites=3, seed=5, size=96, test=0.5)
    before, after = files(written), files(tmp_path / "set")
    assert {name for name in after if before[name] != after[name]} <= {
        "phantoms.json", *(f"site-{site}/manifest.csv" for site in range(3))
    }  # fmt: skip
    parts: dict[str, set[str]] = {"": set(), "test": set()}
    for _, row in rows_of(tmp_path / "set"):
        parts[row["split"]].add(row["patient_id"])
    assert not parts[""] & parts["test"]
    assert 4 <= len(parts["test"]) <= 14
    prepared = prepare(
        sorted((tmp_path / "set").glob("*/manifest.csv")),
        tmp_path / "cache",
        size=32,
        workers=0,
        progress=False,
    )
    cache = open_cache(prepared.folder)
    tested = (cache.index["published"] == "test").to_numpy()
    assert tested.sum() == sum(row["split"] == "test" for _, row in rows_of(tmp_path / "set"))
    assert cache.held_out(0.0001)[tested].all()


def test_manifest_counts_sites_and_labels(written: Path) -> None:
    rows = rows_of(written)
    assert len(rows) == 24
    assert json.loads((written / "phantoms.json").read_text())["images"] == 24
    assert {row["source"] for _, row in rows} == {"phantom_site_0", "phantom_site_1", "phantom_site_2"}
    assert {row["label"] for _, row in rows} <= set(LABELS)
    assert len({row["patient_id"] for _, row in rows}) < 24
    assert list(rows[0][1]) == list(phantom.COLUMNS)
    for _, row in rows:
        assert row["split_group"] == row["patient_id"]
        assert (row["age_group"] == "paediatric") == (int(row["age"]) < 18)


def test_dicom_is_well_formed_and_its_window_shows_the_picture(written: Path) -> None:
    uids = set()
    for folder, row in rows_of(written):
        data = pydicom.dcmread(folder / row["file"])
        mask = np.array(Image.open(folder / row["mask"]))
        uids.add(data.SOPInstanceUID)
        assert data.Modality in ("CR", "DX")
        assert data.BodyPartExamined == "CHEST"
        assert data.ViewPosition == row["view"]
        assert data.PatientID == row["patient_id"]
        assert data.pixel_array.shape == mask.shape == (int(row["orig_height"]), int(row["orig_width"]))
        assert data.pixel_array.max() < 2**data.BitsStored
        assert 0.5 < float(data.PixelSpacing[0]) < 6
        assert set(np.unique(mask)) == {0, 255}
    assert len(uids) == 24


@pytest.mark.parametrize("child", [False, True])
def test_upright_with_dark_lungs_and_the_heart_on_the_viewers_right(child: bool) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        patient, style = draw_patient(rng, child), draw_style(rng)
        image, mask, facts = phantom.draw(rng, style=style, patient=patient, label="normal", size=128)
        assert image.dtype == np.float32
        assert 0 <= image.min() < 0.1
        assert 0.9 < image.max() <= 1
        assert facts.label == "normal"
        lung = mask > 0
        left, right = lung.copy(), lung.copy()
        middle = round(np.nonzero(lung)[1].mean())
        left[:, middle:] = right[:, :middle] = False
        below = np.zeros_like(lung)
        below[np.nonzero(lung)[0].max() + 2 :, 40:-40] = True
        assert image[lung].mean() < image[below].mean() if below.any() else True
        # The heart lies in front of the lung on the viewer's right, in its lower half.
        lower = np.arange(128)[: lung.shape[0], None] > np.nonzero(lung)[0].mean()
        assert image[right & lower].mean() > image[left & lower].mean()


def test_opacities_brighten_the_lungs_but_not_beyond_doubt() -> None:
    means = {"normal": [], "covid19": []}
    for label, found in means.items():
        for seed in range(25):
            rng = np.random.default_rng(seed)
            patient, style = draw_patient(rng, False), draw_style(rng)
            image, mask, _ = phantom.draw(rng, style=style, patient=patient, label=label, size=64)
            found.append(float(image[mask > 0].mean() - image[mask == 0].mean()))
    assert np.mean(means["covid19"]) > np.mean(means["normal"]) + 0.01
    assert min(means["covid19"]) < max(means["normal"])


def test_sizes_and_shapes() -> None:
    for size in (32, 96, 256):
        image, mask, _ = phantom.draw(np.random.default_rng(3), size=size)
        assert max(image.shape) == size
        assert mask.shape == image.shape
        assert np.isfinite(image).all()
