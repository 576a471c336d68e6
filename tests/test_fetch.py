"""Pulling a release over networks and from servers that fail, and what is refused: nothing half is in the cache."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from releases import Site, a_run, encoder, key_files, served

import sscxr
from sscxr import cli, download, fetch, release, signing
from sscxr.download import FetchError, Server
from sscxr.errors import SscxrError
from sscxr.signing import SigningError

CHUNK = 1 << 14  # what is written to the disk at once
FAR = 20 * CHUNK


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    key = signing.read_private(key_files(folder)[0])
    return release.publish(a_run(folder / "run"), folder / "out", version="1.0", key=key)


@pytest.fixture
def site(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("SSCXR_CACHE", str(tmp_path / "cache"))
    shutil.copytree(published, tmp_path / "site")
    with served(tmp_path / "site") as site:
        yield site


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(cache: Path) -> list[str]:
    """What the cache holds as whole."""
    return sorted(path.name for path in cache.glob("encoders/*"))


def assert_same(folder: Path, origin: Path) -> None:
    names = sorted(path.name for path in origin.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (origin / name).read_bytes()


def break_off(site: Site) -> None:
    """A pull that gets `FAR` bytes of the weights and then none."""
    site.cuts = [FAR] + [0] * 20
    with pytest.raises(FetchError, match=f"broken off after {FAR} bytes .* the same command goes on"):
        fetch.pull(site.url)
    site.cuts = []
    site.asked.clear()


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


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


def test_a_cut_connection_is_gone_on_with(site: Site) -> None:
    site.cuts = [6 * CHUNK, 1, 0, 20 * CHUNK]
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [0, 6 * CHUNK, 6 * CHUNK, 6 * CHUNK, 26 * CHUNK]


def test_a_server_that_ignores_ranges_sends_all_again(site: Site) -> None:
    site.ranges, site.cuts = False, [6 * CHUNK, 12 * CHUNK]
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [0, 6 * CHUNK, 12 * CHUNK]


@pytest.mark.parametrize("shift", [-7, 7])
def test_a_server_that_sends_another_range(site: Site, shift: int) -> None:
    site.shift, site.cuts = shift, [6 * CHUNK]
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [0, 6 * CHUNK, 0]


def test_a_server_that_fails_for_a_while(site: Site) -> None:
    site.statuses = [503, 500, 200, 429, 404]
    assert sorted(path.name for path in fetch.pull(site.url).iterdir()) == sorted(
        [*release.FILES, signing.SUMS]
    )
    site.statuses = [200, 200]
    assert_same(fetch.pull(site.url), site.folder)  # the signature came later


def test_an_error_page_in_the_middle_keeps_what_is_there(site: Site) -> None:
    size = weights_size(site)
    break_off(site)
    site.statuses = [200, 200, 503]
    told: list[tuple[str, int, int | None]] = []
    assert_same(fetch.pull(site.url, shown=lambda *progress: told.append(progress)), site.folder)
    assert site.starts() == [FAR, FAR]
    assert {total for name, _, total in told if name == release.WEIGHTS} == {size}


def test_a_release_that_changed_in_between_starts_anew(site: Site, tmp_path: Path, cache: Path) -> None:
    break_off(site)
    shutil.rmtree(site.folder)
    release.publish(a_run(tmp_path / "another", seed=5), site.folder)
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [0]
    assert len(entries(cache)) == 1


def test_what_was_fetched_and_is_wrong_starts_over_once(site: Site, cache: Path) -> None:
    break_off(site)
    part = next(cache.glob(f"partial/*/{release.WEIGHTS}"))
    spoil(part)
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [FAR, 0]


def test_a_part_that_is_longer_than_the_file(site: Site, cache: Path) -> None:
    break_off(site)
    part = next(cache.glob(f"partial/*/{release.WEIGHTS}"))
    part.write_bytes((site.folder / release.WEIGHTS).read_bytes() + b"x")
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [weights_size(site) + 1, 0]


def weights_size(site: Site) -> int:
    return (site.folder / release.WEIGHTS).stat().st_size


@pytest.mark.parametrize("name", release.FILES)
def test_one_wrong_byte_is_refused(site: Site, cache: Path, name: str) -> None:
    spoil(site.folder / name)
    with pytest.raises(FetchError, match=f"{name} .* damaged or altered; refused") as error:
        fetch.pull(site.url)
    assert "\n" not in str(error.value)
    assert entries(cache) == []
    assert not list(cache.glob(f"partial/*/{name}"))


def test_a_wrong_byte_in_sums_or_signature_is_refused(site: Site, published: Path, cache: Path) -> None:
    key = signing.read_public(published.parent / "release.pub")
    for name in (signing.SIGNATURE, signing.SUMS):
        spoil(site.folder / name)
        with pytest.raises(SscxrError):
            fetch.pull(site.url, key=key)
        shutil.copyfile(published / name, site.folder / name)
    assert site.starts() == []  # before anything else is asked for
    assert_same(fetch.pull(site.url, key=key), published)


def test_a_signature_is_wanted_where_a_key_is_given(site: Site, published: Path, tmp_path: Path) -> None:
    key = signing.read_public(published.parent / "release.pub")
    other = signing.read_public(key_files(tmp_path, "other")[1])
    with pytest.raises(SigningError, match="not this key's"):
        fetch.pull(site.url, key=other)
    fetch.pull(site.url)  # and it is in the cache now
    (site.folder / signing.SIGNATURE).unlink()
    for source in (site.url, site.folder):
        with pytest.raises(SigningError, match="not signed"):
            fetch.pull(source, key=key)
        with pytest.raises(SigningError, match="not signed"):
            sscxr.load_encoder(source, key=published.parent / "release.pub")


def test_a_path_that_leads_out_is_refused(site: Site, cache: Path) -> None:
    sums = (site.folder / signing.SUMS).read_text()
    (site.folder / signing.SUMS).write_text(sums.replace("README.md", "../../../README.md"))
    with pytest.raises(SigningError, match="no file of a release"):
        fetch.pull(site.url)
    assert not cache.exists()


def test_a_pickle_is_refused_though_its_sum_is_right(site: Site, cache: Path) -> None:
    torch.save(encoder().state_dict(), site.folder / release.WEIGHTS)
    (site.folder / signing.SUMS).write_bytes(signing.sums_of(site.folder, release.FILES))
    with pytest.raises(release.ReleaseError, match="no safetensors file"):
        fetch.pull(site.url)
    assert entries(cache) == []


def test_more_bytes_than_allowed_are_refused(site: Site, cache: Path) -> None:
    for source in (site.url, site.folder):
        with pytest.raises(FetchError, match="more than the 100,000 bytes"):
            fetch.pull(source, most_bytes=100_000)
    (site.folder / release.CARD).write_bytes(bytes(1_000_001))
    with pytest.raises(FetchError, match=r"README\.md has more than the 1,000,000 bytes"):
        fetch.pull(site.url)
    assert entries(cache) == []
    assert not [path for path in cache.glob("partial/*/*") if path.stat().st_size > 4_000_000]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("file:///etc/", "from http to file, which is refused"),
        ("ftp://127.0.0.1/", "from http to ftp, which is refused"),
        ("{url}/", "redirected more than 5 times"),
        ("http://[", "redirected to an address that cannot be"),
    ],
)
def test_redirects_that_are_refused(site: Site, target: str, says: str) -> None:
    site.redirect = target.format(url=site.url)
    with pytest.raises(FetchError, match=says):
        fetch.pull(site.url)


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "many"])
def test_a_length_that_is_no_number_is_unknown(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    opened = Server._open

    def told(server: Server, name: str, start: int) -> requests.Response:
        response = opened(server, name, start)
        response.headers["Content-Length"] = length
        return response

    monkeypatch.setattr(Server, "_open", told)
    Server(site.url).fetch(tmp_path / release.CONFIG, 10**6, lambda name, done, total: None)
    assert (tmp_path / release.CONFIG).read_bytes() == (site.folder / release.CONFIG).read_bytes()


def test_a_redirect_to_another_server_is_followed(site: Site, published: Path) -> None:
    with served(published) as second:
        site.redirect = second.url + "/"
        second.cuts = [6 * CHUNK]
        assert_same(fetch.pull(site.url), published)
        assert second.starts() == [0, 6 * CHUNK]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("ftp://host/x", "no http or https address"),
        ("file:///etc", "no http or https address"),
        ("https://", "no http or https address"),
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


def test_a_page_for_what_is_not_there_is_no_signature(site: Site, published: Path) -> None:
    (site.folder / signing.SIGNATURE).write_text("<html>200, but no such page</html>" * 5)
    assert not (fetch.pull(site.url) / signing.SIGNATURE).exists()
    with pytest.raises(SigningError, match="not signed"):
        fetch.pull(site.url, key=signing.read_public(published.parent / "release.pub"))


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


def test_load_encoder_takes_an_address_a_release_and_a_runs_folder(site: Site, published: Path) -> None:
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    run = published.parent / "run" / "encoder"
    with torch.no_grad():
        features = [sscxr.load_encoder(source)(images) for source in (site.url, str(published), run)]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


def test_import_is_light_and_timm_follows() -> None:
    code = (
        "import sys, sscxr; assert 'torch' not in sys.modules and 'requests' not in sys.modules; import timm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    assert "no --key" in run("encoder", "pull", site.url)[2]
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


@pytest.mark.slow
def test_a_pull_that_was_killed_goes_on(site: Site, cache: Path) -> None:
    site.pause = 0.05
    code = "import sys; from sscxr import fetch; fetch.pull(sys.argv[1])"
    puller = subprocess.Popen([sys.executable, "-c", code, site.url])
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(
        part.stat().st_size > 200_000 for part in cache.glob(f"partial/*/{release.WEIGHTS}")
    ):
        time.sleep(0.01)
    puller.send_signal(signal.SIGKILL)
    puller.wait()
    assert entries(cache) == []
    there = next(cache.glob(f"partial/*/{release.WEIGHTS}")).stat().st_size
    assert 200_000 < there < weights_size(site)
    site.pause = 0
    site.asked.clear()
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [there]


def test_two_pulls_at_once_fetch_once(site: Site) -> None:
    site.pause = 0.005
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: fetch.pull(site.url), range(3)))
    assert len(folders) == 1
    assert site.starts() == [0]
