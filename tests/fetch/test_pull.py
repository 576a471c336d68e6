"""Pulling a release: whole, once, from whatever names one; the command says it in one line."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pulls import assert_same, entries, spoil
from releases import Site

import sscxr
from sscxr.commands import cli
from sscxr.release import download, fetch, release
from sscxr.release.download import FetchError


def test_a_pull_is_whole_and_the_second_asks_for_no_weights(site: Site, cache: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    folder = fetch.pull(site.url + "/", shown=lambda *progress: told.append(progress))
    assert_same(folder, site.folder)
    assert folder == cache / "encoders" / folder.name
    assert not [path for path in cache.glob("partial/*") if path.is_dir()]
    size = (folder / release.WEIGHTS).stat().st_size
    assert (release.WEIGHTS, size, size) in told
    assert fetch.pull(site.url) == folder
    assert site.starts() == [0]


def test_a_folder_is_pulled_likewise(site: Site, cache: Path) -> None:
    assert fetch.pull(site.folder) == fetch.pull(site.url)
    assert site.starts() == []
    spoil(site.folder / release.WEIGHTS)
    shutil.rmtree(cache)
    with pytest.raises(FetchError, match=r"model\.safetensors .* damaged or altered"):
        fetch.pull(site.folder)
    assert entries(cache) == []


def test_a_damaged_entry_of_the_cache_is_fetched_anew(site: Site) -> None:
    folder = fetch.pull(site.url)
    spoil(folder / release.WEIGHTS)
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [0, 0]


def test_old_remains_are_deleted(site: Site, cache: Path) -> None:
    old, young = cache / "partial" / "old", cache / "partial" / "young"
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch.pull(site.url)
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("ftp://host/x", "http or https address"),
        ("file:///etc", "http or https address"),
        ("https://", "http or https address"),
        ("https://[1/x", "cannot be"),
        ("https://host/x?key=1", "without '[?]'"),
        ("http://127.0.0.1:1/x", "refused"),
        ("http://127.0.0.1:99999/x", "[Pp]ort"),
        ("nowhere", "no folder nowhere"),
        (".", "no SHA256SUMS"),
    ],
)
def test_addresses_that_cannot_be(
    source: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with pytest.raises(FetchError, match=says) as error:
        fetch.pull(source, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_a_password_is_not_told(site: Site) -> None:
    site.statuses = [404]
    with pytest.raises(FetchError) as error:
        fetch.pull(site.url.replace("://", "://me:secret@"))
    assert "secret" not in str(error.value)
    assert site.url.removeprefix("http://") in str(error.value)


def test_load_encoder_takes_an_address_a_release_and_a_runs_folder(site: Site, published: Path) -> None:
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    run = published.parent / "run" / "encoder"
    with torch.no_grad():
        features = [sscxr.load_encoder(source)(images) for source in (site.url, str(published), run)]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


@pytest.mark.slow
def test_the_command_says_it_in_one_line(
    site: Site,
    published: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sscxr", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    key = published.parent / "release.pub"
    private = published.parent / "release.key"
    made = tmp_path / "made"
    code, out, err = run(
        "release", published.parent / "run", "--to", made, "--version", "1.0", "--key", private
    )
    assert (code, out, err) == (0, f"{made}: version 1.0, signed\n", "")
    assert_same(made, published)
    code, out, err = run("encoder", "pull", site.url, "--key", key)
    assert (code, err) == (0, "")
    assert_same(Path(out.strip()), site.folder)
    assert "without --key" in run("encoder", "pull", site.url)[2]
    code, out, _ = run("encoder", "info", site.url, "--key", key)
    assert code == 0
    assert "this key's" in out
    code, out, _ = run("encoder", "info", published, "--json")
    assert '"version": "1.0"' in out
    shutil.rmtree(tmp_path / "cache")
    spoil(site.folder / release.WEIGHTS)
    code, out, err = run("encoder", "pull", site.url, "--key", key)
    assert (code, out) == (1, "")
    assert err.startswith("error: model.safetensors of ")
    assert err.count("\n") == 1


def test_two_pulls_at_once_fetch_once(site: Site) -> None:
    site.pause = 0.005
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: fetch.pull(site.url), range(3)))
    assert len(folders) == 1
    assert site.starts() == [0]
