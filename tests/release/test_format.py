"""The format's number: what earlier versions wrote still loads, and what later ones write is refused by its number.

`before-numbers.tar.xz` has an encoder as a run wrote it, the release that was made of it, and its key: of a time
before releases had numbers (sscxr 0.1.0, commit f9d7939). It is never made anew: another one belongs beside it when
the format changes.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from releases import a_run, write

import sscxr
from sscxr.errors import SscxrError
from sscxr.release import config_file, fetch, release, signing
from sscxr.release.config_file import FORMAT

# The first features of `RAMP`, as the version that wrote it computed them.
FEATURES = [0.186814472, 0.186551362, -0.146001399, -0.111391090, 0.107393727, -0.038749684]
RAMP = torch.linspace(-2, 2, 256).reshape(1, 1, 16, 16)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("before-numbers.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def renumbered(folder: Path, **ours: Any) -> Path:
    """Give a release other facts of ours, and sums that fit."""
    config = json.loads((folder / release.CONFIG).read_text())
    config["sscxr"] = config.get("sscxr", {}) | ours
    (folder / release.CONFIG).write_text(json.dumps(config))
    if (folder / signing.SUMS).is_file():
        (folder / signing.SUMS).write_bytes(signing.sums_of(folder, release.FILES))
    return folder


def test_what_was_written_before_numbers_loads_as_it_did(old: Path) -> None:
    loaded = [
        sscxr.load_encoder(old / "release", key=old / "release.pub"),
        sscxr.load_encoder(old / "encoder"),
        release.load_encoder(fetch.pull(old / "release", cache=old / "cache")),
    ]
    for encoder in loaded:
        with torch.no_grad():
            assert encoder(RAMP)[0, :6].tolist() == pytest.approx(FEATURES, abs=1e-6)
    facts = release.facts(old / "release")
    assert (facts["format"], facts["version"], facts["rounds"]) == (1, "1.0", 12)


def test_what_is_written_now_has_the_number_and_keeps_it_as_a_release(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    folder = release.publish(run, tmp_path / "out", version="1.0")
    for place in (run / "encoder", folder):
        ours = config_file.read(place)["sscxr"]
        assert (ours["format"], ours["code_version"]) == (FORMAT, "0.1.0")
        assert release.facts(place)["format"] == FORMAT


def test_a_later_format_is_refused_by_its_number(old: Path) -> None:
    """Whatever else it changed: here the names of its files, and the form of its config."""
    later = renumbered(old / "release", format=FORMAT + 1, code_version="7.0.0")
    says = rf"is a release of format {FORMAT + 1}, .* loads formats up to {FORMAT}: install sscxr 7\.0\.0"
    for look in (release.verify, release.load_encoder, release.facts, sscxr.load_encoder, config_file.read):
        with pytest.raises(release.ReleaseError, match=says) as error:
            look(later)
        assert "\n" not in str(error.value)
    with pytest.raises(release.ReleaseError, match=says):
        fetch.pull(later, cache=old / "cache")
    (later / release.WEIGHTS).rename(later / "weights.bin")
    config = json.loads((later / release.CONFIG).read_text())
    (later / release.CONFIG).write_text(json.dumps({"sscxr": config["sscxr"]}))
    with pytest.raises(release.ReleaseError, match=says):
        sscxr.load_encoder(later)


@pytest.mark.parametrize("number", [0, -1, 1.5, "1", None, True, [1]])
def test_what_is_not_a_number_of_a_format_is_refused(tmp_path: Path, number: Any) -> None:
    folder = renumbered(write(tmp_path / "encoder"), format=number)
    with pytest.raises(SscxrError, match="is not that of a released encoder"):
        release.load_encoder(folder)


def test_a_writer_that_is_not_a_version_stays_one_short_line(tmp_path: Path) -> None:
    folder = renumbered(write(tmp_path / "encoder"), format=10**30, code_version="\n\x1b[2J" + 500 * "x")
    with pytest.raises(SscxrError) as error:
        release.load_encoder(folder)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()
