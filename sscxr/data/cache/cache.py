"""The site cache: 8-bit images in one memory-mapped file, and an index. Training reads nothing else.

A cache is a folder:

    images.npy      uint8 [N, S, S], grey, upright, padded to a square, never squashed
    masks.npy       uint8 [N, S, S], if any image has one: 255 lung, 127 ignore, 0 background
    index.csv       one row per image, the columns of `INDEX_COLUMNS`, then one `label:NAME` per label
    index.safetensors  its columns as arrays, to be read without parsing (`sscxr.data.cache.columns`)
    summary.json    format version, size, counts
    quarantine.csv  refused files and the reasons; it alone names files or quotes headers, and never leaves the site
    sheet.png       a contact sheet for visual checks
    salt            the secret of the hashes; it never leaves the site
    ledger.jsonl    every file that was read, by salted hashes, so that it is not read again
    removed.json    images removed on request, by salted hashes, so that they do not return

`sscxr.data.prepare` may write it at any time: an open cache stays as it was when it was opened. A simulation,
which outlasts a process, reads it through a view (written by `sscxr.data.cache.view`): a folder with the index of
one moment and the cache's place. Images removed on request are missing from the view, too.
"""

import io
import json
import mmap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sscxr.data.cache import FORMAT_VERSION as FORMAT_VERSION
from sscxr.data.cache import columns
from sscxr.data.cache.columns import Columns
from sscxr.errors import SscxrError
from sscxr.files import check_readable, is_locked
from sscxr.printable import plain

if TYPE_CHECKING:
    import pandas as pd

# New files before they are moved into place, and the mark that they are complete.
NEXT, COMMIT = "next", "COMMIT"
LABEL_PREFIX = "label:"

# All columns of the index. Labels follow, 1 present, 0 absent, empty unknown.
INDEX_COLUMNS: dict[str, str] = {
    "image": "salted hash of the decoded pixels (16 hex digits)",
    "group": "salted hash of the patient group: patients who share an image are one group",
    "source": "the corpus or hospital as a manifest or --source names it, else local; never a folder's name",
    "view": "PA, AP, AP supine, L, or empty: unknown",
    "sex": "F, M, or empty: unknown",
    "age_band": "0-4, 5-17, 18-39, 40-59, 60-79, 80+, paediatric, adult, or empty: unknown",
    "licence": "of the image, as in its manifest",
    "spacing_mm": "pixel spacing of the original, mm a pixel; empty: unknown",
    "height": "of the original, px, after orientation",
    "width": "of the original, px, after orientation",
    "top": "first row of the image within the padded square, px of the cache",
    "left": "first column of the image within the padded square, px of the cache",
    "content_height": "rows of the image within the padded square, px of the cache",
    "content_width": "columns of the image within the padded square, px of the cache",
    "grey_range": "the source of black and white: window, voi lut, percentiles, full range, 8 bit",
    "has_mask": "1 if masks.npy has this image's mask",
    "split": "the patient group's place in 0..1, drawn with the salt, fixed when first seen; below the test "
    "share: never trained on; less 1, and so below any share, if an image was published as a test image",
    "warnings": "doubts about the image, separated by semicolons",
    "hospital": "the hospital or machine within the source, from a corpus or a manifest; empty: unknown",
    "published": "train, valid, test: the part of a corpus that the image was published in; empty: none",
    "public_id": "the image's name within a public corpus; empty for everything else",
}
TEXT_COLUMNS = (
    *("image", "group", "source", "view", "sex", "age_band", "licence", "grey_range", "warnings"),
    *("hospital", "published", "public_id"),
)
LATER_COLUMNS = ("hospital", "published", "public_id")  # missing from caches of earlier versions
LATERAL_VIEWS = ("L",)
VIEWED = "cache"  # in the summary of a view: the cache's folder
_PATIENCE = 10.0  # seconds to wait for a writer that is moving new files into place


class CacheError(SscxrError):
    """A folder is not a usable cache; one line states what is wrong and what to do."""


@dataclass(frozen=True)
class Cache:
    """An open cache.

    Attributes:
        folder: its folder.
        images: uint8 [N, S, S], memory-mapped, read-only.
        masks: uint8 [N, S, S], memory-mapped, read-only; None if no image has one.
        summary: the content of `summary.json`.
        columns: those columns of the index that need no parsing.
        text: `index.csv`, memory-mapped; like the images, it stays as it was when the cache was opened.
    """

    folder: Path
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8] | None
    summary: dict[str, Any]
    columns: Columns | None
    text: mmap.mmap

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        groups = self.index["group"].nunique()
        return f"Cache({str(self.folder)!r}: {len(self)} images of {groups} patient groups, {self.size} px)"

    @property
    def size(self) -> int:
        """Pixels a side."""
        return int(self.images.shape[1])

    @cached_property
    def index(self) -> "pd.DataFrame":
        """One row per image, in the images' order; parsed on first access."""
        return read_index(self.folder, self.text)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column of the index [N], without parsing if possible; numbers, or text as objects."""
        if self.columns is not None and name in self.columns:
            return self.columns[name]
        return self.index[name].to_numpy()

    @cached_property
    def labels(self) -> list[str]:
        """The label names, without their prefix."""
        prefix = LABEL_PREFIX
        names = self.index.columns if self.columns is None else self.columns.names
        return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

    def label(self, name: str) -> npt.NDArray[np.float32]:
        """Return float32 [N]: 1 present, 0 absent, NaN unknown.

        Raises:
            CacheError: no such label, or a label with other values.
        """
        if name not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise CacheError(f"cache {self.folder} has no label {name!r}; its labels: {known}")
        values = self.column(LABEL_PREFIX + name).astype(np.float32)
        strange = values[~(np.isnan(values) | (values == 0) | (values == 1))]
        if len(strange):
            raise CacheError(
                f"cache {self.folder} is damaged (label {name!r} has {strange[0]:g}, not 1, 0 or "
                "empty); prepare it again"
            )
        return values

    def rows(self, *, laterals: bool = False) -> npt.NDArray[np.int64]:
        """Return the rows that may be used: all, or all but lateral views."""
        if laterals:
            return np.arange(len(self))
        return np.flatnonzero(~np.isin(self.column("view"), LATERAL_VIEWS))

    def held_out(self, test_share: float) -> npt.NDArray[np.bool_]:
        """Return bool [N]: images of the patient groups that are set aside for testing."""
        return self.column("split").astype(np.float64) < test_share


def read_index(folder: Path, text: mmap.mmap | None = None) -> "pd.DataFrame":
    """Parse the index of a cache: text unchanged, numbers as numbers.

    Args:
        folder: the cache's.
        text: its `index.csv`, if already open.

    Raises:
        CacheError: the index cannot be read.
    """
    import pandas as pd  # imported here: a site's message rarely needs it

    words = dict.fromkeys(TEXT_COLUMNS, str)
    try:
        # Python reads the file, since pandas reports any failure, lack of memory included, as a damaged file.
        content = (folder / columns.INDEX).read_bytes() if text is None else text[:]
        index = pd.read_csv(io.BytesIO(content), dtype=words, keep_default_na=False, na_values={})
    except (OSError, ValueError) as error:
        if "out of memory" in str(error) or "read(nbytes)" in str(error):
            raise MemoryError("not enough memory for the index of the cache") from None
        raise CacheError(f"cache {folder} is damaged ({error}); prepare it again") from None
    if b"'" in content:  # rare, and a large index has many cells
        index = index.rename(columns=plain)
        for name in index.columns.intersection(list(TEXT_COLUMNS)):
            index[name] = index[name].map(plain)
    for name in LATER_COLUMNS:
        if name not in index.columns:
            index[name] = ""
    for name in index.columns.difference(list(TEXT_COLUMNS)):
        index[name] = pd.to_numeric(index[name], errors="coerce")
    return index


def open_cache(folder: str | Path) -> Cache:
    """Open a prepared cache, or a view of one, without reading its images.

    All opened files are of one version, and stay so while `prepare` adds to the cache.

    Raises:
        CacheError: the folder is not a cache, has another format version, or its files do not belong together.
    """
    folder, until = Path(folder), monotonic() + _PATIENCE
    check_readable(folder, ("summary.json", columns.INDEX, "images.npy", "masks.npy"))
    while True:
        before = stamps(folder)
        try:
            cache = _open(folder)
            if stamps(folder) == before:
                return cache
        except CacheError:
            moving = stamps(folder) != before or _is_committing(folder)
            if not moving or monotonic() > until:
                raise
        sleep(0.02)


def stamps(folder: Path) -> tuple[object, ...]:
    """Return values that change whenever a cache's files change, without reading the files."""
    found: list[object] = [(folder / NEXT / COMMIT).exists()]
    for name in ("summary.json", "images.npy", "masks.npy", "index.csv"):
        try:
            file = (folder / name).stat()
            found.append((file.st_ino, file.st_size, file.st_mtime_ns))
        except OSError:
            found.append(None)
    try:
        viewed = None if (folder / "images.npy").exists() else _summary(folder).get(VIEWED)
    except CacheError:
        viewed = None
    return (*found, *(stamps(Path(viewed)) if viewed else ()))


def _is_committing(folder: Path) -> bool:
    """Return whether a running process is moving new files into place."""
    try:
        return (folder / NEXT / COMMIT).exists() and is_locked(folder / "lock")
    except OSError:
        return False


def _open(folder: Path) -> Cache:
    if (folder / NEXT / COMMIT).exists():
        raise CacheError(
            f"cache {folder} is being written, or writing was interrupted; `sscxr cache info {folder}` completes it"
        )
    summary = _summary(folder)
    if VIEWED in summary:
        return _through(folder, summary)
    images = mapped(folder / "images.npy")
    masks = mapped(folder / "masks.npy") if (folder / "masks.npy").exists() else None
    return _checked(folder, images, masks, summary)


def _through(folder: Path, summary: dict[str, Any]) -> Cache:
    """Open a view: its rows, with the cache's present pixels and masks; refuse it if images were removed."""
    source, count = open_cache(summary[VIEWED]), int(summary["images"])
    same = source.text[:] == (folder / columns.INDEX).read_bytes()
    then, now = ([], []) if same else (list(table["image"]) for table in (read_index(folder), source.index))
    if now[:count] != then:
        gone = len(set(then) - set(now)) or "some"  # none: they were restored, in other places
        raise CacheError(
            f"{gone} of the {count} images that {folder} began with were removed from cache {source.folder} "
            "since; a run that began with them cannot continue: start a new one"
        )
    masks = source.masks[:count] if source.masks is not None and summary["masks"] else None
    return _checked(folder, source.images[:count], masks, summary)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        raise CacheError(
            f"{folder} is not a finished cache (no summary.json); run `sscxr prepare SRC --out {folder}`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(
            f"{folder}/summary.json is not readable ({error}); prepare the cache again"
        ) from None
    version = summary.get("format_version") if isinstance(summary, dict) else None
    if version != FORMAT_VERSION:
        raise CacheError(
            f"cache {folder} has format version {version}, this sscxr reads {FORMAT_VERSION}; prepare it again"
        )
    return dict(summary)


def _checked(
    folder: Path, images: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8] | None, summary: dict[str, Any]
) -> Cache:
    """Return the cache of these parts, which must fit its index."""
    try:
        with (folder / columns.INDEX).open("rb") as opened:
            text = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CacheError(f"cache {folder} is damaged ({error}); prepare it again") from None
    cache = Cache(folder, images, masks, summary, columns.read(folder), text)
    if cache.columns is not None:
        names, rows = cache.columns.names, cache.columns.rows
    else:
        names, rows = list(cache.index.columns), len(cache.index)
    missing = [name for name in INDEX_COLUMNS if name not in names]
    lengths = {"images.npy": len(images), "index.csv": rows}
    if masks is not None:
        lengths["masks.npy"] = len(masks)
    of_a_cache = images.ndim == 3 and images.shape[1] == images.shape[2] and images.dtype == np.uint8
    if missing or len(set(lengths.values())) != 1 or not of_a_cache:
        found = f"columns missing: {', '.join(missing)}" if missing else f"rows: {lengths}"
        found = found if of_a_cache else f"images of {images.dtype} {images.shape}, not uint8 [N, S, S]"
        raise CacheError(f"cache {folder} is inconsistent ({found}); prepare it again")
    return cache


def mapped(file: Path) -> npt.NDArray[np.uint8]:
    """Return the images or masks of a cache, uint8 [N, S, S], memory-mapped, read-only.

    Raises:
        CacheError: they cannot be read.
    """
    try:
        images: npt.NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(
            f"cache {file.parent} is damaged ({file.name}: {error}); prepare it into another folder"
        ) from None
    return images
