"""The data of a run is its own once it has begun; a start that came to nothing is in nobody's way."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache

from server.ledger import LedgerError
from sim import findings
from sim.asked import agree
from sim.data import gather
from sim.sites import write_sites
from sim.typed import sorted_out
from sscxr import config as configs
from sscxr.data.cache import view
from sscxr.data.cache.assemble import remove
from sscxr.data.cache.cache import CacheError, open_cache
from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import prepare
from sscxr.report.record import NOTES
from sscxr.runs import read_list

SETTINGS = ["data.cache_size=32", "sim.phantoms=24", "privacy.min_cell=1", "sim.partition=iid"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    manifests = phantom.write(tmp_path_factory.mktemp("phantoms"), images=16, sites=1, seed=0, size=64)
    return sorted((manifests[0].parent / "images").glob("*.dcm"))


def begin(out: Path) -> None:
    (out / "config.yaml").write_text("")


def test_a_run_goes_on_with_its_own_images_whatever_its_folder_has_by_now(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export, out, config = tmp_path / "export", tmp_path / "out", configs.load("smoke", SETTINGS)
    export.mkdir()
    for file in files[:10]:
        shutil.copy2(file, export)
    first = gather([export], out, config, 2)
    write_sites(first, out, config, 2)
    begin(out)
    for file in files[10:13]:
        shutil.copy2(file, export)
    (export / "broken.dcm").write_bytes(files[0].read_bytes()[:700])
    again = gather([export], out, config, 2)
    assert again.index.equals(first.index)
    assert not (again.folder / "work").exists()
    write_sites(again, out, config, 2)  # raises where the data is another
    assert "4 files of the data are new or changed since the run began, and left out" in caplog.text
    caplog.clear()
    shutil.rmtree(export)
    write_sites(gather([export], out, config, 2), out, config, 2)
    assert "no such file or folder; the run continues with its own copy" in caplog.text
    shutil.rmtree(first.folder)
    with pytest.raises(CacheError, match="is gone, with the images that the run began with"):
        gather([export], out, config, 2)


def test_several_caches_are_joined_once_and_removal_from_one_ends_the_run(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, config = tmp_path / "out", configs.load("smoke", SETTINGS)

    def prepared(name: str, some: list[Path]) -> Path:
        return prepare(some, tmp_path / name, size=32, workers=0, progress=False).folder

    caches = [prepared("a", files[:6]), prepared("b", files[6:12])]
    first = gather(caches, out, config, 2)
    begin(out)
    prepared("b", files[12:14])
    assert gather(caches, out, config, 2).index.equals(first.index)
    assert "2 images are new in the data since the run began" in caplog.text
    remove(caches[0], images=[first.index["image"][0]])
    with pytest.raises(CacheError, match=r"1 of the 12 images of .* were removed from their caches"):
        gather(caches, out, config, 2)


def test_a_start_that_came_to_nothing_binds_the_next_one_to_nothing_it_need_not(
    files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32), dtype=np.uint8)
    cache = make_cache(tmp_path / "cache", images, {}).folder

    def start(data: list[Path], clients: int, *more: str) -> int:
        config = configs.load("smoke", [*SETTINGS, *more])
        agree(out, config, clients, data)
        return len(gather(data, out, config, clients))

    drawn = start([], 8)
    assert start([], 2, "sim.phantoms=12") < drawn  # fewer sites, fewer images: drawn anew
    assert len(list((out / "phantoms").glob("site-*"))) == 2
    assert start([cache], 2) == 8
    assert start([cache], 4) == 8
    assert start(files[:5], 2) == 5
    with pytest.raises(LedgerError, match="was prepared from other --data; delete it"):
        start([cache], 2)
    assert len(open_cache(out / "cache")) == 5
    shutil.rmtree(out / "cache")  # as it was told
    assert start([cache], 2) == 8


def test_paths_with_an_equals_sign_are_told_from_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ward=3").mkdir()
    typed = ["run.seed=1", "ward=3", "/data/site=2/cache", "nih:a=b", "./x=y", "plain", "rounds=3"]
    settings, paths = sorted_out(typed)
    assert settings == ["run.seed=1", "rounds=3"]
    assert [str(path) for path in paths] == ["ward=3", "/data/site=2/cache", "nih:a=b", "x=y", "plain"]


def test_what_prepare_found_is_on_the_terminal_and_without_small_counts_in_report_and_card(
    files: list[Path], tmp_path: Path
) -> None:
    export, out, config = tmp_path / "export", tmp_path / "out", configs.load("smoke", SETTINGS)
    export.mkdir()
    for file in files[:8]:
        shutil.copy2(file, export)
        (export / f"DOE^JANE {file.name}").write_bytes(file.read_bytes()[:700])
    shutil.copy2(files[0], export / "again.dcm")
    cache = gather([export], out, config, 2)
    assert findings.printed(cache) == ["9 of 17 files are not used (not an image: 8, duplicate: 1)"]
    config.privacy.min_cell = 5
    assert findings.notes(cache, 5) == ["Files that could not be used: not an image: 8, duplicate: <5."]
    config.privacy.min_cell = 1
    write_sites(cache, out, config, 2)
    assert "Files that could not be used: not an image: 8, duplicate: 1." in read_list(out / NOTES)
    seen = view.write(cache, tmp_path / "view")
    assert findings.printed(seen) == findings.printed(cache)
    joined = gather([cache.folder, prepare(files[9:12], tmp_path / "b", size=32, workers=0).folder],
                    tmp_path / "joined", config, 2)  # fmt: skip
    assert findings.printed(joined)[0].startswith("9 of 20 files are not used")
    doubted = make_cache(
        tmp_path / "c", np.zeros((3, 8, 8), np.uint8), {"warnings": ["mirrored?; dark", "", "dark"]}
    )
    assert findings.printed(doubted) == ["of 3 images, with a warning: dark: 2, mirrored?: 1"]
