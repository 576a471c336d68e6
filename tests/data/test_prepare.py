"""The site cache: what enters, in what order, and that nothing but the images decides it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from dicoms import dataset, save
from exports import picture, quarantine, run, write
from PIL import Image

from sscxr.data.cache import tables
from sscxr.data.cache.tables import PRIVATE
from sscxr.data.pixels import decode
from sscxr.data.prepare import groups

pytestmark = pytest.mark.usefixtures("any_posture")


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
    assert {file.stat().st_mode & 0o777 for file in cache.folder.iterdir()} == {0o600}, "whatever the umask"
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert Image.open(cache.folder / "sheet.png").size[0] > 100


def test_a_file_with_a_name_that_no_terminal_may_see_is_in_the_list_once(tmp_path: Path) -> None:
    write(tmp_path / "in" / "good.png", picture(0, 60, 120))
    (tmp_path / "in" / "=b\x1b[2J\nd.dcm").write_bytes(b"no")
    for _ in range(2):  # prepared again, it is found in what was written before
        cache = run(tmp_path / "in", tmp_path / "cache")
        (name,) = quarantine(cache.folder)
        assert name.endswith("=b?[2J d.dcm")
        assert len((cache.folder / "quarantine.csv").read_text().splitlines()) == 2


def test_names_of_a_manifest_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture(0, 60, 120))
    (tmp_path / "m.csv").write_text("file,source,licence,label:x\x1b[2J\na.png,=1+2\x1b[31m,@SUM(1),1\n")
    for _ in range(2):
        cache = run(tmp_path / "m.csv", tmp_path / "cache")
        assert cache.summary["sources"] == list(cache.index["source"]) == ["=1+2?[31m"]
        assert cache.index["label:x?[2J"].tolist() == [1]
        assert "@SUM(1)" in cache.summary["licences"]


def test_what_names_files_is_its_owner_s_before_anything_is_in_it(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, write_csv = [], tables._write_csv

    def watched(path: Path, *given: object) -> None:
        if path.name == "quarantine.csv":
            seen.append(path.stat().st_mode & 0o777)
        write_csv(path, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "_write_csv", watched)
    run(export, tmp_path / "cache")
    assert seen == [0o600]


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


def test_salt_workers_and_order_change_no_image_order_and_the_salt_alone_the_split(
    export: Path, tmp_path: Path
) -> None:
    one = run(export, tmp_path / "one")
    files = sorted(path for path in export.rglob("*") if path.is_file())
    two = run(files[::-1], tmp_path / "two", salt=None)
    np.testing.assert_array_equal(one.images, two.images)
    columns = ["view", "height", "width", "grey_range"]
    assert one.index[columns].equals(two.index[columns])
    assert set(one.index["split"]).isdisjoint(two.index["split"])
    three = run(files[::-1], tmp_path / "three")
    assert one.index.equals(three.index)
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
