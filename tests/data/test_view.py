"""An open cache, and a view of one, while `prepare` adds to the cache and images are removed from it."""

import threading
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache

from client.settings import SiteSettings
from client.site import Site
from sscxr.data.cache import store, view
from sscxr.data.cache.assemble import remove
from sscxr.data.cache.cache import Cache, CacheError, open_cache
from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import count_new, prepare


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two phantom hospitals, 12 images each."""
    return phantom.write(tmp_path_factory.mktemp("phantoms"), images=24, sites=2, seed=0, size=64)


def grown(manifest: Path, folder: Path) -> Cache:
    return prepare([manifest], folder, size=32, workers=0, progress=False)


def phantom_files(manifest: Path) -> list[Path]:
    return list((manifest.parent / "images").glob("*.dcm"))


def state(cache: Cache) -> tuple[bytes, str, list[str]]:
    return cache.images.tobytes(), cache.index.to_csv(), [str(cell) for cell in cache.column("split")]


def test_an_open_cache_is_of_one_version_and_a_view_outlasts_the_process(
    manifests: list[Path], tmp_path: Path
) -> None:
    first = grown(manifests[0], tmp_path / "cache")
    site = Site(SiteSettings("anna", str(tmp_path / "cache"), str(tmp_path / "state")))
    before, count = state(open_cache(tmp_path / "cache")), len(first)
    seen = view.write(first, tmp_path / "view")
    assert state(seen) == before
    assert (tmp_path / "view").stat().st_mode & 0o077 == 0
    second = grown(manifests[1], tmp_path / "cache")
    assert len(second) > count
    # What was open, with an index that nobody had parsed yet, and what is opened anew through the view.
    assert (len(site.cache), len(site.cache.index), len(site.cache.column("view"))) == (count, count, count)
    assert state(first) == state(seen) == state(open_cache(tmp_path / "view")) == before
    assert len(Site(site.settings).cache) == len(second)
    viewed = SiteSettings("anna", str(tmp_path / "view"), str(tmp_path / "state"))
    assert state(Site(viewed).cache) == before
    remove(tmp_path / "cache", images=[first.index["image"][3]])
    with pytest.raises(CacheError, match=f"1 of the {count} images .* were removed "):
        open_cache(tmp_path / "view")
    with pytest.raises(Exception, match="were removed"):
        Site(viewed)


def test_labels_and_splits_of_a_view_are_those_of_its_beginning(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)
    seen = view.write(make_cache(tmp_path / "cache", images, {"label:edema": 1.0}), tmp_path / "view")
    more = np.concatenate([images, images[:2]])
    make_cache(tmp_path / "cache", more, {"label:edema": 0.0, "split": 0.0, "has_mask": 1})
    np.save(tmp_path / "cache" / "masks.npy", more)
    again = open_cache(tmp_path / "view")
    assert again.label("edema").tolist() == seen.label("edema").tolist() == [1, 1, 1, 1]
    assert again.held_out(0.5).sum() == 0
    assert again.masks is None


def test_a_cache_opened_within_a_commit_is_waited_for(
    manifests: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that comes while new files are put in their places gets the new version, not an error."""
    count = len(grown(manifests[0], tmp_path / "cache"))
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(len(open_cache(tmp_path / "cache"))))
    sync = store.sync

    def slow(path: Path) -> None:
        sync(path)
        if path == tmp_path / "cache" and not found:  # all are moved, the word for it is still there
            reader.start()
            reader.join(0.3)

    monkeypatch.setattr(store, "sync", slow)
    now = len(grown(manifests[1], tmp_path / "cache"))
    reader.join()
    assert found == [now]
    assert now > count


def test_new_files_are_counted_and_not_taken(manifests: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    count = len(grown(manifests[0], cache))
    assert count_new([manifests[0]], cache, size=32) == 0
    assert count_new(manifests, cache, size=32) == len(phantom_files(manifests[1])) > 0
    assert len(open_cache(cache)) == count
