"""A signed release, and a server of it that a test may spoil."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from releases import Site, a_run, key_files, served

from sscxr.release import download, release, signing


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release that nobody changes; beside it its keys, and the run that it was made of."""
    folder = tmp_path_factory.mktemp("published")
    key = signing.read_private(key_files(folder)[0])
    return release.publish(a_run(folder / "run"), folder / "out", version="1.0", key=key)


@pytest.fixture
def site(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of a copy of it; pulls go into `cache` and pause for nobody."""
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setenv("SSCXR_CACHE", str(tmp_path / "cache"))
    shutil.copytree(published, tmp_path / "site")
    with served(tmp_path / "site") as site:
        yield site


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
