"""The data of a run: gathered when it begins, and from then on independent of changes to its sources.

`OUT/cache` is a cache prepared from files or phantoms, several caches joined, or a view of a single cache.
"""

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sim import asked
from sscxr.config import Config
from sscxr.data.cache import view
from sscxr.data.cache.assemble import write_copy
from sscxr.data.cache.cache import Cache, CacheError, open_cache
from sscxr.data.cache.tables import unusable
from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import PUBLIC_SALT, count_new, prepare
from sscxr.data.prepare.progress import Display
from sscxr.errors import SscxrError

log = logging.getLogger("sscxr.sim")


def gather(data: Sequence[Path], out: Path, config: Config, clients: int) -> Cache:
    """Return one cache of all data: by default phantoms, else the given caches and everything else prepared.

    For a run that has begun, this is the cache that it began with.

    Raises:
        PrepareError, ManifestError, SourceError, CacheError, PhantomError: one line states what is wrong.
    """
    own = out / "cache"
    caches = [path for path in data if _is_whole(path)]
    others = [path for path in data if path not in caches]
    files = out / ("prepared" if caches else "cache")
    if asked.is_started(out) and (own.exists() or not caches or others):
        return _kept(caches, others, own, files, config)
    if not data:
        others = _draw(out / "phantoms", config, clients)
    if others:
        prepared = prepare(
            others,
            files,
            size=config.data.cache_size,
            salt=PUBLIC_SALT,  # the same patients are set aside whatever the seed
            uncertain=config.sim.uncertain,
            train_on_test=config.sim.train_on_test,
        )
        caches.append(prepared.folder)
    if len(caches) > 1:
        return _joined(caches, own)
    cache = open_cache(caches[0])
    if cache.folder.resolve() == own.resolve() or asked.is_started(out):  # by a version without views
        return cache
    return view.write(cache, own)


def size(data: Sequence[Path], out: Path, config: Config) -> int | None:
    """Return how many images `gather` is going to return, before it reads any; None if that is not known.

    Raises:
        CacheError: a cache cannot be opened.
    """
    if _is_whole(out / "cache"):
        return len(open_cache(out / "cache"))
    if not data:
        return config.sim.phantoms
    if all(map(_is_whole, data)):
        return sum(len(open_cache(path)) for path in data)
    return None


def _is_whole(path: Path) -> bool:
    """Return whether a path is a cache that `prepare` has completed."""
    return (path / "summary.json").is_file()


def _kept(caches: list[Path], others: list[Path], own: Path, files: Path, config: Config) -> Cache:
    """Return the cache that a run began with; log a line if its sources have more by now."""
    if not own.exists():
        raise CacheError(
            f"{own} is gone, with the images that the run began with; give another --out to start a new one"
        )
    cache = open_cache(own)
    joined = "joined" in cache.summary
    try:
        sources = [open_cache(path) for path in (*caches, *([files] if joined and others else ()))]
        there = {image for source in sources for image in source.index["image"]}
        new = len(there - set(cache.index["image"]))
        if others:
            new += count_new(
                others,
                files,
                size=config.data.cache_size,
                uncertain=config.sim.uncertain,
                train_on_test=config.sim.train_on_test,
            )
    except SscxrError as error:
        log.warning("%s; the run continues with its own copy, %s", error, own)
        return cache
    gone = len(set(cache.index["image"]) - there) if joined else 0
    if gone:
        raise CacheError(
            f"{gone} of the {len(cache)} images of {own} were removed from their caches since; the run cannot "
            "continue: give another --out to start a new one"
        )
    if new:
        what = "files of the data are new or changed" if others else "images are new in the data"
        log.warning("%d %s since the run began, and left out; the next run uses them", new, what)
    return cache


def _draw(folder: Path, config: Config, sites: int) -> list[Path]:
    images, test = config.sim.phantoms, config.sim.test_phantoms
    with Display(shown=True).counting(0, images, "drawing phantoms", "images") as counter:
        return phantom.write(
            folder, images=images, sites=sites, seed=config.run.seed, test=test, on_image=counter.step
        )


def _joined(folders: Sequence[Path], out: Path) -> Cache:
    """Join caches of one size and without common images: patients cannot be matched across salts."""
    caches = [open_cache(folder) for folder in folders]
    _check_apart(caches)
    sizes = {cache.size for cache in caches}
    if len(sizes) > 1:
        raise CacheError(
            f"the caches have {sorted(sizes)} px a side; prepare them with one --size to join them"
        )
    index = pd.concat([cache.index for cache in caches], ignore_index=True)
    sources = list(dict.fromkeys(s for cache in caches for s in cache.summary.get("sources", [])))
    summary: dict[str, Any] = {"format_version": caches[0].summary["format_version"], "sources": sources}
    summary["images"] = sum(len(cache) for cache in caches)
    lost = sum((Counter(unusable(cache)) for cache in caches), Counter())
    summary |= {"joined": len(caches), "unusable": dict(lost.most_common())}
    masks = None
    if any(cache.masks is not None for cache in caches):
        masks = itertools.chain(*([None] * len(c) if c.masks is None else c.masks for c in caches))
    images = itertools.chain(*(cache.images for cache in caches))
    return write_copy(out, index, summary, caches[0].size, images, masks)


def _check_apart(caches: Sequence[Cache]) -> None:
    seen: set[bytes] = set()
    for cache in caches:
        own = {hashlib.sha256(image.tobytes()).digest() for image in cache.images}
        if seen & own:
            raise CacheError(
                f"{len(seen & own)} images of {cache.folder} are in another of the caches too, and patients cannot "
                "be matched across caches; prepare their sources into one cache"
            )
        seen |= own
