"""Writes the files of a cache from its tables and pixels, and removes images from it."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sscxr import printable
from sscxr.data.cache import columns, sheet, store
from sscxr.data.cache.cache import Cache, CacheError, mapped, open_cache, read_index
from sscxr.data.cache.journal import Journal
from sscxr.data.cache.tables import REMOVED, Tables, load, save
from sscxr.data.pixels.facts import normal_id
from sscxr.files import whole_folder

if TYPE_CHECKING:
    import pandas as pd

Bytes = npt.NDArray[np.uint8]
Pick = int | str  # a row of the cache as it is, or a key of the journal


def write_tables(folder: Path, tables: Tables, size: int) -> None:
    """Replace the tables alone, without the images."""
    save(store.begin(folder), tables, size, with_images=(folder / "images.npy").exists())
    store.commit(folder)


def write_all(
    folder: Path, tables: Tables, size: int, picks: Sequence[Pick], journal: Journal | None
) -> None:
    """Replace the whole cache atomically.

    Args:
        folder: the cache.
        tables: the new tables; a row for every pick.
        size: pixels a side.
        picks: where the pixels of every row come from.
        journal: needed if any pick is a key.
    """
    fresh = store.begin(folder)
    save(fresh, tables, size)
    store.write_images(fresh / "images.npy", len(picks), size, _pixels(folder, picks, journal, masks=False))
    with_masks = any(row["has_mask"] == "1" for row in tables.rows)
    if with_masks:
        store.write_images(fresh / "masks.npy", len(picks), size, _pixels(folder, picks, journal, masks=True))
    images = mapped(fresh / "images.npy")
    masks = mapped(fresh / "masks.npy") if with_masks else None
    sheet.draw(images, [row["view"] for row in tables.rows], masks).save(fresh / "sheet.png")
    store.commit(folder, delete=() if with_masks else ("masks.npy",))


def write_copy(
    folder: Path,
    index: "pd.DataFrame",
    summary: Mapping[str, Any],
    size: int,
    images: Iterable[Bytes],
    masks: Iterable[Bytes | None] | None,
) -> Cache:
    """Write rows of other caches into a new folder, readable by its owner alone, and open it as a cache.

    Args:
        size: pixels a side.
        images, masks: uint8 [S, S] each, in the order of the index; a row's mask may be None, and so may all.
    """
    with whole_folder(folder, 0o700) as fresh:
        store.write_images(fresh / "images.npy", len(index), size, images)
        if masks is not None:
            store.write_images(fresh / "masks.npy", len(index), size, masks)
        (fresh / columns.INDEX).write_text(printable.frame(index, index=False), encoding="utf-8")
        columns.write(fresh, read_index(fresh))
        (fresh / "summary.json").write_text(json.dumps(summary, indent=1))
    return open_cache(folder)


def _pixels(
    folder: Path, picks: Sequence[Pick], journal: Journal | None, *, masks: bool
) -> Iterator[Bytes | None]:
    file = folder / ("masks.npy" if masks else "images.npy")
    old = mapped(file) if file.exists() else None
    for pick in picks:
        if isinstance(pick, int):
            yield None if old is None else old[pick]
        else:
            assert journal is not None, "picks from a journal come with the journal"
            yield journal.pixels(journal.entries[pick])[masks]


def remove(
    folder: str | Path,
    *,
    patients: Sequence[str] = (),
    groups: Sequence[str] = (),
    images: Sequence[str] = (),
) -> int:
    """Remove images from a cache, for example on a patient's request; they do not return unless asked for.

    Args:
        folder: the cache.
        patients: identifiers as the export or the manifest writes them.
        groups: patient groups by their hash in the index.
        images: images by their hash in the index.

    Returns:
        How many images were removed.

    Raises:
        CacheError: the folder is not a cache, or nothing in it matches; nothing is removed then.
    """
    folder = Path(folder)
    if not store.is_cache(folder):
        raise CacheError(f"{folder} is not a cache")
    secret = store.create(folder, None)
    with store.writing(folder):
        tables = load(folder)
        asked = {name for patient in patients for name in secret.patient(patient.strip())}
        leaving = _leaving(tables, asked, set(groups), set(images))
        if not leaving:
            raise CacheError(
                f"no image in {folder} matches and nothing was removed; "
                + (_as_public(tables, secret, patients) or "give an id exactly as the export writes it")
            )
        size = int(mapped(folder / "images.npy").shape[1])
        _forget(tables, leaving, asked, whole_groups=bool(groups))
        picks = [number for number, row in enumerate(tables.rows) if row["image"] not in leaving]
        tables.rows = [tables.rows[number] for number in picks]
        shutil.rmtree(folder / "work", ignore_errors=True)  # it may hold the same images
        write_all(folder, tables, size, picks, None)
    return len(leaving)


def _as_public(tables: Tables, secret: store.Secret, patients: Sequence[str]) -> str:
    """Return how to name a patient of a public corpus, if one of these ids is such a patient's; else empty."""
    for patient in patients:
        for corpus in tables.sources:
            name = f"{corpus}:{normal_id(patient)}"
            if _leaving(tables, set(secret.patient(name)), set(), set()):
                return f"for the patient of the corpus {corpus} give --patient {name}"
    return ""


def _leaving(tables: Tables, asked: set[str], groups: set[str], images: set[str]) -> set[str]:
    """Return the images to remove; a patient's are all images in any of the patient's files."""
    theirs = {
        entry["image"]
        for entry in tables.ledger.values()
        if entry.get("image") and not asked.isdisjoint({entry.get("patient", ""), *entry["links"]})
    }
    return {
        row["image"]
        for row in tables.rows
        if row["image"] in theirs or row["group"] in groups or row["image"] in images
    }


def _forget(tables: Tables, leaving: set[str], asked: set[str], *, whole_groups: bool) -> None:
    """Record the removal, so that the next export does not bring the images back."""
    tables.removed |= leaving | asked
    for entry in tables.ledger.values():
        if entry.get("image") in leaving:
            entry["reason"] = REMOVED
            if whole_groups:
                tables.removed |= set(entry["links"])
