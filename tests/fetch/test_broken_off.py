"""Networks and servers that fail: a pull goes on where it was, and nothing half is in the cache."""

import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
import requests
from pulls import CHUNK, FAR, assert_same, break_off, entries, spoil, weights_size
from releases import Site, a_run, served

from sscxr.release import download, fetch, release, signing
from sscxr.release.download import Server


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


def test_a_redirect_to_another_server_is_followed(
    site: Site, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_is_internal", lambda url: False)  # all servers here are
    with served(published) as second:
        site.redirect = second.url + "/"
        second.cuts = [6 * CHUNK]
        assert_same(fetch.pull(site.url), published)
        assert second.starts() == [0, 6 * CHUNK]


@pytest.mark.slow
def test_a_pull_that_was_killed_goes_on(site: Site, cache: Path) -> None:
    site.pause = 0.05
    puller = multiprocessing.get_context("fork").Process(target=fetch.pull, args=(site.url,))
    puller.start()
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(
        part.stat().st_size > 200_000 for part in cache.glob(f"partial/*/{release.WEIGHTS}")
    ):
        time.sleep(0.01)
    puller.kill()
    puller.join()
    assert entries(cache) == []
    there = next(cache.glob(f"partial/*/{release.WEIGHTS}")).stat().st_size
    assert 200_000 < there < weights_size(site)
    site.pause = 0
    site.asked.clear()
    assert_same(fetch.pull(site.url), site.folder)
    assert site.starts() == [there]
