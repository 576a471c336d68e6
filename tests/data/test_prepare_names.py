"""Whom a site cache names: nobody, and in its quarantine files alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicoms import chest, dataset, save
from exports import contents, picture, quarantine, run, write
from PIL import Image

from sscxr.data.cache import store
from sscxr.data.prepare.listing import SourceError
from sscxr.data.prepare.prepare import PrepareError

pytestmark = pytest.mark.usefixtures("any_posture")


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
    assert work.stat().st_mode & 0o777 == 0o700, "not for other users, finished or not"
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
