"""The index's columns as arrays: the values of the text, or nothing at all."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caches import make_cache

from sscxr.data.cache import columns
from sscxr.data.cache.cache import Cache, open_cache, read_index

INDEX = {
    "view": ["PA", "L", "", "AP", "NA"],
    "split": [0.1, 0.25, 0.12345678, 0.5, 1.0],
    "source": ["a", "b, c", "a", 'd"', "é"],
    "spacing_mm": ["0.143", "", "0.2", "1", ""],
    "label:edema": ["1", "0", "", "", "0"],
    "label:mass": [1, 0, 1, 0, 0],
}


def written(folder: Path) -> Cache:
    make_cache(folder, np.zeros((5, 8, 8), np.uint8), INDEX)
    columns.write(folder, read_index(folder))
    return open_cache(folder)


def test_every_column_is_as_parsed(tmp_path: Path) -> None:
    cache = written(tmp_path / "cache")
    assert cache.columns is not None
    assert cache.columns.names == list(cache.index.columns)
    for name in cache.index.columns:
        found, parsed = cache.column(name), cache.index[name]
        assert (name in cache.columns) == (name not in ("image", "group"))
        assert found.dtype.kind == ("O" if parsed.dtype.kind not in "iuf" else parsed.dtype.kind)
        assert pd.Series(found).equals(pd.Series(parsed.to_numpy())), name


def test_a_cache_is_the_same_with_and_without(tmp_path: Path) -> None:
    fast = written(tmp_path / "cache")
    plain_folder = tmp_path / "plain"
    shutil.copytree(fast.folder, plain_folder)
    (plain_folder / columns.FILE).unlink()
    plain = open_cache(plain_folder)
    assert fast.labels == plain.labels
    for laterals in (False, True):
        assert fast.rows(laterals=laterals).tolist() == plain.rows(laterals=laterals).tolist()
    for share in (0.0, 0.12345678, 0.5, 1.1):
        assert fast.held_out(share).tolist() == plain.held_out(share).tolist()
    for label in fast.labels:
        np.testing.assert_array_equal(fast.label(label), plain.label(label))
        assert fast.label(label).dtype == np.float32


def test_opening_and_sampling_parse_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "cache")
    monkeypatch.setattr(pd, "read_csv", None)
    cache = open_cache(tmp_path / "cache")
    rows = cache.rows()[~cache.held_out(0.2)[cache.rows()]]
    assert rows.tolist() == [3, 4]
    assert cache.images[rows].shape == (2, 8, 8)
    cache.label("edema")


def test_an_index_that_changed_is_parsed(tmp_path: Path) -> None:
    folder = written(tmp_path / "cache").folder
    text = (folder / "index.csv").read_text()
    before = (folder / "index.csv").stat()
    (folder / "index.csv").write_text(text.replace(",PA,", ",AP,"))  # as long as it was
    os.utime(folder / "index.csv", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    cache = open_cache(folder)
    assert cache.columns is None
    assert cache.column("view").tolist() == ["AP", "L", "", "AP", "NA"]


def test_a_copy_of_another_time_is_told_by_its_content(tmp_path: Path) -> None:
    folder = written(tmp_path / "cache").folder
    os.utime(folder / "index.csv", ns=(0, 0))
    assert open_cache(folder).columns is not None


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_file_is_as_none(tmp_path: Path, damage: bytes | None) -> None:
    folder = written(tmp_path / "cache").folder
    file = folder / columns.FILE
    file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    assert open_cache(folder).columns is None
    assert len(open_cache(folder).index) == 5
