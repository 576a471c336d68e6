"""The format's number: what earlier versions wrote still loads, and what later ones write is refused by its number.

`before-numbers.tar.xz` is of a time before releases had numbers, see `releases.before_numbers`. It is never made
anew: another one belongs beside it when the format changes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from releases import a_run, before_numbers

import sscxr
from sscxr.errors import SscxrError
from sscxr.release import config_file, fetch, release, signing
from sscxr.release.config_file import FORMAT

# The first features of `RAMP`, as the version that wrote it computed them.
FEATURES = [-0.060700409, 0.102664620, 0.152650997, -0.115558237, 0.207266107, -0.087654293]
RAMP = torch.linspace(-2, 2, 1024).reshape(1, 1, 32, 32)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return before_numbers(tmp_path)


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


def test_what_is_not_a_number_of_a_format_is_refused(old: Path) -> None:
    for number in (0, -1, 1.5, "1", None, True, [1]):
        renumbered(old / "encoder", format=number)
        with pytest.raises(SscxrError, match="is not that of a released encoder"):
            config_file.read(old / "encoder")


def test_a_writer_that_is_not_a_version_stays_one_short_line(old: Path) -> None:
    renumbered(old / "encoder", format=10**30, code_version="\n\x1b[2J" + 500 * "x")
    with pytest.raises(SscxrError) as error:
        release.load_encoder(old / "encoder")
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()
