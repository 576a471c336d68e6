"""What a header tells: which way up, which view, whose and how old; and no more."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicoms import chest, dataset, read

from sscxr.data.pixels.facts import Facts
from sscxr.data.pixels.greyscale import turn, upright


@pytest.mark.parametrize(
    ("orientation", "back"),
    [
        (["L", "F"], lambda a: a),
        (["R", "F"], lambda a: a[:, ::-1]),
        (["L", "H"], lambda a: a[::-1]),
        (["R", "H"], lambda a: a[::-1, ::-1]),
        (["F", "L"], lambda a: a.T),
        (["F", "R"], lambda a: np.rot90(a, 1)),
        (["H", "L"], lambda a: np.rot90(a, -1)),
        (["LF", "FR"], lambda a: a),
        (["P", "F"], lambda a: a),
        (["A", "F"], lambda a: a),
        (["A", "H"], lambda a: a[::-1, ::-1]),
        (["F", "A"], lambda a: np.rot90(a, 1)),
        (["H", "A"], lambda a: np.rot90(a, -1)),
        (["X", "Y"], lambda a: a),
        (["L", "R"], lambda a: a),
    ],
)
def test_patient_orientation_is_undone(tmp_path: Path, orientation: list[str], back: Any) -> None:
    """`back` turns the upright picture into the stored one; reading turns it back."""
    upright_picture = chest()
    plain, _ = read(dataset(upright_picture), tmp_path)
    grey, _ = read(
        dataset(np.ascontiguousarray(back(upright_picture)), PatientOrientation=orientation), tmp_path
    )
    np.testing.assert_array_equal(grey, plain)


def test_laterals_are_rotated_and_never_mirrored() -> None:
    marker = np.array([[1, 2], [3, 4]])
    rotations = [np.rot90(marker, quarter).tolist() for quarter in range(4)]
    for rows in "AP":
        for columns in "HF":
            assert turn(marker, upright([rows, columns])).tolist() in rotations
            assert turn(marker, upright([columns, rows])).tolist() in rotations


def test_the_header_tells_the_facts_and_no_more(tmp_path: Path) -> None:
    _, facts = read(dataset(chest(), ImagerPixelSpacing=[0.143, 0.143]), tmp_path)
    assert facts == Facts("PA", "F", "40-59", 0.143, "MRN-4711", "CHEST", "percentiles", ())


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "AP", "PatientPosition": "HFS"}, "AP supine"),
        ({"ViewPosition": "LL"}, "L"),
        ({"ViewPosition": "RL"}, "L"),
        ({"ViewPosition": "LATERAL"}, "L"),
        ({"ViewPosition": "LLD"}, ""),
        ({"ViewPosition": None, "PatientPosition": "PA"}, "PA"),
        ({"ViewPosition": None, "PatientPosition": "XX"}, ""),
        ({"ViewPosition": "", "SeriesDescription": "Thorax a.p. liegend"}, "AP supine"),
        ({"ViewPosition": "", "SeriesDescription": "CHEST LAT"}, "L"),
        ({"ViewPosition": "", "SeriesDescription": "Chest PA and lateral"}, ""),
    ],
)
def test_views(tmp_path: Path, tags: dict[str, Any], view: str) -> None:
    assert read(dataset(chest(), **tags), tmp_path)[1].view == view


@pytest.mark.parametrize(
    ("tags", "band"),
    [
        ({"PatientAge": "010M"}, "0-4"),
        ({"PatientAge": "81"}, "80+"),
        ({"PatientAge": "414Y"}, ""),
        ({"PatientAge": None}, ""),
        ({"PatientAge": None, "PatientBirthDate": "20100701", "StudyDate": "20240630"}, "5-17"),
    ],
)
def test_ages(tmp_path: Path, tags: dict[str, Any], band: str) -> None:
    assert read(dataset(chest(), **tags), tmp_path)[1].age_band == band


@pytest.mark.parametrize("identity", ["", "ANONYMOUS", "anon", "0000", "Unknown"])
def test_placeholders_are_nobodys_identity(tmp_path: Path, identity: str) -> None:
    assert read(dataset(chest(), PatientID=identity), tmp_path)[1].patient == ""
