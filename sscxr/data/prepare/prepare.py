"""Folders, files and manifests to a site cache: decode in parallel, deduplicate, group, quarantine with reasons.

Files are first decoded into a journal, in any order and over any number of attempts. Only when all are done is
the cache written from it, in an order that depends on the images alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sscxr.data.cache import assemble, store, tables
from sscxr.data.cache.cache import LABEL_PREFIX, Cache, CacheError, mapped, open_cache
from sscxr.data.cache.journal import Journal
from sscxr.data.cache.store import Secret
from sscxr.data.cache.tables import Entry, Row, Tables
from sscxr.data.corpora.manifest import Record
from sscxr.data.pixels import posture
from sscxr.data.pixels.decode import PASSING, Prepared, Task
from sscxr.data.pixels.dicom import MAX_PIXELS
from sscxr.data.pixels.facts import Refused
from sscxr.data.prepare import listing, merge, pool
from sscxr.data.prepare.listing import Item, Listing
from sscxr.data.prepare.progress import Display
from sscxr.errors import SscxrError
from sscxr.files import is_full_disk, sha256

MANY, MAX_GROUP = 40, 0.25  # of at least so many images, no patient has a larger share (ours)
FILES_A_WORKER = 8  # with fewer files, another process costs more than it gains
# For `--public`: everybody with the images sets the same patients aside. It does not protect identities.
PUBLIC_SALT = bytes(32)
PIPELINE = 1  # version of the decoding; a file decoded under another version is decoded again


class PrepareError(SscxrError):
    """Nothing could be prepared; one line states why and what to do."""


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    labels: str | Path | None = None,
    size: int = 256,
    workers: int | None = None,
    salt: bytes | None = None,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    readd_removed: bool = False,
    source: str | None = None,
    uncertain: str = "ignore",
    train_on_test: bool = False,
    chest_words: Sequence[str] = (),
) -> Cache:
    """Prepare a site cache, resume an interrupted preparation, or add to a cache.

    Args:
        sources: folders (searched recursively), manifests (`.csv`), single files, and public corpora
            (`nih:/data/nih`, see `sscxr.data.corpora`).
        out: the cache's folder.
        labels: a manifest that describes files of the folders.
        size: pixels a side of the cached images.
        workers: processes; None: one per core, 0: in this process.
        salt: the secret of the hashes; None: drawn when the cache is made.
        progress: whether to show progress on stderr.
        max_pixels: a larger file is refused before it is decoded.
        readd_removed: add images that were removed on request again, if the sources have them.
        source: the source of images without one in a manifest; None: `local`, or `local-1`, `local-2` and so on for
            several folders. Names of folders and files are never used.
        uncertain: labels that a public corpus calls uncertain: "ignore" (unknown), "zeros" or "ones".
        train_on_test: treat published test images like the others.
        chest_words: the site's words for a chest in Body Part Examined, beside the known ones.

    Returns:
        The opened cache.

    Raises:
        PrepareError, SourceError, ManifestError, CorpusError, CacheError: one line states what is wrong and what to
            do.
    """
    out, show = Path(out), Display(progress)
    if not 16 <= size <= 4096:
        raise PrepareError(f"size={size} px: a cached image has 16 to 4096 px a side")
    paths = [Path(source) for source in sources]
    listed = listing.collect(
        paths,
        labels=None if labels is None else Path(labels),
        skip=out,
        source=source,
        uncertain=uncertain,
        train_on_test=train_on_test,
    )
    if not listed.items:
        raise PrepareError(f"no files in {', '.join(str(path) for path in paths)}; nothing to prepare")
    for line in listed.warnings:
        show.warn(line)
    try:
        secret = store.create(out, salt)
        with store.writing(out):
            _check_size(out, size)
            workers = pool.default_workers() if workers is None else workers
            job = _Job(out, secret, _header(size, max_pixels), workers, show, tuple(chest_words))
            images = _prepare(listed, job, readd=readd_removed)
    except OSError as error:
        raise PrepareError(_explained(error, out)) from error
    if not images:
        raise PrepareError(
            f"none of {len(listed.items)} files can be used; {out / 'quarantine.csv'} has the reasons"
        )
    return open_cache(out)


def count_new(
    sources: Sequence[str | Path],
    out: Path,
    *,
    size: int,
    uncertain: str = "ignore",
    train_on_test: bool = False,
) -> int:
    """Count the files of the sources that a cache has not seen in their present form; nothing is changed.

    Args:
        sources, out, size, uncertain, train_on_test: as given to `prepare`.

    Raises:
        SourceError, ManifestError, CorpusError, CacheError: the sources or the cache cannot be read.
    """
    paths = [Path(source) for source in sources]
    listed = listing.collect(paths, labels=None, skip=out, uncertain=uncertain, train_on_test=train_on_test)
    secret, header, known = store.create(out, None), _header(size, MAX_PIXELS), tables.load(out).ledger
    return sum(_key(item, header, secret) not in known for item in listed.items if not item.problem)


def _header(size: int, max_pixels: int) -> dict[str, Any]:
    """Return the values that every outcome depends on besides the file itself."""
    detector = sha256(posture.WEIGHTS)[:16]
    return {"pipeline": PIPELINE, "posture": detector, "size": size, "max_pixels": max_pixels}


def _check_size(out: Path, size: int) -> None:
    if (out / "images.npy").exists():
        held = mapped(out / "images.npy").shape[1]
        if held != size:
            raise CacheError(
                f"cache {out} holds images of {held} px; for {size} px give --out another folder"
            )


@dataclass(frozen=True)
class _Job:
    """A preparation: the cache's folder and secret, what outcomes depend on, and how files are decoded."""

    out: Path
    secret: Secret
    header: dict[str, Any]
    workers: int
    show: Display
    chest_words: tuple[str, ...]


def _prepare(listed: Listing, job: _Job, *, readd: bool) -> int:
    """Decode new files, then write the cache; return the number of its images."""
    out, size = job.out, job.header["size"]
    state = tables.load(out)
    items = {_key(item, job.header, job.secret): item for item in listed.items if not item.problem}
    known = merge.known_keys(state, items, readd=readd)
    journal = Journal(out / "work", job.header)
    try:
        new = {key: item for key, item in items.items() if key not in known}
        passing = _decode(new, journal, job)
        outcomes = {key: passing.get(key) or journal.entries[key] for key in new}
        found = [merge.Found(item, outcomes.get(key) or state.ledger[key]) for key, item in items.items()]
        problems = [item for item in listed.items if item.problem]
        before = len(state.rows)
        change = merge.merge(state, found, problems, listed.sources, readd=readd)
        if change.added or change.updated:
            picks = [change.updated.get(number, number) for number in range(before)]
            assemble.write_all(out, state, size, [*picks, *change.added], journal)
            _warn_of_patients(state, journal, change.added, job.show)
        elif change.any:
            assemble.write_tables(out, state, size)
    finally:
        journal.close()
    journal.discard()
    return len(state.rows)


def _warn_of_patients(state: Tables, journal: Journal, added: list[str], show: Display) -> None:
    """Warn if patients cannot be distinguished, since splits and sites go by patient."""
    alone = sum(not journal.entries[key]["patient"] for key in added)
    if alone:
        show.warn(f"{alone} of {len(added)} new images name no patient; each counts as a separate patient")
    largest = max(Counter(row["group"] for row in state.rows).values())
    if len(state.rows) >= MANY and largest > MAX_GROUP * len(state.rows):
        show.warn(
            f"{largest} of {len(state.rows)} images are one patient group; is the patient id a placeholder? "
            "then give the real ones with --labels"
        )


def _decode(new: dict[str, Item], journal: Journal, job: _Job) -> dict[str, Entry]:
    """Decode every new file into the journal; return results that may differ next time instead."""
    passing: dict[str, Entry] = {}
    waiting = {key: item for key, item in new.items() if key not in journal.entries}
    tasks = ((key, _task(item, job)) for key, item in waiting.items())
    with job.show.counting(len(new) - len(waiting), len(new)) as counter:
        for key, result in pool.decode(tasks, min(job.workers, -(-len(waiting) // FILES_A_WORKER))):
            entry = {"key": key, "file": job.secret.hash("file", str(new[key].file))}
            if isinstance(result, Prepared):
                journal.add(entry | _described(new[key], result, job.secret), result.image, result.mask)
            elif result.kind in PASSING:
                passing[key] = entry | {"reason": str(result), "lasting": False}
            else:
                journal.add(entry | {"reason": str(result)})
            counter.step(isinstance(result, Refused))
    return passing


def _task(item: Item, job: _Job) -> Task:
    record = item.record or Record(item.file, item.name)
    size, most = job.header["size"], job.header["max_pixels"]
    return Task(item.file, record.mask, record.view, size, most, record.more_masks, job.chest_words)


def _key(item: Item, header: dict[str, Any], secret: Secret) -> str:
    """Return a salted hash of everything that a file's result depends on: the file, and its row of a manifest."""
    parts = [repr(sorted(header.items())), item.source, repr(item.record)]
    if item.record is not None and item.record.added:
        parts.append(item.record.added)
    masks = (item.record.mask, *item.record.more_masks) if item.record is not None else (None,)
    for path in (item.file, *masks):
        try:
            status = path.stat() if path is not None else None
        except OSError:
            status = None
        parts += [str(path), f"{status.st_size} {status.st_mtime_ns}" if status is not None else "absent"]
    return secret.hash("key", "\0".join(parts))


def _described(item: Item, prepared: Prepared, secret: Secret) -> Entry:
    """Return an image's entry for the ledger and the index: identifiers hashed, only what `INDEX_COLUMNS` lists.

    Only `digest` is not hashed with the salt; it orders the images and is deleted with the journal.
    """
    record, facts = item.record or Record(item.file, item.name), prepared.facts
    patient = record.patient or record.group or facts.patient
    group = record.group or facts.patient
    alone = secret.hash("alone", prepared.digest)
    warnings = [*facts.warnings, *([record.warning] if record.warning else [])]
    row: Row = {
        "image": secret.hash("image", prepared.digest),
        "source": item.source,
        "view": record.view or facts.view,
        "sex": record.sex or facts.sex,
        "age_band": record.age_band or facts.age_band,
        "licence": record.licence,
        "spacing_mm": "" if facts.spacing_mm is None else f"{facts.spacing_mm:g}",
        "grey_range": facts.grey_range,
        "has_mask": str(int(prepared.mask is not None)),
        "warnings": "; ".join(warnings),
        "hospital": record.hospital,
        "published": record.published,
        "public_id": record.public_id,
    }
    places = ("height", "width", "top", "left", "content_height", "content_width")
    return {
        "digest": prepared.digest,
        "image": row["image"],
        "patient": secret.patient(patient)[-1] if patient else "",
        "place": record.place,
        "to_test": record.held_out,
        "links": secret.patient(group) if group else [alone],
        "body_part": bool(facts.body_part),
        "row": row | {name: str(getattr(prepared, name)) for name in places},
        "labels": {f"{LABEL_PREFIX}{name}": str(value) for name, value in sorted(record.labels.items())},
    }


def _explained(error: OSError, out: Path) -> str:
    if is_full_disk(error):
        return f"the disk of {out} is full; prepared files are kept: make room and run it again"
    return f"{error.filename or out}: {error.strerror or error}"
