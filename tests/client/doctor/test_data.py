"""The site's images: faults of a cache are found, a healthy one is silent, and no line names a patient."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from caches import make_cache
from dicoms import chest, dataset, save
from PIL import Image

from client.doctor import data
from client.doctor.checks import Check
from client.settings import SiteSettings
from sscxr import config as configs

CONFIG = configs.load("default", ["data.cache_size=96"])
COUNT = 60
Images = npt.NDArray[np.uint8]


def index(**columns: Any) -> dict[str, Any]:
    bands = ["40-59"] * (COUNT - 1) + [""]
    split = [0.1 if row % 4 == 0 else 0.9 for row in range(COUNT)]
    groups = [f"c0ffee{row:010d}" for row in range(COUNT)]
    return {"view": "PA", "age_band": bands, "split": split, "group": groups, "label:effusion": 1.0} | columns


def examined(folder: Path, images: Images, settings: dict[str, Any] | None = None, **columns: Any) -> Any:
    make_cache(folder / "cache", images, index(**columns))
    site = SiteSettings("a", str(folder / "cache"), str(folder / "state"), **(settings or {}))
    found = {check.name: check for check in data.cache(site, CONFIG)}
    for check in found.values():
        assert "c0ffee" not in "".join(check.lines())
    return found


def test_a_healthy_cache_is_silent(tmp_path: Path, upright: Images) -> None:
    found = examined(tmp_path, upright)
    assert {check.state for check in found.values()} == {"ok"}, found
    assert found["cache"].value == "45 images to train on, 15 held out, 96 px"
    lines = "\n".join(found["cache"].detail)
    assert "view: PA 60" in lines
    assert "age: 40-59 59, unknown 1" in lines
    assert "effusion: 60 present, 0 absent, 0 unknown" in lines


def test_sideways_and_inverted_images(tmp_path: Path, upright: Images) -> None:
    images = upright.copy()
    images[3] = np.rot90(images[3])
    images[7] = 255 - images[7]
    check = examined(tmp_path, images)["posture"]
    assert check.state == "failed"
    assert check.value == "1 turned, 1 inverted, 0 mirrored of 60 frontal images looked at"


def test_one_turned_image_of_many_is_a_warning(tmp_path: Path, upright: Images) -> None:
    images = upright.copy()
    images[3] = np.rot90(images[3], 2)
    assert examined(tmp_path, images)["posture"].state == "warning"


def test_a_mirrored_cache_is_a_warning(tmp_path: Path, upright: Images) -> None:
    check = examined(tmp_path, upright[:, :, ::-1])["posture"]
    assert check.state == "warning"
    assert "0 turned, 0 inverted" in check.value


def test_images_of_unknown_view_are_judged_and_laterals_are_not(tmp_path: Path, upright: Images) -> None:
    turned = np.rot90(upright, axes=(1, 2))
    check = examined(tmp_path / "unknown", turned, view="")["posture"]
    assert check.state == "failed"
    assert int(check.value.split()[0]) > 0.9 * COUNT
    assert examined(tmp_path / "upright", upright, view="")["posture"].state == "ok"
    views = ["L"] * 5 + ["PA"] * (COUNT - 5)
    mixed = np.concatenate([turned[:5], upright[5:]])
    assert examined(tmp_path / "laterals", mixed, view=views)["posture"].state == "ok"


def test_a_patient_in_both_splits(tmp_path: Path, upright: Images) -> None:
    groups = [
        f"c0ffee{row // 2:010d}" for row in range(COUNT)
    ]  # two images each; row 0 and 1 differ in split
    check = examined(tmp_path, upright, group=groups)["splits"]
    assert check.state == "failed"
    assert check.value == "15 patient groups are both trained on and held out"


def test_an_image_in_both_splits(tmp_path: Path, upright: Images) -> None:
    images = upright.copy()
    images[1] = images[0]
    check = examined(tmp_path, images)["duplicates"]
    assert check.state == "failed"
    assert check.value.startswith("1 pictures of 60 images are both trained on and held out")


def test_duplicates_and_constant_images(tmp_path: Path, upright: Images) -> None:
    images = upright.copy()
    images[2] = images[3] = images[1]
    images[5] = images[6] = 17
    images[9, 48] = images[10, 48]  # one row alike is no duplicate
    images[11, 48] = 0  # nor is a constant row a constant image
    found = examined(tmp_path, images)
    assert (found["duplicates"].state, found["duplicates"].value) == ("warning", "2 of 60 images")
    assert (found["constant"].state, found["constant"].value) == ("warning", "2 of 60 images")


def test_too_few_images(tmp_path: Path, upright: Images) -> None:
    found = examined(tmp_path, upright, {"min_images": 46})
    assert found["cache"].state == "failed"
    assert "at least 46 are needed" in found["cache"].advice
    found = examined(tmp_path, upright, {"min_cell": 20})
    assert found["cache"].state == "warning"
    assert "min_cell=20" in found["cache"].advice
    assert examined(tmp_path, upright, {"min_images": 45})["cache"].state == "ok"


def test_a_cache_of_smaller_images_than_the_recipe_takes(tmp_path: Path, upright: Images) -> None:
    check = examined(tmp_path, upright[:, ::2, ::2])["cache size"]
    assert check.state == "warning"
    assert "48 px" in check.value


def test_no_cache(tmp_path: Path) -> None:
    (check,) = data.cache(SiteSettings("a", str(tmp_path / "cache"), str(tmp_path)), CONFIG)
    assert check.state == "failed"
    assert "not a finished cache" in check.value


def test_a_large_cache_is_sampled(tmp_path: Path, upright: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LOOKED_AT", 16)
    monkeypatch.setattr(data, "COMPARED", 30)
    found = examined(tmp_path, upright)
    assert found["duplicates"].value == "0 of 30 images (sampled of 60)"
    assert found["posture"].value.endswith("of 16 frontal images looked at")


def looked(folder: Path) -> Check:
    (check,) = data.files(folder)
    assert "SECRET" not in "".join(check.lines())
    assert "Doe" not in "".join(check.lines())
    return check


def test_files_that_decode_are_silent(tmp_path: Path, upright: Images) -> None:
    for number in range(3):
        save(dataset(chest(seed=number)), tmp_path / f"SECRET{number}.dcm")
    Image.fromarray(upright[0]).save(tmp_path / "SECRET.png")
    check = looked(tmp_path)
    assert (check.state, check.value) == ("ok", "4 of a sample of 4 decode")


def test_files_that_do_not_decode_are_told_by_their_reasons(tmp_path: Path) -> None:
    save(dataset(chest()), tmp_path / "SECRET.dcm")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "SECRET.txt").write_text("Doe")
    whole = (tmp_path / "SECRET.dcm").read_bytes()
    (tmp_path / "below" / "SECRET.dcm").write_bytes(whole[: len(whole) // 2])
    check = looked(tmp_path)
    assert check.state == "warning"
    assert check.value.startswith("1 of a sample of 3 decode; refused: ")
    assert "1 not an image" in check.value
    (tmp_path / "SECRET.dcm").unlink()
    assert looked(tmp_path).state == "failed"


def test_at_most_twenty_files_are_decoded(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"SECRET{number}").write_text("x")
    assert looked(tmp_path).value == "0 of a sample of 20 decode; refused: 20 not an image"
    assert looked(tmp_path / "none").state == "failed"
