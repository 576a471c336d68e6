"""Checks of the site's images: a sample of the export through the decoder, and the health of the cache.

Large caches are sampled: every check takes seconds, reads through the memory map, and reports its sample size.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from client.doctor.checks import Check, failed, judged, ok, warning
from client.policy import check_rounds
from client.settings import SiteError, SiteSettings
from client.site import Site
from sscxr.config import Config
from sscxr.data.cache.cache import LABEL_PREFIX, LATERAL_VIEWS, Cache
from sscxr.data.rows import Rows
from sscxr.errors import SscxrError
from sscxr.federation import floors, wire

FILES = 20  # files of an export to decode
LOOKED_AT = 512  # images whose posture is checked
COMPARED = 50_000  # images to compare with each other, by one row of pixels first
_LISTED = 20_000  # files of an export that the sample is drawn from

# Shares of the sample above the detector's rate of false alarms (docs/posture.md).
_TURNED_FAILED, _MIRRORED_WARNING = 0.02, 0.05


def files(folder: Path) -> Iterator[Check]:
    """Check how many of a folder's files decode, and why others do not, in the decoder's fixed words."""
    from sscxr.data.pixels.decode import Task
    from sscxr.data.pixels.dicom import MAX_PIXELS
    from sscxr.data.pixels.facts import Refused
    from sscxr.data.prepare import pool

    found = list(islice(_walk(folder), _LISTED))
    sample = [found[place] for place in _evenly(len(found), FILES)]
    if not sample:
        yield failed("files", "the folder has none, or cannot be read", "give the folder of the export")
        return
    tasks = ((number, Task(file, None, "", 256, MAX_PIXELS)) for number, file in enumerate(sample))
    results = [result for _, result in pool.decode(tasks, workers=1)]
    reasons = Counter(result.kind for result in results if isinstance(result, Refused))
    good = len(results) - reasons.total()
    value = f"{good} of a sample of {len(results)} decode"
    if reasons:
        value += "; refused: " + ", ".join(f"{count} {kind}" for kind, count in reasons.most_common())
    advice = "`sscxr prepare` sets such files aside; look at its quarantine.csv before training"
    yield judged("files", value, fails=not good, warns=bool(reasons), advice=advice)


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in sorted(names))


def _evenly(count: int, most: int) -> Rows:
    """Return at most `most` of `count` places, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.arange(0)


def cache(settings: SiteSettings, config: Config) -> Iterator[Check]:
    """Check that the cache opens, is large enough, and has valid content."""
    try:
        site = Site(settings)
        rows = site.usable_rows(config)
    except SscxrError as error:
        yield failed("cache", str(error), "see cache in site.yaml")
        return
    opened = site.cache
    held = opened.held_out(config.data.test_share)
    yield _counts(site, rows, held[rows], config)
    if opened.size < config.data.cache_size:
        advice = f"prepare it again with --size {config.data.cache_size}"
        yield warning(
            "cache size", f"{opened.size} px, the recipe expects {config.data.cache_size} px", advice
        )
    if len(rows):
        yield from splits(opened, held, rows)
        yield from contents(opened, held, rows)
        yield from postures(opened, rows)


def _counts(site: Site, rows: Rows, held: npt.NDArray[np.bool_], config: Config) -> Check:
    opened = site.cache
    training, out = int((~held).sum()), int(held.sum())
    value = f"{training} images to train on, {out} held out, {opened.size} px"
    cell = site.min_cell(config)
    detail = tuple(tables(opened.index.iloc[rows]))
    if waiting := site.waiting(config):
        detail = (f"{waiting} more than runs have had: they wait until they are of {cell} patients", *detail)
    least = max(cell, site.settings.min_images)
    if training < least:
        advice = f"at least {least} are needed (min_cell, min_images); prepare more"
        return Check("cache", "failed", value, advice, detail)
    if out < cell:
        advice = f"fewer than min_cell={cell} held out: this site cannot report a held-out loss"
        return Check("cache", "warning", value, advice, detail)
    return ok("cache", value, detail)


def rounds(settings: SiteSettings, config: Config) -> Iterator[Check]:
    """Check that each of the run's updates mixes enough of the cache's images, within the limits of `site.yaml`."""
    try:
        site = Site(settings)
        rows = site.usable_rows(config)
        images = int((~site.cache.held_out(config.data.test_share)[rows]).sum())
        check_rounds(settings, config, images, 0)
    except SiteError as error:
        yield failed("rounds", str(error), "prepare more images, change site.yaml, or do not take part")
        return
    yield ok("rounds", f"each update mixes at least {floors.least_mixed(config, images)} images")


def tables(index: pd.DataFrame) -> Iterator[str]:
    """Yield counts by view, age band and label, for this terminal alone: nothing is suppressed."""
    for column, name in (("view", "view"), ("age_band", "age")):
        counts = Counter(cell or "unknown" for cell in index[column])
        cells = [cell for cell in wire.COUNT_TABLES[name] if counts[cell]]
        yield f"{name}: " + ", ".join(f"{cell} {counts[cell]}" for cell in cells)
    for column in sorted(name for name in index.columns if name.startswith(LABEL_PREFIX)):
        values = index[column]
        present, unknown = int((values > 0.5).sum()), int(values.isna().sum())
        absent = len(values) - present - unknown
        name = column.removeprefix(LABEL_PREFIX)
        yield f"{name}: {present} present, {absent} absent, {unknown} unknown"


def splits(opened: Cache, held: npt.NDArray[np.bool_], rows: Rows) -> Iterator[Check]:
    """Check that no patient group is both trained on and held out."""
    sides = pd.Series(held[rows]).groupby(opened.index["group"].to_numpy()[rows]).nunique()
    both = int((sides > 1).sum())
    if both:
        yield failed(
            "splits",
            f"{both} patient groups are both trained on and held out",
            "the index was changed by hand, or by another program; prepare the cache again",
        )
    else:
        yield ok("splits", f"{len(sides)} patient groups, none both trained on and held out")


def contents(opened: Cache, held: npt.NDArray[np.bool_], rows: Rows) -> Iterator[Check]:
    """Check that no image is constant, occurs twice, or has a duplicate on the other side of the split."""
    sample = rows[_evenly(len(rows), COMPARED)]
    constant, alike = _compare(opened.images, sample)
    twice = sum(len(same) - 1 for same in alike)
    across = sum(len({bool(held[row]) for row in same}) > 1 for same in alike)
    looked = f"of {len(sample)} images" + (f" (sampled of {len(rows)})" if len(sample) < len(rows) else "")
    again = "prepare the cache again from the export"
    if across:
        value = f"{across} pictures {looked} are both trained on and held out, pixel for pixel"
        yield failed("duplicates", value, again)
    else:
        yield judged("duplicates", f"{twice} {looked}", fails=False, warns=twice > 0, advice=again)
    yield judged("constant", f"{constant} {looked}", fails=False, warns=constant > 0, advice=again)


def _compare(images: npt.NDArray[np.uint8], rows: Rows) -> tuple[int, list[list[int]]]:
    """Return how many images have a single grey level, and the lists of equal images.

    The middle row of each image is read, and the whole image only if that is constant or equal to another's.
    """
    middle = images.shape[1] // 2
    suspects: dict[bytes, list[int]] = {}
    constant = 0
    for row in rows:
        line = images[row, middle]
        if line.min() == line.max() and images[row].min() == images[row].max():
            constant += 1
        else:
            suspects.setdefault(line.tobytes(), []).append(int(row))
    alike: dict[bytes, list[int]] = {}
    for same in suspects.values():
        if len(same) > 1:
            for row in same:
                digest = hashlib.sha256(images[row].tobytes()).digest()
                alike.setdefault(digest, []).append(row)
    return constant, [same for same in alike.values() if len(same) > 1]


def postures(opened: Cache, rows: Rows) -> Iterator[Check]:
    """Check that the detector finds frontal images upright, with bright bone, and mostly unmirrored.

    An image of unknown view may be a lateral: it counts only above the odds that laterals reach.
    """
    from sscxr.data.pixels import posture
    from sscxr.data.pixels.decode import LATERAL_ODDS

    views = opened.index["view"].to_numpy()
    frontal = rows[~np.isin(views[rows], LATERAL_VIEWS)]
    sample = frontal[_evenly(len(frontal), LOOKED_AT)]
    if not len(sample):
        yield ok("posture", "no frontal images")
        return
    turned = inverted = mirrored = wrong = 0
    for row in sample:
        seen, known = posture.look(_content(opened, row)), bool(views[row])
        turns = seen.rotation != 0 and (known or seen.rotation_odds > LATERAL_ODDS)
        inverts = seen.inverted and (known or seen.inversion_odds > LATERAL_ODDS)
        turned, inverted, wrong = turned + turns, inverted + inverts, wrong + (turns or inverts)
        mirrored += seen.mirrored and known
    value = (
        f"{turned} turned, {inverted} inverted, {mirrored} mirrored of {len(sample)} frontal images looked at"
    )
    fails = wrong > _TURNED_FAILED * len(sample)
    warns = wrong > 0 or mirrored > _MIRRORED_WARNING * len(sample)
    advice = "look at the cache's sheet.png; correct the export and prepare it again"
    yield judged("posture", value, fails=fails, warns=warns, advice=advice)


def _content(opened: Cache, row: int) -> npt.NDArray[np.float32]:
    """Return an image without its padding, float32 [H, W] in 0..1."""
    names = ("top", "left", "content_height", "content_width")
    top, left, height, width = (int(opened.index[name].to_numpy()[row]) for name in names)
    image = opened.images[row, top : top + height, left : left + width]
    return (image if image.size else opened.images[row]).astype(np.float32) / np.float32(255)
