"""What is refused: wrong bytes, wrong or no signature, pickles, paths that lead out, too much, odd redirects."""

import shutil
from pathlib import Path

import pytest
import torch
from pulls import assert_same, entries, spoil
from releases import Site, encoder, key_files

import sscxr
from sscxr.errors import SscxrError
from sscxr.release import fetch, release, signing
from sscxr.release.download import FetchError
from sscxr.release.signing import SigningError


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


def test_a_page_for_what_is_not_there_is_no_signature(site: Site, published: Path) -> None:
    (site.folder / signing.SIGNATURE).write_text("<html>200, but no such page</html>" * 5)
    assert not (fetch.pull(site.url) / signing.SIGNATURE).exists()
    with pytest.raises(SigningError, match="not signed"):
        fetch.pull(site.url, key=signing.read_public(published.parent / "release.pub"))


def test_a_path_that_leads_out_is_refused(site: Site, cache: Path) -> None:
    sums = (site.folder / signing.SUMS).read_text()
    (site.folder / signing.SUMS).write_text(sums.replace("README.md", "../../../README.md"))
    with pytest.raises(SigningError, match=r"README\.md"):
        fetch.pull(site.url)
    assert not cache.exists()


def test_a_pickle_is_refused_though_its_sum_is_right(site: Site, cache: Path) -> None:
    torch.save(encoder().state_dict(), site.folder / release.WEIGHTS)
    (site.folder / signing.SUMS).write_bytes(signing.sums_of(site.folder, release.FILES))
    with pytest.raises(release.ReleaseError, match="safetensors file"):
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
        ("http://127.0.0.1:9/", "an address inside this network, which is refused"),
        ("http://localhost:9/", "an address inside this network, which is refused"),
        ("http://169.254.169.254/latest/", "an address inside this network, which is refused"),
        ("http://[::ffff:10.0.0.1]/", "an address inside this network, which is refused"),
        ("http://[fd00::1]/", "an address inside this network, which is refused"),
        ("http://[", "redirected to an address that cannot be"),
    ],
)
def test_redirects_that_are_refused(site: Site, target: str, says: str) -> None:
    site.redirect = target.format(url=site.url)
    with pytest.raises(FetchError, match=says):
        fetch.pull(site.url)
