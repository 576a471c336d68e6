"""Lists the files to prepare from folders, files and manifests."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sscxr.data import corpora
from sscxr.data.corpora import manifest
from sscxr.data.corpora.manifest import Record
from sscxr.data.pixels.decode import NOT_READABLE
from sscxr.errors import SscxrError

NO_FOLDER = f"{NOT_READABLE}: folder"
LOCAL = "local"  # the default source: the names of folders may be patients'


class SourceError(SscxrError):
    """An invalid source; one line states what is wrong and what to do."""


@dataclass(frozen=True)
class Item:
    """One file to prepare.

    Attributes:
        file: absolute.
        source: the corpus or hospital as a manifest or the user names it, or a neutral word; never a folder's name.
        name: the file's path below its source; it breaks ties between duplicates.
        record: the file's row of a manifest.
        problem: why the file cannot be used, if known already.
    """

    file: Path
    source: str
    name: str
    record: Record | None = None
    problem: str = ""


@dataclass(frozen=True)
class Listing:
    """Attributes: the items, each file once; the sources in the order they were listed; lines of warning."""

    items: list[Item]
    sources: list[str]
    warnings: list[str]


def collect(
    sources: Iterable[Path],
    *,
    labels: Path | None,
    skip: Path | None,
    source: str | None = None,
    uncertain: str = "ignore",
    train_on_test: bool = False,
) -> Listing:
    """List every file of the sources, in the sources' order and sorted within each.

    Args:
        labels: a manifest that describes files of the folders, by path or by unique file name.
        skip: a folder to leave out, such as the cache itself.
        sources, source, uncertain, train_on_test: as in `prepare`.

    Raises:
        SourceError: a source does not exist, or has an invalid name.
        ManifestError: an invalid manifest.
        CorpusError: an unknown corpus, or a folder that is not that corpus.
    """
    if source is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", source):
        raise SourceError("--source: a name has 1 to 64 letters (a to z), digits, dots, _ and -")
    places: dict[Path, list[Record] | None] = {}
    warnings: list[str] = []
    for given in sources:
        of_corpus = corpora.named(given)
        if of_corpus is not None:
            known = corpora.find(*of_corpus, uncertain=uncertain)
            warnings += known.warnings
            places[given] = list(corpora.records(known))
            continue
        path = given.resolve()
        if not path.exists():
            raise SourceError(f"{given}: no such file or folder")
        if path not in places:
            places[path] = (
                manifest.read(path, warnings) if path.suffix.lower() == ".csv" and path.is_file() else None
            )
    names = _names(places, source)
    found: dict[Path, Item] = {}
    order: dict[str, None] = {}
    for path, records in places.items():
        if records is not None:
            items: Iterable[Item] = _manifest(records, names[path])
        elif path.is_dir():
            items = _folder(path, skip and skip.resolve(), names[path], warnings)
        else:
            items = [_checked(Item(path, names[path], path.name))]
        for item in items:
            order.setdefault(item.source)
            # A manifest has more about a file than a folder that also contains it.
            if item.file not in found or (item.record is not None and found[item.file].record is None):
                found[item.file] = item
    listed = list(found.values())
    if labels is not None:
        listed = _with_labels(listed, labels, warnings)
    if train_on_test:
        listed = [
            item if item.record is None else replace(item, record=replace(item.record, held_out=False))
            for item in listed
        ]
    for item in listed:
        order.setdefault(item.source)
    used = {item.source for item in listed}
    return Listing(listed, [name for name in order if name in used], warnings)


def _names(places: Mapping[Path, list[Record] | None], source: str | None) -> dict[Path, str]:
    """Return the source's name for each place without one in a manifest; single files count as one place."""
    names = dict.fromkeys(places, source or LOCAL)
    wanting = [
        path
        for path, records in places.items()
        if (path.is_dir() if records is None else not all(record.source for record in records))
    ]
    if source is None and len(wanting) > 1:
        names |= {path: f"{LOCAL}-{number}" for number, path in enumerate(wanting, 1)}
    return names


def _folder(folder: Path, skip: Path | None, source: str, warnings: list[str]) -> Iterator[Item]:
    """Yield every file below a folder, following links within it once and leaving out caches."""
    away = 0
    seen: set[tuple[int, int]] = set()
    failures: list[OSError] = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=failures.append):
        here = Path(root)
        status = here.stat()
        key = (status.st_dev, status.st_ino)
        if key in seen or here == skip or {"salt", "images.npy", "index.csv"} <= set(files):
            folders.clear()
            continue
        seen.add(key)
        inside = sorted(name for name in folders if _stays(folder, here / name))
        away += len(folders) - len(inside)
        folders[:] = inside
        for name in sorted(files):
            file = here / name
            if not _stays(folder, file):
                away += 1
                continue
            yield _checked(Item(file, source, str(file.relative_to(folder))))
    if away:
        warnings.append(
            f"{away} link{'s' if away > 1 else ''} in a folder lead{'' if away > 1 else 's'} out of it and "
            f"{'are' if away > 1 else 'is'} left out; to include the target, give that folder as well"
        )
    for failure in failures:
        place = Path(str(failure.filename or folder))
        yield Item(place, source, place.name, problem=f"{NO_FOLDER}: {failure.strerror}")


def _stays(folder: Path, path: Path) -> bool:
    """Return whether a path that is reached from the folder stays within it; missing files are reported later."""
    return not path.is_symlink() or not path.exists() or path.resolve().is_relative_to(folder)


def _manifest(records: Iterable[Record], source: str) -> Iterator[Item]:
    for record in records:
        problem = f"manifest: {record.problem}" if record.problem else ""
        yield _checked(Item(record.file, record.source or source, record.name, record, problem))


def _checked(item: Item) -> Item:
    """Return the item, with a problem if it is not an existing plain file."""
    if item.problem:
        return item
    try:
        mode = item.file.stat().st_mode
    except FileNotFoundError:
        return replace(item, problem="missing: no such file")
    except (OSError, ValueError) as error:
        return replace(item, problem=f"unreadable: {getattr(error, 'strerror', None) or 'not a file name'}")
    if not stat.S_ISREG(mode):
        return replace(item, problem="not an image: not a plain file")
    return item


def _with_labels(items: list[Item], labels: Path, warnings: list[str]) -> list[Item]:
    """Join items with the rows of a manifest: by absolute path, by path below the source, or by unique name."""
    records = manifest.read(labels, warnings)
    by_name: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        for key in {str(item.file), os.path.normpath(item.name), item.file.name, item.file.stem}:
            by_name.setdefault(key, []).append(place)
    joined, unmatched = list(items), 0
    for record in records:
        keys = (str(record.file), os.path.normpath(record.name), Path(record.name).name)
        places = next((by_name[key] for key in keys if len(by_name.get(key, ())) == 1), None)
        if places is None:
            unmatched += 1
        elif joined[places[0]].record is None:
            item = joined[places[0]]
            joined[places[0]] = replace(item, record=record, source=record.source or item.source)
    if unmatched == len(records):
        raise manifest.ManifestError(f"{labels}: none of its {len(records)} rows names a file of the sources")
    if unmatched:
        warnings.append(
            f"{unmatched} of the {len(records)} rows of {labels.name} name no file of the sources"
        )
    return joined
