"""A cache that is damaged, or made by somebody else to do harm, is one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caches import make_cache

from sscxr.data.cache.cache import CacheError, open_cache, read_index

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_cache(tmp_path / "cache", IMAGES, {"label:edema": [1, 0, np.nan, 1, 0, 1]})
    return tmp_path / "cache"


@pytest.mark.parametrize("value", ["0.5", "2", "-1", "inf"])
def test_a_label_is_present_absent_or_unknown(value: str, folder: Path) -> None:
    index = pd.read_csv(folder / "index.csv", dtype=str, keep_default_na=False)
    index.loc[2, "label:edema"] = value
    index.to_csv(folder / "index.csv", index=False)
    with pytest.raises(CacheError, match=rf"label 'edema' has {float(value):g}, .*prepare it again"):
        open_cache(folder).label("edema")


@pytest.mark.parametrize("long", [False, True], ids=["the file", "its table"])
def test_want_of_memory_is_no_damage(long: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading the file fails, and where pandas' parser does."""

    def fail(*_: object, **__: object) -> None:
        if long:
            raise pd.errors.ParserError("Error tokenizing data. C error: out of memory")
        raise MemoryError

    monkeypatch.setattr(*((pd, "read_csv", fail) if long else (Path, "read_bytes", fail)))
    with pytest.raises(MemoryError):
        read_index(folder)


def test_labels_as_they_should_be_are_read(folder: Path) -> None:
    np.testing.assert_array_equal(open_cache(folder).label("edema"), [1, 0, np.nan, 1, 0, 1])


@pytest.mark.parametrize("images", [IMAGES[:, :, :10], IMAGES[:, 0], IMAGES.astype(np.float32)])
def test_images_that_are_no_squares_of_8_bits(images: np.ndarray, folder: Path) -> None:
    np.save(folder / "images.npy", images)
    with pytest.raises(CacheError, match=r"images of .* not uint8 \[N, S, S\]"):
        open_cache(folder)


@pytest.mark.parametrize("summary", ["[" * 100_000, json.dumps([1]), "\ud800"])
def test_a_summary_that_is_none(summary: str, folder: Path) -> None:
    (folder / "summary.json").write_bytes(summary.encode("utf-8", "surrogatepass"))
    with pytest.raises(CacheError):
        open_cache(folder)
