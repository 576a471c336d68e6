"""The site cache: what enters, in what order, and that nothing but the images decides it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dicoms import chest, dataset, save
from PIL import Image

from sscxr.data import assemble, decode, groups, phantom, pool, store
from sscxr.data.cache import Cache, CacheError, open_cache
from sscxr.data.listing import SourceError
from sscxr.data.manifest import ManifestError
from sscxr.data.pool import WorkerError
from sscxr.data.pool import decode as decode_in_pool
from sscxr.data.prepare import PrepareError, prepare
from sscxr.data.tables import PRIVATE

SALT = bytes(range(32))
Bytes = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _any_posture(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The test pictures are no thorax that the posture detector was made for."""
    if "data" not in request.keywords:
        monkeypatch.setattr(decode, "_check_posture", lambda content, frontal: [])


def picture(seed: int, height: int = 120, width: int = 100) -> Bytes:
    return chest(height, width, bits=8, seed=seed).astype(np.uint8)


def write(path: Path, pixels: Bytes, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def run(sources: object, out: Path, **options: object) -> Cache:
    listed = sources if isinstance(sources, list) else [sources]
    return prepare(listed, out, **{"size": 64, "workers": 0, "progress": False, "salt": SALT} | options)  # type: ignore[arg-type]


def quarantine(cache: Path) -> dict[str, str]:
    with (cache / "quarantine.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["file", "reason"]
        return {Path(row["file"]).name: row["reason"] for row in reader}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder of all kinds."""
    folder = tmp_path / "export"
    (folder / "dicom").mkdir(parents=True)
    for number in range(4):
        write(folder / "pictures" / f"{number}.png", picture(number))
    write(folder / "pictures" / "photo.jpg", picture(5), quality=95)
    for number in range(6, 9):
        name = "IM0001" if number == 6 else f"{number}.dcm"
        patient = "P-1" if number < 8 else "P-2"
        save(dataset(chest(seed=number), PatientID=patient), folder / "dicom" / name)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom.write(tmp_path_factory.mktemp("phantoms"), images=16, sites=2, seed=1, size=96)


def test_a_mixed_folder(export: Path, tmp_path: Path) -> None:
    cache = run(export, tmp_path / "cache")
    assert len(cache) == 8
    assert cache.images.shape == (8, 64, 64)
    assert cache.masks is None
    assert quarantine(cache.folder) == {}
    assert set(cache.index["source"]) == {"local"}
    assert cache.summary["sources"] == ["local"]
    assert cache.index["group"].nunique() == 7  # two images of P-1
    for name in ("salt", *PRIVATE):
        assert (cache.folder / name).stat().st_mode & 0o777 == 0o600, "not for the user that trains"
    assert Image.open(cache.folder / "sheet.png").size[0] > 100


def test_images_keep_their_shape_within_the_square(tmp_path: Path) -> None:
    write(tmp_path / "in" / "wide.png", picture(0, 60, 120))
    write(tmp_path / "in" / "tall.png", picture(1, 130, 65))
    write(tmp_path / "in" / "small.png", picture(2, 50, 50))
    cache = run(tmp_path / "in", tmp_path / "cache")
    for image, row in zip(cache.images, cache.index.itertuples(), strict=True):
        assert max(row.content_height, row.content_width) == 64
        assert abs(row.content_height / row.content_width - row.height / row.width) < 0.02
        inside = np.zeros((64, 64), dtype=bool)
        inside[row.top : row.top + row.content_height, row.left : row.left + row.content_width] = True
        assert not image[~inside].any()
        assert image[inside].min() > 0
        assert abs(image[inside].mean() - 110) < 40


def test_masks_go_the_way_of_their_images(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    pixels = picture(0, 120, 90)
    mask = np.where(pixels < 80, 255, 0).astype(np.uint8)
    mask[:10] = 127
    write(folder / "plain.png", pixels)
    write(folder / "masks/plain.png", mask)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    write(folder / "turned.jpg", np.rot90(pixels + 1, 1).copy(), quality=100, exif=exif)
    write(folder / "masks/turned.png", np.rot90(mask, 1).copy())
    save(dataset(pixels[:, ::-1].copy() + 2, bits=8, PatientOrientation=["R", "F"]), folder / "mirrored.dcm")
    write(folder / "masks/mirrored.png", mask[:, ::-1].copy())
    write(folder / "odd.png", picture(9))
    write(folder / "masks/odd.png", mask[:50])
    (folder / "manifest.csv").write_text(
        "file,mask\n"
        + "".join(
            f"{name},masks/{Path(name).stem}.png\n"
            for name in ("plain.png", "turned.jpg", "mirrored.dcm", "odd.png")
        )
    )
    cache = run(folder / "manifest.csv", tmp_path / "cache")
    assert cache.masks is not None
    assert len(cache) == 4
    with_mask = cache.index["has_mask"].to_numpy() == 1
    assert with_mask.sum() == 3
    first = cache.masks[with_mask][0]
    assert set(np.unique(first)) == {0, 127, 255}
    for image, other in zip(cache.images[with_mask], cache.masks[with_mask], strict=True):
        np.testing.assert_array_equal(other, first)
        assert image[other == 255].mean() < image[other == 0][image[other == 0] > 0].mean() - 30
    assert not cache.masks[~with_mask].any()
    assert list(cache.index["warnings"][~with_mask]) == ["mask not of the image's size"]


def test_pictures_of_every_mode_show_the_same(tmp_path: Path) -> None:
    pixels = picture(0)
    folder = tmp_path / "in"
    image = Image.fromarray(pixels)
    for mode in ("L", "LA", "RGB", "RGBA", "P"):
        image.convert(mode).save(_made(folder / f"{mode}.png"))
    Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "16.png")
    half = np.dstack(
        [pixels] * 3 + [np.where(np.arange(100) < 50, 0, 255).astype(np.uint8) * np.ones((120, 1), np.uint8)]
    )
    Image.fromarray(half).save(folder / "transparent.png")
    greys = {path.stem: decode.read(path, 10**6)[0] for path in folder.iterdir()}
    for mode in ("L", "LA", "RGB", "RGBA", "P"):
        np.testing.assert_allclose(greys[mode], pixels / 255, atol=1e-6)
    assert np.corrcoef(greys["16"].ravel(), pixels.ravel())[0, 1] > 0.99
    assert not greys["transparent"][:, :50].any()
    np.testing.assert_allclose(greys["transparent"][:, 50:], pixels[:, 50:] / 255, atol=1e-6)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_everything_else_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    whole = write(folder / "good.png", picture(0)).read_bytes()
    jpeg = write(folder / "good.jpg", picture(1)).read_bytes()
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])
    (folder / "short.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "nearly.jpg").write_bytes(jpeg[:-40])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 8
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("nothing to see")
    write(folder / "mask.png", (picture(0) // 128 * 255).astype(np.uint8))
    write(folder / "black.png", np.full((100, 100), 7, np.uint8))
    write(folder / "thumb.png", picture(0, 30, 200))
    write(folder / "huge.png", picture(3, 400, 300))
    write(folder / "photo.png", np.random.default_rng(0).integers(0, 255, (100, 100, 3)).astype(np.uint8))
    write(folder / "copy.png", picture(0))
    frames = [Image.fromarray(picture(n)) for n in (4, 5)]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    os.mkfifo(folder / "pipe.png")
    (folder / "away.png").symlink_to(folder / "nowhere")
    cache = run(folder, tmp_path / "cache", max_pixels=100_000)
    kinds = {name: reason.split(":")[0] for name, reason in quarantine(cache.folder).items()}
    assert kinds == {
        "short.png": "truncated",
        "short.jpg": "truncated",
        "nearly.jpg": "truncated",
        "flipped.png": "unreadable",
        "empty.png": "empty file",
        "notes.txt": "not an image",
        "mask.png": "mask or drawing",
        "black.png": "constant image",
        "thumb.png": "too small",
        "huge.png": "too large",
        "photo.png": "colour picture",
        "good.png": "duplicate",  # of copy.png, whose name comes first
        "moving.png": "multi-frame",
        "pipe.png": "not an image",
        "away.png": "missing",
    }
    assert len(cache) == 2


def test_of_duplicates_the_one_that_says_most_stays_whatever_the_order(tmp_path: Path) -> None:
    for order in ("abc", "cba"):
        folder = tmp_path / order
        for place, name in enumerate(order):
            write(folder / f"{name}.png", picture(0))
            os.utime(folder / f"{name}.png", (place, place))
        write(folder / "mask.png", np.where(picture(0) < 80, 255, 0).astype(np.uint8))
        rows = {"a": "a.png,pa,,,", "b": "b.png,pb,PA,1,", "c": "c.png,pc,,,mask.png"}
        text = "file,patient_id,view,Mass,mask\n" + "".join(rows[name] + "\n" for name in order)
        (folder / "manifest.csv").write_text(text)
        cache = run(folder / "manifest.csv", folder / "cache")
        assert sorted(quarantine(cache.folder)) == ["a.png", "b.png"]
        assert all("c.png" in reason for reason in quarantine(cache.folder).values())


def test_patients_who_share_an_image_are_one_group(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, seed in (("a1", 1), ("a2", 2), ("b1", 2), ("b2", 3), ("c1", 4), ("d1", 5), ("e1", 6)):
        write(folder / f"{name}.png", picture(seed))
    patients = "a1.png,a,\na2.png,a,\nb1.png,b,\nb2.png,b,\nc1.png,c,s\nd1.png,d,s\ne1.png,,\n"
    (folder / "manifest.csv").write_text("file,patient_id,split_group\n" + patients)
    cache = run(folder / "manifest.csv", tmp_path / "cache")
    assert sorted(cache.index["group"].value_counts()) == [1, 2, 3]
    assert cache.index.groupby("group")["split"].nunique().max() == 1


def test_salt_workers_and_order_change_no_image_order_or_split(export: Path, tmp_path: Path) -> None:
    one = run(export, tmp_path / "one")
    files = sorted(path for path in export.rglob("*") if path.is_file())
    two = run(files[::-1], tmp_path / "two", salt=None)
    np.testing.assert_array_equal(one.images, two.images)
    columns = ["view", "height", "width", "split", "grey_range"]
    assert one.index[columns].equals(two.index[columns])
    assert set(one.index["image"]).isdisjoint(two.index["image"])
    assert set(one.index["group"]).isdisjoint(two.index["group"])


def test_a_group_keeps_the_place_it_was_first_given_whatever_comes_later() -> None:
    first, later = "f", "a"  # of the digests of one run, the first as text sets the place
    links = [("x", "p"), ("y", "p")]
    once = groups.assign([], [("x", first), ("y", later)], links)
    member = groups.assign([], [("x", first)], links[:1])["x"]
    twice = groups.assign([("x", member)], [("y", later)], links)
    assert twice["x"] == twice["y"] == member
    assert member.split == groups.place(first)
    assert once["x"].split == groups.place(later) != member.split


def test_patients_that_cannot_be_told_apart_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    for number in range(41):
        write(folder / f"{number}.png", picture(number, 60, 50))
    one = "".join(f"{number}.png,{'same' if number < 20 else ''}\n" for number in range(41))
    (folder / "manifest.csv").write_text("file,patient_id\n" + one)
    run(folder / "manifest.csv", tmp_path / "cache")
    assert "21 of 41 new images name no patient" in caplog.text
    assert "20 of 41 images are one patient group" in caplog.text


def test_no_identifier_is_left_in_the_cache(export: Path, tmp_path: Path) -> None:
    (export / "labels.csv").write_text("file,patient_id,Mass\npictures/0.png,P-SECRET,1\n")
    cache = run(export, tmp_path / "cache", labels=export / "labels.csv")
    assert cache.label("Mass")[~np.isnan(cache.label("Mass"))].tolist() == [1]
    for name, data in contents(cache.folder).items():
        if name == "quarantine.csv":
            continue
        for secret in (
            b"P-1",
            b"P-2",
            b"MRN",
            b"Doe",
            b"P-SECRET",
            b".png",
            b".dcm",
            b"IM0001",
            bytes(export),
        ):
            assert secret not in data, f"{secret!r} in {name}"


def named(folder: Path) -> Path:
    """An export that has a name wherever one may stand, with refusals of many kinds."""
    folder = folder / "PLANTED_FOLDER"
    names = {"PatientName": "PLANTED^NAME", "PatientID": "PLANTED-ID"}
    (folder / "PLANTED_INNER").mkdir(parents=True)
    for number in range(2):
        save(dataset(chest(seed=number), **names), folder / "PLANTED_INNER" / f"PLANTED_{number}.dcm")
    shutil.copy(folder / "PLANTED_INNER" / "PLANTED_0.dcm", folder / "PLANTED_COPY.dcm")
    save(dataset(chest(seed=3), **names, BodyPartExamined="PLANTED KNEE"), folder / "PLANTED_KNEE.dcm")
    save(dataset(chest(seed=4), **names, Modality="PLANTED_CT"), folder / "PLANTED_CT.dcm")
    (folder / "PLANTED_NOTES.txt").write_text("PLANTED")
    (folder / "PLANTED_AWAY.png").symlink_to(folder / "PLANTED_NOWHERE")
    return folder


def planted(cache: Path) -> set[str]:
    """Files of a cache that hold a planted name, in clear or in a compressed chunk of the sheet."""
    found = {
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and b"PLANTED" in path.read_bytes().upper()
    }
    if (cache / "sheet.png").exists():
        with Image.open(cache / "sheet.png") as sheet:
            assert sheet.info == {}
            assert not sheet.getexif()
    return found


def test_planted_names_are_in_the_quarantine_alone(tmp_path: Path) -> None:
    folder = named(tmp_path)
    cache = run([folder, folder / "PLANTED_COPY.dcm"], tmp_path / "cache")
    assert len(cache) == 2
    assert planted(cache.folder) == {"quarantine.csv"}
    reasons = quarantine(cache.folder)
    assert reasons["PLANTED_KNEE.dcm"] == "not a chest: body part PLANTED KNEE"
    assert reasons["PLANTED_CT.dcm"] == "not a radiograph: modality PLANTED_CT"
    kept = [name for name in ("PLANTED_0.dcm", "PLANTED_COPY.dcm") if name not in reasons]
    assert len(kept) == 1
    assert any(reason.startswith("duplicate: ") and kept[0] in reason for reason in reasons.values())
    entries = [json.loads(line) for line in (cache.folder / "ledger.jsonl").read_text().splitlines()]
    assert {entry["reason"] for entry in entries if "reason" in entry} == {
        "duplicate", "not a chest", "not a radiograph", "not an image"
    }  # fmt: skip
    before = contents(cache.folder)
    run([folder, folder / "PLANTED_COPY.dcm"], tmp_path / "cache")
    assert contents(cache.folder) == before


def test_a_quarantine_that_was_deleted_is_made_again_in_full(tmp_path: Path) -> None:
    folder = named(tmp_path)
    cache = run(folder, tmp_path / "cache")
    before = quarantine(cache.folder)
    (cache.folder / "quarantine.csv").unlink()
    after = quarantine(run(folder, tmp_path / "cache").folder)
    assert set(after) == set(before)
    same = [name for name in before if not before[name].startswith("duplicate")]
    assert len(same) == 4
    assert [after[name] for name in same] == [before[name] for name in same]


def test_an_interrupted_run_leaves_no_name_and_its_reasons_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = named(tmp_path)
    whole = run(folder, tmp_path / "whole")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_images", full)
        with pytest.raises(PrepareError):
            run(folder, tmp_path / "cache")
    work = tmp_path / "cache" / "work"
    assert (work / "journal.jsonl").stat().st_size > 500
    assert planted(tmp_path / "cache") <= {"work/quarantine.csv", "next/quarantine.csv"}
    with (work / "quarantine.csv").open("r+b") as reasons:  # as a power failure may leave it
        reasons.truncate(reasons.seek(0, 2) - 20)
    cache = run(folder, tmp_path / "cache")
    assert contents(cache.folder) == contents(whole.folder)


def test_sources_are_named_by_the_user_or_not_at_all(tmp_path: Path) -> None:
    one, two = tmp_path / "PLANTED_A", tmp_path / "PLANTED_B"
    for number, folder in enumerate((one, two)):
        write(folder / "x.png", picture(number))
    write(tmp_path / "y.png", picture(2))
    several = run([two, one, two, tmp_path / "y.png"], tmp_path / "several")
    assert several.summary["sources"] == ["local-1", "local-2", "local"]
    assert list(several.index["source"].value_counts().sort_index().index) == ["local", "local-1", "local-2"]
    called = run([one, two], tmp_path / "called", source="St.Mary_2-b")
    assert called.summary["sources"] == ["St.Mary_2-b"]
    (one / "manifest.csv").write_text("file,source\nx.png,north\n")
    (two / "manifest.csv").write_text("file\nx.png\n")
    both = [one / "manifest.csv", two / "manifest.csv"]
    assert run(both, tmp_path / "mixed").summary["sources"] == ["north", "local"]
    assert run(both, tmp_path / "mixed", source="south").summary["sources"] == ["north", "south"]
    for name in ("", "a b", "ä", "x" * 65, "a/b", "a\n"):
        with pytest.raises(SourceError, match="--source"):
            run(one, tmp_path / "bad", source=name)
    assert not (tmp_path / "bad").exists()


def test_a_second_run_is_quick_and_changes_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(export / "copy.png", picture(0))
    (export / "notes.txt").write_text("x")
    cache = run(export, tmp_path / "cache")
    before = contents(cache.folder)
    stamps = {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir() if path.name != "lock"}

    def forbidden(task: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("sscxr.data.pool.attempt", forbidden)
    run(export, tmp_path / "cache")
    assert contents(cache.folder) == before
    assert {
        path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir() if path.name != "lock"
    } == stamps


def test_a_later_export_is_appended_and_inherits_group_and_split(export: Path, tmp_path: Path) -> None:
    old = run(export, tmp_path / "cache")
    images, index = old.images.copy(), old.index.copy()
    later = tmp_path / "later"
    later.mkdir()
    save(dataset(chest(seed=20), PatientID="P-1"), later / "new.dcm")
    write(later / "again.png", picture(0))
    cache = run(later, tmp_path / "cache", source="later")
    assert len(cache) == len(images) + 1
    np.testing.assert_array_equal(cache.images[: len(images)], images)
    assert cache.index["image"][: len(images)].equals(index["image"])
    assert quarantine(cache.folder) == {
        "again.png": "duplicate: same pixels as an image that is in the cache already"
    }
    patient = index[index["group"].duplicated(keep=False)]
    new = cache.index.iloc[-1]
    assert (new["group"], new["split"]) == (patient["group"].iloc[0], patient["split"].iloc[0])
    assert cache.summary["sources"] == ["local", "later"]


def test_new_labels_for_old_files_update_their_rows(export: Path, tmp_path: Path) -> None:
    old = run(export, tmp_path / "cache")
    images, order = old.images.copy(), list(old.index["image"])
    (tmp_path / "labels.csv").write_text("file,Mass\n2.png,1\n3.png,0\n")
    cache = run(export, tmp_path / "cache", labels=tmp_path / "labels.csv")
    assert cache.labels == ["Mass"]
    assert sorted(cache.label("Mass")[~np.isnan(cache.label("Mass"))]) == [0, 1]
    assert list(cache.index["image"]) == order
    np.testing.assert_array_equal(cache.images, images)
    assert quarantine(cache.folder) == {}


def test_a_removed_patient_is_gone_and_stays_so(export: Path, tmp_path: Path) -> None:
    cache = run(export, tmp_path / "cache")
    images, index = cache.images.copy(), cache.index.copy()
    theirs = index["group"].duplicated(keep=False).to_numpy()
    assert assemble.remove(cache.folder, patients=["P-1"]) == 2
    left = open_cache(cache.folder)
    np.testing.assert_array_equal(left.images, images[~theirs])
    assert list(left.index["image"]) == list(index["image"][~theirs])
    again = run(export, tmp_path / "cache")
    assert len(again) == 6
    assert [reason.split(":")[0] for reason in quarantine(cache.folder).values()] == [
        "removed on request"
    ] * 2
    before = contents(cache.folder)
    run(export, tmp_path / "cache")
    assert contents(cache.folder) == before
    save(dataset(chest(seed=30), PatientID="P-1"), export / "later.dcm")
    assert len(run(export, tmp_path / "cache")) == 6
    back = run(export, tmp_path / "cache", readd_removed=True)
    assert len(back) == 9
    assert quarantine(cache.folder) == {}
    with pytest.raises(CacheError, match="nothing was removed"):
        assemble.remove(cache.folder, patients=["nobody"])
    assert assemble.remove(cache.folder, groups=list(back.index["group"])) == 9
    assert len(open_cache(cache.folder)) == 0


@pytest.mark.parametrize("moves", range(9))
def test_a_commit_is_all_or_nothing(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Killed after any number of moves, the cache is the old one or, after the next start, the new one."""
    run(export, tmp_path / "cache")
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "cache", whole)
    old = contents(tmp_path / "cache")
    assemble.remove(whole, patients=["P-1"])
    new = contents(whole)
    done = 0
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    try:
        assemble.remove(tmp_path / "cache", patients=["P-1"])
    except KeyboardInterrupt:
        with pytest.raises(CacheError, match="interrupted"):
            open_cache(tmp_path / "cache")
    monkeypatch.setattr(Path, "replace", real)
    with store.writing(tmp_path / "cache"):
        pass
    assert contents(tmp_path / "cache") == new != old


@pytest.mark.parametrize("seed", range(2))
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    tmp_path: Path, phantoms: list[Path], seed: int
) -> None:
    manifests = [str(path) for path in phantoms]
    whole = run(manifests, tmp_path / "whole")
    script = (
        "import sys; from sscxr.data.prepare import prepare\n"
        "prepare(sys.argv[2:], sys.argv[1], size=64, workers=0, progress=False, salt=bytes(range(32)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), *manifests]
    process = subprocess.Popen(command)
    journal = tmp_path / "cache" / "work" / "journal.jsonl"
    lines = (9, 17)[seed]
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= lines):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if journal.exists() and seed == 0:
        with journal.open("ab") as file:
            file.write(b'{"key": "half a li')
    cache = run(manifests, tmp_path / "cache")
    assert contents(cache.folder) == contents(whole.folder)
    assert not (cache.folder / "work").exists()


def test_workers_give_the_same_bytes(tmp_path: Path, phantoms: list[Path]) -> None:
    one = run(phantoms, tmp_path / "one")
    two = run(phantoms, tmp_path / "two", workers=2)
    assert contents(one.folder) == contents(two.folder)


def test_a_file_that_kills_its_worker_is_quarantined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import killing

    files = [write(tmp_path / f"{number}.png", picture(number)) for number in range(12)]
    monkeypatch.setattr("sscxr.data.pool._limited", killing.limited)
    tasks = [(file.name, decode.Task(file, None, "L", 64, 10**6)) for file in files]
    results = dict(decode_in_pool(tasks, 2))
    assert set(results) == {file.name for file in files}
    refused = {name: str(result) for name, result in results.items() if isinstance(result, Exception)}
    assert list(refused) == ["7.png"]
    assert refused["7.png"].startswith("kills its reader")


def test_workers_share_the_memory_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import killing

    monkeypatch.setattr(pool, "_physical_memory", lambda: 8 << 30)
    assert pool.default_workers() <= 4
    assert [pool.memory_share(workers) >> 30 for workers in (1, 2, 8)] == [8, 4, 1]
    monkeypatch.setattr(pool, "_physical_memory", lambda: 1 << 40)
    assert pool.memory_share(8) == pool.MEMORY_LIMIT
    monkeypatch.setattr(pool, "_physical_memory", lambda: 1 << 30)
    assert pool.default_workers() == 1
    monkeypatch.setattr(pool, "_limited", killing.greedy)
    tasks = [(size, decode.Task(tmp_path / str(size << 20), None, "L", 64, 10**6)) for size in (100, 600)]
    results = {size: str(result) for size, result in decode_in_pool(tasks, 2)}
    assert results == {100: "fits", 600: "too large"}


def test_workers_that_do_not_start_are_no_fault_of_the_files(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import killing

    monkeypatch.setattr("sscxr.data.pool._start_worker", killing.die)
    with pytest.raises(WorkerError, match="die as they start"):
        run(export, tmp_path / "cache", workers=1)
    assert not (tmp_path / "cache" / "quarantine.csv").exists()


def test_bad_input_is_one_line_and_loses_nothing(export: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other"
    write(other / "mine.png", picture(0))
    with pytest.raises(SourceError, match="no such file or folder"):
        run(tmp_path / "nowhere", tmp_path / "cache")
    with pytest.raises(PrepareError, match="no files in"):
        run(empty, tmp_path / "cache")
    with pytest.raises(CacheError, match="is not a cache"):
        run(export, other)
    (tmp_path / "labels.csv").write_text("file,Mass\nx.png,1\n")
    with pytest.raises(ManifestError, match="none of its 1 rows"):
        run(export, tmp_path / "cache", labels=tmp_path / "labels.csv")
    assert not (tmp_path / "cache").exists()
    (empty / "notes.txt").write_text("x")
    with pytest.raises(PrepareError, match="none of 1 files"):
        run(empty, tmp_path / "cache")
    assert quarantine(tmp_path / "cache")["notes.txt"].startswith("not an image")
    with pytest.raises(CacheError, match="not a finished cache"):
        open_cache(tmp_path / "cache")
    cache = run(export, tmp_path / "cache")
    before = contents(cache.folder)
    with pytest.raises(CacheError, match="holds images of 64 px"):
        run(export, tmp_path / "cache", size=96)
    with pytest.raises(CacheError, match="another salt"):
        run(export, tmp_path / "cache", salt=b"x" * 32)
    with store.writing(cache.folder), pytest.raises(CacheError, match="another process"):
        run(export, tmp_path / "cache")
    assert contents(cache.folder) == before


def test_a_full_disk_is_told_and_nothing_is_lost(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(export, tmp_path / "whole")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_images", full)
        with pytest.raises(PrepareError, match=r"disk of .* is full"):
            run(export, tmp_path / "cache")
    monkeypatch.setattr("sscxr.data.pool.attempt", full)  # nothing is decoded a second time
    cache = run(export, tmp_path / "cache")
    assert contents(cache.folder) == contents(whole.folder)


def test_two_that_begin_one_cache_at_once_do_not_have_two_salts(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first draws its salt."""
    drawn: list[bytes] = []

    def draw(count: int) -> bytes:
        drawn.append(bytes([len(drawn)]) * count)
        if len(drawn) == 1:
            with pytest.raises(CacheError, match="another process is writing"):
                run(export, tmp_path / "cache", salt=None)
        return drawn[0]

    monkeypatch.setattr(store.secrets, "token_bytes", draw)
    run(export, tmp_path / "cache", salt=None)
    assert (tmp_path / "cache" / "salt").read_bytes() == drawn[0]
    assert len(drawn) == 1


def test_a_disk_that_is_full_from_the_start_leaves_a_folder_to_go_on_with(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(PrepareError, match=r"disk of .* is full"):
            run(export, tmp_path / "cache")
    assert len(run(export, tmp_path / "cache")) == 8


@pytest.mark.parametrize("name", ["images.npy", "summary.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[]"])
def test_a_damaged_cache_is_one_line(export: Path, tmp_path: Path, name: str, content: bytes) -> None:
    cache = run(export, tmp_path / "cache").folder
    (cache / name).write_bytes(content)
    for again in (lambda: open_cache(cache), lambda: run(export, cache)):
        with pytest.raises(CacheError, match=f"{name}|format version None|is damaged"):
            again()


def test_published_test_images_are_trained_on_where_asked_whoever_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.png", picture(0))
    (folder / "labels.csv").write_text("file,split\na.png,test\n")
    for sources, labels in (([folder / "labels.csv"], None), ([folder], folder / "labels.csv")):
        place = tmp_path / f"cache-{labels is None}"
        assert run(sources, place, labels=labels).index["split"][0] < 0
        asked = run(sources, tmp_path / f"{place.name}-asked", labels=labels, train_on_test=True)
        assert asked.index["split"][0] >= 0


def test_a_cache_within_the_export_is_no_part_of_it(export: Path) -> None:
    cache = run(export, export / "cache")
    assert len(cache) == 8
    assert len(run(export, export / "cache")) == 8
    assert len(run(export, export.parent / "second")) == 8
    assert quarantine(export / "cache") == {}


def test_file_names_may_be_anything(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate((b"caf\xe9.png", "Röntgen,1\n.png".encode(), b" -.png")):
        write(folder / "x.png", picture(number))
        (folder / "x.png").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    (folder / os.fsdecode(b"\xff.txt")).write_text("x")
    cache = run(folder, tmp_path / "cache")
    assert len(cache) == 3
    assert len(quarantine(cache.folder)) == 1


def test_heavy_text_is_a_warning(tmp_path: Path) -> None:
    from PIL import ImageDraw, ImageFont

    image = Image.fromarray(picture(0, 600, 500))
    write(tmp_path / "in" / "plain.png", np.asarray(image))
    pen = ImageDraw.Draw(image)
    for line in range(4):
        pen.text(
            (20, 20 + 30 * line), "DOE JANE 1950-01-01 ACC 123456", fill=255, font=ImageFont.load_default(24)
        )
    write(tmp_path / "in" / "text.png", np.asarray(image))
    cache = run(tmp_path / "in", tmp_path / "cache")
    assert sorted(cache.index["warnings"]) == ["", "burnt-in text"]


@pytest.mark.data
def test_the_originals(shared_data: Path, tmp_path: Path) -> None:
    folder = run(shared_data / "originals", tmp_path / "folder", workers=2)
    reasons = quarantine(folder.folder)
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "manifest.csv": "not an image",
        "nih_udacity_test4.dcm": "not a chest",
        "nih_udacity_test6.dcm": "duplicate",
        **{name.name: "mask or drawing" for name in (shared_data / "originals").glob("*_mask.png")},
    }
    assert "RIBCAGE" in reasons["nih_udacity_test4.dcm"]
    assert "nih_udacity_test1.dcm" in reasons["nih_udacity_test6.dcm"]
    with_manifest = run(shared_data / "originals" / "manifest.csv", tmp_path / "manifest", workers=2)
    assert len(with_manifest) == len(folder) == 18
    np.testing.assert_array_equal(with_manifest.images, folder.images)
    assert with_manifest.summary["masks"] == 5
    assert len(with_manifest.rows()) == 17  # one lateral
    assert json.loads((tmp_path / "manifest" / "summary.json").read_text())["quarantined"] == 7


@pytest.mark.data
def test_pictures_that_lie_or_hang_wrong_are_quarantined(shared_data: Path, tmp_path: Path) -> None:
    for number, file in enumerate(sorted((shared_data / "originals").glob("nih_0*.png"))):
        pixels = np.asarray(Image.open(file).convert("L").resize((300, 300)))
        write(tmp_path / "in" / f"{number}-right.png", pixels)
        write(tmp_path / "in" / f"{number}-upside down.png", pixels[::-1, ::-1].copy())
        write(tmp_path / "in" / f"{number}-on its side.png", np.rot90(pixels).copy())
        write(tmp_path / "in" / f"{number}-inverted.png", 255 - pixels)
    cache = run(tmp_path / "in", tmp_path / "cache")
    assert len(cache) == 4
    reasons = quarantine(cache.folder)
    assert len(reasons) == 12
    assert all(f"looks {Path(name).stem.split('-')[1]}" in reason for name, reason in reasons.items())
