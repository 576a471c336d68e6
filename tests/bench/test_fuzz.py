"""The fuzzer counts what it should, and a hundred damaged files end no reader."""

import importlib
from pathlib import Path
from types import ModuleType

import killing
import numpy as np
import pytest
from dicoms import chest, dataset, save
from PIL import Image

from sscxr.data.pixels import decode
from sscxr.data.pixels.facts import Refused
from sscxr.data.prepare import pool

pytestmark = pytest.mark.usefixtures("any_posture")


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    return importlib.import_module("fuzz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    save(dataset(chest(120, 100)), folder / "a.dcm")
    Image.fromarray((chest(120, 100) >> 4).astype(np.uint8)).save(folder / "b.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_damaged_files_end_no_reader_and_tell_no_name(fuzz: ModuleType, folder: Path) -> None:
    counts = fuzz.fuzz(folder, 100, 0, 0)
    assert (counts["files"], counts["mutants"]) == (2, 100)
    assert counts["refused"] + counts["accepted"] == 100
    assert counts["refused"] > 10
    assert counts["accepted"] > 10
    assert not counts["ended or hung its reader"] + counts["nothing came back"] + counts["the name was told"]
    assert counts == fuzz.fuzz(folder, 100, 0, 0), "the same seed, the same damage"


def test_a_reader_that_ends_and_a_name_are_counted(
    fuzz: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.dcm").unlink()
    monkeypatch.setattr(pool, "_limited", killing.limited)  # ends at the file 7.png
    counts = fuzz.fuzz(folder, 9, 0, 1)
    assert counts["ended or hung its reader"] == 1
    told = Refused("not readable", f"of {fuzz.NAME.title()}")
    monkeypatch.setattr(pool, "attempt", lambda task: told)
    assert fuzz.fuzz(folder, 9, 0, 0)["the name was told"] == 9


def test_an_image_that_became_another_is_counted(
    fuzz: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inverted = []

    def upside_down(task: decode.Task) -> decode.Prepared:
        content = folder / "b.png"
        found = decode.prepare_file(fuzz.task(content))
        inverted.append(task)
        return decode.Prepared(**{**vars(found), "image": 255 - found.image})

    monkeypatch.setattr(pool, "attempt", upside_down)
    counts = fuzz.fuzz(folder, 5, 0, 0)
    assert len(inverted) == 5
    assert sum(count for what, count in counts.items() if what.startswith("accepted, another")) == 5
