"""Reads and writes the text files of a cache: index, ledger, quarantine, summary."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sscxr.data.cache import columns
from sscxr.data.cache.cache import (
    FORMAT_VERSION,
    INDEX_COLUMNS,
    LABEL_PREFIX,
    Cache,
    CacheError,
    read_index,
)
from sscxr.files import NotReadableError, check_readable
from sscxr.printable import line, plain, table

Entry = dict[str, Any]
Row = dict[str, str]
REMOVED = "removed on request"
# Files that name the export's files, or quote them: for their owner alone, like the salt. Training needs
# none.
PRIVATE = ("quarantine.csv", "ledger.jsonl", "removed.json")


@dataclass
class Tables:
    """The content of a cache, besides its pixels.

    Attributes:
        rows: of the index, every cell as text; in the images' order.
        sources: in the order they were listed.
        ledger: the result for every file, by key: `file` (hashed); for a file that decodes, `image`, `links` and
            `patient` (all hashed); for a file that is not in the cache, `reason`: the kind alone, since the rest
            of a reason may name files or quote headers.
        removed: hashes of images and patients that were removed on request.
        quarantine: the whole reason by file, which only `quarantine.csv` has.
    """

    rows: list[Row] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    ledger: dict[str, Entry] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    quarantine: dict[str, str] = field(default_factory=dict)

    @property
    def label_columns(self) -> list[str]:
        """Return the label columns, prefixed and sorted, without labels that no row knows."""
        known = {name for row in self.rows for name, cell in row.items() if cell}
        return sorted(name for name in known if name.startswith(LABEL_PREFIX))


def load(folder: Path) -> Tables:
    """Read the tables of a cache; they are empty if it was never finished.

    Raises:
        CacheError: a file of the cache does not parse.
    """
    tables = Tables()
    check_readable(folder, ("index.csv", "summary.json", *PRIVATE))
    try:
        if (folder / "index.csv").exists():
            tables.rows = _read_csv(folder / "index.csv")
            tables.sources = json.loads((folder / "summary.json").read_text())["sources"]
        if (folder / "ledger.jsonl").exists():
            lines = (json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines())
            tables.ledger = {entry["key"]: with_kind(entry) for entry in lines}
        if (folder / "removed.json").exists():
            tables.removed = set(json.loads((folder / "removed.json").read_text()))
        if (folder / "quarantine.csv").exists():
            tables.quarantine = {row["file"]: row["reason"] for row in _read_csv(folder / "quarantine.csv")}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CacheError(
            f"cache {folder} is damaged ({type(error).__name__}: {error}); prepare it again"
        ) from None
    return tables


def save(folder: Path, tables: Tables, size: int, *, with_images: bool = True) -> None:
    """Write the tables into `folder`; without images, it gets no index and no summary, so it does not open yet."""
    for name in PRIVATE:  # before they have any content
        (folder / name).touch(mode=0o600)
    _write_csv(folder / "quarantine.csv", ("file", "reason"), sorted(tables.quarantine.items()))
    entries = sorted(tables.ledger.values(), key=lambda entry: str(entry["key"]))
    with (folder / "ledger.jsonl").open("w") as out:
        out.writelines(json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n" for entry in entries)
    (folder / "removed.json").write_text(json.dumps(sorted(tables.removed)) + "\n")
    if not with_images:
        return
    names = [*INDEX_COLUMNS, *tables.label_columns]
    _write_csv(folder / "index.csv", names, ([row.get(name, "") for name in names] for row in tables.rows))
    columns.write(folder, read_index(folder))
    (folder / "summary.json").write_text(json.dumps(summarise(tables, size), indent=1) + "\n")


def summarise(tables: Tables, size: int) -> dict[str, Any]:
    """Return the counts of a cache; they stay at the site."""
    rows = tables.rows
    counts = {
        column: dict(sorted(Counter(row[column] for row in rows).items()))
        for column in ("source", "view", "sex", "age_band", "grey_range")
    }
    names = {"1": "present", "0": "absent", "": "unknown"}
    labels = {
        column.removeprefix(LABEL_PREFIX): dict(Counter(names[row.get(column, "")] for row in rows))
        for column in tables.label_columns
    }
    return {
        "format_version": FORMAT_VERSION,
        "size": size,
        "images": len(rows),
        "groups": len({row["group"] for row in rows}),
        "masks": sum(row["has_mask"] == "1" for row in rows),
        "quarantined": len(tables.quarantine),
        "sources": tables.sources,
        "counts": counts,
        "labels": {name: dict(sorted(count.items())) for name, count in labels.items()},
        "licences": dict(sorted(Counter(row["licence"] for row in rows).items())),
    }


def unusable(cache: Cache) -> dict[str, int]:
    """Count the files that could not be used, by the kind of reason (before the colon), most frequent first."""
    if "unusable" in cache.summary:  # a view, or several caches as one
        return dict(cache.summary["unusable"])
    try:
        reasons = load(cache.folder).quarantine.values()
    except (CacheError, NotReadableError):  # only the cache's owner may read the reasons
        total = int(cache.summary.get("quarantined", 0))
        return {"reason not readable by this account": total} if total else {}
    return dict(Counter(reason.split(":")[0] for reason in reasons).most_common())


def doubts(cache: Cache) -> dict[str, int]:
    """Count the images with each kind of warning."""
    found = Counter(doubt for cell in cache.column("warnings") for doubt in str(cell).split("; ") if doubt)
    return dict(sorted(found.items()))


def with_kind(entry: Entry) -> Entry:
    """Return an entry with its reason, if any, reduced to the kind: the fixed words before a colon."""
    return entry | {"reason": entry["reason"].split(":")[0]} if entry.get("reason") else entry


def shown_path(path: Path) -> str:
    """Return a path as text that any file and terminal can represent, whatever bytes its name has."""
    return line(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _read_csv(path: Path) -> list[Row]:
    csv.field_size_limit(1 << 24)
    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = ([plain(cell) for cell in row] for row in csv.reader(file) if row)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    path.write_text(table(columns, rows), encoding="utf-8")
