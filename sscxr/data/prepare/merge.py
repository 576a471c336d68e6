"""Merges new results into the tables of a cache: duplicates, groups, order, quarantine; without disk access."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sscxr.data.cache.tables import REMOVED, Entry, Row, Tables, shown_path, with_kind
from sscxr.data.prepare import groups
from sscxr.data.prepare.groups import Member
from sscxr.data.prepare.listing import NO_FOLDER, Item

REMOVED_REASON = f"{REMOVED}: not added again unless asked"


@dataclass(frozen=True)
class Found:
    """Attributes: a listed file, and its entry; see `_described` in prepare.py for an entry's fields."""

    item: Item
    entry: Entry

    @property
    def preference(self) -> tuple[Any, ...]:
        """Return a sort key: the file with the most facts first, among those of the same pixels, in any order."""
        row = self.entry["row"]
        return (
            row["has_mask"] != "1",
            not self.entry["labels"],
            not row["view"],
            not self.entry["body_part"],
            self.item.name,
            self.item.source,
            str(self.item.file),
        )


@dataclass(frozen=True)
class Change:
    """The changes to a cache.

    Attributes:
        added: the journal's keys of appended images, in order.
        updated: row number -> the journal's key, for images whose file or manifest row has changed.
        any: whether anything must be written.
    """

    added: list[str]
    updated: dict[int, str]
    any: bool


def merge(
    tables: Tables, found: list[Found], problems: list[Item], sources: list[str], *, readd: bool
) -> Change:
    """Merge new results into the tables.

    Args:
        tables: changed in place.
        found: every listed file that could be read, new or known to the ledger.
        problems: listed files that could not.
        sources: in the order they were listed; those without images are left out.
        readd: whether images removed on request are added again.
    """
    before = (dict(tables.quarantine), list(tables.sources), set(tables.removed))
    known = known_keys(tables, {one.entry["key"]: one.item for one in found}, readd=readd)
    fresh = [one for one in found if one.entry["key"] not in known]
    decoded: dict[str, list[Found]] = {}
    for one in fresh:
        if one.entry.get("image"):
            decoded.setdefault(one.entry["image"], []).append(one)
    kept_files = {
        entry["file"]: entry["image"] for entry in tables.ledger.values() if not entry.get("reason")
    }
    place = {row["image"]: number for number, row in enumerate(tables.rows)}
    added: list[Found] = []
    updated: dict[int, Found] = {}
    for image, same in decoded.items():
        same.sort(key=lambda one: one.preference)
        names = {image, *(name for one in same for name in (*one.entry["links"], one.entry["patient"]))}
        if image in place:
            ours = [one for one in same if kept_files.get(one.entry["file"]) == image]
            if ours:
                updated[place[image]] = ours[0]
            _refuse(same, ours[:1], "duplicate: same pixels as an image that is in the cache already")
        elif not readd and not tables.removed.isdisjoint(names):
            _refuse(same, [], REMOVED_REASON)
        else:
            tables.removed -= names
            added.append(same[0])
            _refuse(same, same[:1], f"duplicate: same pixels as {shown_path(same[0].item.file)}")
    added.sort(key=lambda one: str(one.entry["digest"]))
    _add_to_ledger(tables, fresh)
    # Of several files of the same pixels, one that is published as a test image is enough.
    to_test = {str(one.entry["image"]) for one in fresh if one.entry.get("to_test")}
    _add_rows(tables, added, updated, to_test)
    _quarantine(tables, found, problems, {one.entry["key"] for one in fresh})
    used = {row["source"] for row in tables.rows}
    tables.sources = [name for name in dict.fromkeys([*tables.sources, *sources]) if name in used]
    return Change(
        [one.entry["key"] for one in added],
        {number: one.entry["key"] for number, one in updated.items()},
        any(_lasts(one.entry) for one in fresh)
        or before != (tables.quarantine, tables.sources, tables.removed),
    )


def known_keys(tables: Tables, items: Mapping[str, Item], *, readd: bool) -> set[str]:
    """Return the keys whose result stands.

    With `readd`, those of removed images do not stand. Nor do files whose full reason is lost with
    `quarantine.csv`: the ledger has the kind alone.
    """
    return {key for key in items if key in tables.ledger and _stands(tables, key, items[key], readd=readd)}


def _stands(tables: Tables, key: str, item: Item, *, readd: bool) -> bool:
    reason = tables.ledger[key].get("reason")
    if reason == REMOVED:
        return not readd
    return not reason or shown_path(item.file) in tables.quarantine


def _refuse(same: Iterable[Found], but: list[Found], reason: str) -> None:
    for one in same:
        if one not in but:
            one.entry["reason"] = reason


def _add_to_ledger(tables: Tables, fresh: list[Found]) -> None:
    """Add new results to the ledger; replace those of a changed file, unless they include an image."""
    now = {one.entry["file"]: one.entry for one in fresh}
    for key, entry in list(tables.ledger.items()):
        if entry["file"] in now and (
            entry.get("reason") or entry["image"] == now[entry["file"]].get("image")
        ):
            del tables.ledger[key]
    for one in fresh:
        if _lasts(one.entry):
            names = ("key", "file", "image", "links", "patient", "reason")
            entry = {name: one.entry[name] for name in names if one.entry.get(name)}
            tables.ledger[one.entry["key"]] = with_kind(entry)


def _add_rows(tables: Tables, added: list[Found], updated: dict[int, Found], to_test: set[str]) -> None:
    old = [(row["image"], Member(row["group"], row["split"])) for row in tables.rows]
    new = [(str(one.entry["image"]), str(one.entry.get("place") or one.entry["image"])) for one in added]
    present = {image for image, _ in (*old, *new)}
    links = [
        (entry["image"], link)
        for entry in tables.ledger.values()
        if entry.get("image") in present
        for link in entry["links"]
    ]
    members = groups.assign(old, new, links, to_test & present)
    for number, one in updated.items():
        tables.rows[number] = _row(one)
    tables.rows += [_row(one) for one in added]
    for row in tables.rows:
        row["group"], row["split"] = members[row["image"]]


def _lasts(entry: Entry) -> bool:
    return bool(entry.get("lasting", True))


def _row(one: Found) -> Row:
    return {**one.entry["row"], **one.entry["labels"]}


def _quarantine(tables: Tables, found: list[Found], problems: list[Item], fresh: set[str]) -> None:
    """Put every listed file that is not in the cache in quarantine; files of earlier listings are unchanged."""
    shut = [name for name, reason in tables.quarantine.items() if reason.startswith(NO_FOLDER)]
    for name in shut:  # a folder that is readable now is no longer refused
        if any(shown_path(one.item.file).startswith(f"{name}/") for one in found):
            del tables.quarantine[name]
    for item in problems:
        tables.quarantine[shown_path(item.file)] = item.problem
    for one in found:
        name = shown_path(one.item.file)
        if not one.entry.get("reason"):
            tables.quarantine.pop(name, None)
        elif name not in tables.quarantine or one.entry["key"] in fresh:
            reason = one.entry["reason"]
            tables.quarantine[name] = REMOVED_REASON if reason == REMOVED else reason
