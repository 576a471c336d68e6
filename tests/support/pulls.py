"""Pulls that break off, releases that are spoilt, and what of both is in the cache."""

from pathlib import Path

import pytest
from releases import Site

from sscxr.release import fetch, release
from sscxr.release.download import FetchError

CHUNK = 1 << 14  # what is written to the disk at once
FAR = 20 * CHUNK


def entries(cache: Path) -> list[str]:
    """What the cache holds as whole."""
    return sorted(path.name for path in cache.glob("encoders/*"))


def assert_same(folder: Path, origin: Path) -> None:
    """The same files, byte for byte."""
    names = sorted(path.name for path in origin.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (origin / name).read_bytes()


def break_off(site: Site) -> None:
    """A pull that gets `FAR` bytes of the weights and then none."""
    site.cuts = [FAR] + [0] * 20
    with pytest.raises(FetchError, match=f"broken off after {FAR} bytes .* the same command resumes it"):
        fetch.pull(site.url)
    site.cuts = []
    site.asked.clear()


def spoil(file: Path) -> None:
    """Flip a bit near the end of a file."""
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def weights_size(site: Site) -> int:
    return (site.folder / release.WEIGHTS).stat().st_size
