"""This hospital: its cache, and the state that it keeps on its own disk between messages.

Flower starts a fresh process for each message, so lasting state is in files: the reconstruction head and the
optimiser's moments, in one generation for each attempt at a round. The server names the generation to start from,
the last one whose update it folded; later ones belong to work that did not count, and are deleted.
"""

import functools
import json
import logging
import re
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from client import answers
from client.settings import SiteError, SiteSettings
from sscxr import stages
from sscxr.config import Config
from sscxr.data.cache.cache import LABEL_PREFIX, Cache, CacheError, open_cache, stamps
from sscxr.data.rows import Rows
from sscxr.federation import wire
from sscxr.files import private_folder, settle, write_atomically

if TYPE_CHECKING:
    import pandas as pd

# Allowed values of data.test_share: with a free share, a coordinator could move it past one patient after
# another.
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_GREY_IMAGES = 2048  # sample size for the histogram of a large site, evenly spaced: half a second
_GENERATION = re.compile(r"r\d{5,}-a\d{2,}\.(safetensors|tmp)")

log = logging.getLogger("sscxr.site")


class Site:
    """An open site.

    Attributes:
        name: its name in the federation.
        settings: its `site.yaml`.
        cache: its images.
        store: its state on disk.
    """

    def __init__(self, settings: SiteSettings) -> None:
        """Open the cache.

        Raises:
            SiteError: the cache cannot be opened, or the list of groups is unreadable.
        """
        self.name, self.settings = settings.name, settings
        try:
            self.cache: Cache = _opened(settings.cache, stamps(Path(settings.cache)))
        except CacheError as error:
            raise SiteError("cache", str(error)) from None
        self._mine = np.ones(len(self.cache), dtype=bool)
        if settings.groups:
            try:
                groups = Path(settings.groups).read_text().split()
            except OSError as error:
                raise SiteError("settings", f"list of groups not readable: {error}") from None
            self._mine = self.cache.index["group"].isin(groups).to_numpy()
        self.store = StateStore(Path(settings.state))

    def min_cell(self, config: Config) -> int:
        """Return the smallest count that is reported: the site's own, or the run's if the site's is 1."""
        return self.settings.min_cell if self._guarded else config.privacy.min_cell

    @property
    def _guarded(self) -> bool:
        """Whether answers are checked against earlier ones; not for virtual sites, which have a `min_cell` of 1."""
        return self.settings.min_cell > 1

    def usable_rows(self, config: Config) -> Rows:
        """Return the rows of this site that the run's stage can use."""
        rows = self.cache.rows(laterals=config.data.laterals)
        try:
            return stages.of(config).usable(self.cache, rows[self._mine[rows]])
        except CacheError as error:  # masks that do not fit their images
            raise SiteError("cache", str(error)) from None

    def own_rows(self, config: Config) -> tuple[Rows, Rows]:
        """Return the rows to train on and the held-out ones, for work of which nothing leaves the site."""
        usable = self.usable_rows(config)
        held_out = self.cache.held_out(config.data.test_share)[usable]
        return usable[~held_out], usable[held_out]

    def training_rows(self, config: Config) -> Rows:
        """Return the rows to train on: all but the held-out patients'.

        Raises:
            SiteError: fewer than `min_cell` or `min_images`.
        """
        rows, _ = self._rows(config)
        least = max(self.min_cell(config), self.settings.min_images)
        if len(rows) < least:
            raise SiteError(
                "few images",
                f"{len(rows)} images to train on that can be reported, {least} are needed (the larger of min_cell="
                f"{self.min_cell(config)} and min_images={self.settings.min_images}), of as many patients, and as "
                'different from the images of other runs: see "Small cells" in docs/privacy.md',
            )
        return rows

    def held_out_rows(self, config: Config) -> Rows:
        """Return rows of patients that are never trained on; none if fewer than the minimum cell."""
        _, rows = self._rows(config)
        return rows if len(rows) >= self.min_cell(config) else rows[:0]

    def _rows(self, config: Config) -> tuple[Rows, Rows]:
        """Return the rows to train on and the held-out ones that the site may answer for."""
        training, testing = self.own_rows(config)
        if not self._guarded:
            return training, testing
        if config.data.test_share not in SHARES:
            raise SiteError(
                "not allowed",
                f"data.test_share={config.data.test_share:g}: a site with min_cell above 1 takes one of {SHARES}",
            )
        labels = sorted(set(stages.of(config).labels))
        key = json.dumps([config.run.stage, config.data.test_share, config.data.laterals, labels])
        with answers.opened(self.store.folder, self.settings.min_cell) as earlier:
            names, usable = self._names(), np.concatenate([training, testing])
            training, testing = answers.settled(earlier, key, *names, [training, testing], config.run.name)
            waiting = int((~earlier.seen(names[0][usable])).sum())
        if waiting:
            log.info("%d images wait until they are of at least min_cell patients", waiting)
        return training, testing

    def waiting(self, config: Config) -> int:
        """Return how many images still wait, as they are of too few patients; 0 if the site was never asked."""
        earlier = answers.Answers(self.store.folder, self.settings.min_cell)
        rows = self.usable_rows(config) if self._guarded and len(earlier.images) else np.empty(0, np.int64)
        return int((~earlier.seen(self._names()[0][rows])).sum())

    def _names(self) -> tuple[answers.Names, answers.Names]:
        return self.cache.column("image").astype(str), self.cache.column("group").astype(str)

    def may_tell(self, rows: Rows, config: Config) -> bool:
        """Return whether figures of these held-out rows may leave: no class among them is a small cell."""
        return stages.of(config).tellable(self.cache, rows, self.min_cell(config))

    def told_counts(self, config: Config) -> str:
        """Return the run's aggregates that site.yaml allows to leave, as JSON."""
        allowed = set(self.settings.metrics) & {"counts", "grey"}
        if not allowed:
            return "{}"
        tables = json.loads(self.counts_of_run(config))
        reported = {name: cells for name, cells in tables.items() if _metric(name) in allowed}
        return json.dumps(reported, sort_keys=True)

    def counts_of_run(self, config: Config) -> str:
        """Return the counts as first taken: over the whole cache, whatever the run asks for.

        They are taken again, table by table, if the patients that came or went, and every cell that is reported
        before and after, differ by at least the minimum cell.
        """
        if not self._guarded:
            file = self.store.folder / wire.check_name(config.run.name, "run") / "counts.json"
            if not file.exists():
                write_atomically(file, self.counts(config).encode())
            return file.read_text()
        training = self.training_rows(config)
        names = self._names()
        key = "grey" if "grey" in self.settings.metrics else "counts"
        with answers.opened(self.store.folder, self.settings.min_cell) as earlier:
            before = earlier.known(key)
            reported = [
                text for name in ("counts", "grey") for text in earlier.notes.get(name, {}).get("told", [])
            ]
            everything = np.flatnonzero(self._mine)
            rows = everything
            if not earlier.add(key, [names[0][rows]], _pairs(*names)):
                rows = training
                if before is not None or not earlier.add(key, [names[0][rows]], _pairs(*names)):
                    return str(reported[-1]) if reported else "{}"
            now = earlier.known(key)
            if before is not None and now is not None and np.array_equal(np.sort(before[0]), np.sort(now[0])):
                return str(reported[-1])
            text = _apart(self.tables(rows, self.settings.min_cell), reported, self.settings.min_cell)
            earlier.notes[key]["told"] = [*earlier.notes[key].get("told", []), text]
            earlier.save()
        return text

    def counts(self, config: Config) -> str:
        """Return the aggregates of the run's rows that may leave, from `wire.counts_to_json`.

        Raises:
            SiteError: fewer images than the minimum cell.
        """
        # Held-out rows are counted only if their number is reported: the tables' totals would reveal it.
        rows = np.concatenate([self.training_rows(config), self.held_out_rows(config)])
        return self.tables(rows, self.min_cell(config))

    def tables(self, rows: Rows, minimum: int) -> str:
        """Return the aggregates of these rows that may leave, from `wire.counts_to_json`."""
        index = self.cache.index.iloc[rows]
        tables = {
            "view": _tally(index["view"], wire.COUNT_TABLES["view"]),
            "sex": _tally(index["sex"], wire.COUNT_TABLES["sex"]),
            "age": _tally(index["age_band"], wire.COUNT_TABLES["age"]),
            "images": _by_patient(index["group"]),
        }
        for label in self.cache.labels:
            if label in wire.LABELS:
                values = index[LABEL_PREFIX + label]
                present, absent = int((values > 0.5).sum()), int((values <= 0.5).sum())
                unknown = len(values) - present - absent
                tables[f"label:{label}"] = {"present": present, "absent": absent, "unknown": unknown}
        grey = self._grey(rows, minimum) if "grey" in self.settings.metrics else None
        return wire.counts_to_json(tables, minimum, grey)

    def _grey(self, rows: Rows, minimum: int) -> dict[str, int]:
        """Return a histogram of the images' grey levels without padding; each image has the same weight."""
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _GREY_IMAGES)).round().astype(np.int64)]
        index, bins = self.cache.index.iloc[chosen], len(wire.GREY_CELLS)
        places = index[["top", "left", "content_height", "content_width"]].to_numpy(dtype=np.int64)
        tallies = np.zeros((len(chosen), bins))
        for number, (row, (top, left, height, width)) in enumerate(zip(chosen, places, strict=True)):
            pixels = self.cache.images[row, top : top + height, left : left + width]
            tallies[number] = np.bincount(pixels.ravel() // (256 // bins), minlength=bins)
        shares = (tallies / tallies.sum(axis=1, keepdims=True)).mean(axis=0)
        import pandas as pd  # here: training messages do not need it

        patients = pd.DataFrame(tallies > 0).groupby(index["group"].to_numpy()).any().sum()
        levels = dict(zip(wire.GREY_CELLS, shares.tolist(), strict=True))
        return wire.suppress_grey(levels, dict(zip(wire.GREY_CELLS, patients.tolist(), strict=True)), minimum)


def _metric(table: str) -> str:
    return "grey" if table == wire.GREY else "counts"


def _pairs(images: answers.Names, groups: answers.Names) -> dict[str, str]:
    return dict(zip(images.tolist(), groups.tolist(), strict=True))


def _apart(text: str, earlier: list[str], least: int) -> str:
    """Return new counts, but the last earlier table wherever a cell would differ from an earlier one by a few."""
    tables, before = json.loads(text), [json.loads(one) for one in earlier]
    for name, cells in tables.items():
        if name == wire.GREY:
            continue  # per cent
        for one in before:
            was = one.get(name, {})
            if any(0 < abs(cells[cell] - was[cell]) < least for cell in cells.keys() & was.keys()):
                tables[name] = before[-1].get(name, {})
    return json.dumps(tables, sort_keys=True)


def _by_patient(groups: "pd.Series[Any]") -> dict[str, int]:
    first, further = wire.COUNT_TABLES["images"]
    patients = int(groups.nunique())
    return {first: patients, further: len(groups) - patients}


@functools.lru_cache(maxsize=4)  # a simulation's sites share one across messages
def _opened(folder: str, state: tuple[object, ...]) -> Cache:
    """Open a cache, once while its files are unchanged; the shared object is never modified."""
    return open_cache(folder)


def _tally(values: "pd.Series[Any]", cells: tuple[str, ...]) -> dict[str, int]:
    known = values.where(values.isin(cells), "unknown").value_counts()
    return {str(cell): int(count) for cell, count in known.items()}


class Writes:
    """Writes generations to disk.

    A site's reply states that its state is kept; so by default it is on disk before `put` returns. The simulation
    sets `behind`: a state is then written while the next site trains, and the round is not committed before
    `settle` has returned.
    """

    behind = False

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._going: tuple[Path, Future[None]] | None = None
        self._failed: BaseException | None = None

    def put(self, folder: Path, write: Callable[[], None]) -> None:
        """Write to a folder, now or in the background."""
        if not self.behind:
            write()
            return
        self._end()  # one at a time: each is several models in memory
        self._pool = self._pool or ThreadPoolExecutor(max_workers=1)
        self._going = folder, self._pool.submit(write)

    def wait(self, folder: Path) -> None:
        """Wait until nothing is being written to a folder."""
        if self._going and self._going[0] == folder:
            self._end()

    def settle(self) -> None:
        """Wait until everything is on disk.

        Raises:
            SiteError: a write has failed since the last call.
        """
        self._end()
        failed, self._failed = self._failed, None
        if failed is not None:
            raise SiteError("disk", f"a site's state could not be written: {failed}")

    def _end(self) -> None:
        if self._going:
            self._failed = self._going[1].exception() or self._failed
            self._going = None


writes = Writes()


class StateStore:
    """Generations of a site's state, one safetensors file each, by run.

    Each file has a checksum of its tensors, which reveals damage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _file(self, run: str, generation: str) -> Path:
        wire.check_name(run, "run")
        wire.check_name(generation, "generation")
        return self.folder / run / f"{generation}.safetensors"

    def load(self, run: str, generation: str) -> tuple[dict[str, Tensor] | None, str]:
        """Return the tensors of a generation, and whether they were "kept", are "new" (none named) or "lost"."""
        if not generation:
            return None, "new"
        writes.wait(self.folder)
        try:
            file = self._file(run, generation)
            tensors = safetensors.torch.load_file(file)
            with safetensors.safe_open(file, framework="pt") as opened:
                checksum = (opened.metadata() or {}).get("crc32", "")
        except (OSError, safetensors.SafetensorError, ValueError):
            return None, "lost"
        return (tensors, "kept") if checksum == _checksum(tensors) else (None, "lost")

    def save(self, run: str, generation: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a generation atomically; see `Writes` for when."""
        file = self._file(run, generation)
        whole = {name: tensors[name].contiguous() for name in sorted(tensors)}
        writes.put(self.folder, functools.partial(_write, file, whole))

    def keep_only(self, run: str, *generations: str) -> None:
        """Delete a run's other generations, and partial ones; nothing else in the folder."""
        writes.wait(self.folder)
        for file in (self.folder / wire.check_name(run, "run")).glob("*"):
            ours = _GENERATION.fullmatch(file.name)
            if ours and (file.stem not in generations or file.suffix == ".tmp"):
                file.unlink(missing_ok=True)


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    private_folder(file.parent)
    partial = file.with_suffix(".tmp")
    safetensors.torch.save_file(dict(tensors), partial, metadata={"crc32": _checksum(tensors)})
    settle(partial, file)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum against accidental damage. A digest would take longer than reading the file."""
    found = 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found = zlib.crc32(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
