"""The runs of a comparison, each in a process and a folder of its own, as many at a time as there are cores."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from server.ledger import MAY_CHANGE, LedgerError, differing
from sim import asked, published
from sim.compare import worker
from sim.compare.file import TRAINED, UNTRAINED, Cell, Plan, rounds_of
from sim.compare.worker import JOB, SCORES
from sim.partition import PartitionError
from sim.pool import CONTEXT, end, start_forking
from sim.sites import parts_of
from sscxr import config as configs
from sscxr import runs
from sscxr.config import Config, ConfigError
from sscxr.config.schema import MIXED_IMAGES
from sscxr.data.cache.cache import Cache
from sscxr.display import Board, Clock, Line, duration
from sscxr.federation import floors
from sscxr.files import write_atomically

LOG = "log.txt"
_SITE = "site.csv"  # the partition of a site alone
_LOOK = 0.2  # seconds between looks at the processes
# Settings that do not change a run: whether and when a round counts, and a partition's place on the disk.
_NO_MATTER = {*MAY_CHANGE, "sim.file", "run.name"}


@dataclass(frozen=True, eq=False)
class Job:
    """One run.

    Attributes:
        cell: its cell.
        seed: its seed.
        site: the only site, of a cell of sites alone; else empty.
        folder: its own.
        config: its settings.
        groups: the patient groups of the only site.
    """

    cell: Cell
    seed: int
    site: str
    folder: Path
    config: Config
    groups: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return its name for a person."""
        return ", ".join(filter(None, (self.cell.name, f"seed {self.seed}", self.site)))

    @property
    def clients(self) -> int:
        """Return its number of sites."""
        return 1 if self.site else self.cell.clients

    @property
    def is_finished(self) -> bool:
        """Return whether it has been measured."""
        return (self.folder / SCORES).is_file()


def listed(plan: Plan, cache: Cache, out: Path) -> list[Job]:
    """Return all runs of a comparison, seed by seed, and write each one's job.

    Raises:
        LedgerError: a run was made with other settings.
        ConfigError: a partition is impossible, or a site would not send its updates.
    """
    found = []
    for seed in plan.seeds:
        for cell in plan.cells:
            folder = out / "cells" / cell.folder / f"seed-{seed}"
            config = cell.settings(seed)
            if cell.kind == UNTRAINED:
                found.append(Job(cell, seed, "", folder, config))
                continue
            try:
                parts, _ = parts_of(cache, config, cell.clients)
            except PartitionError as error:
                raise ConfigError(f"cell {cell.name!r}: {error}") from None
            sizes = _training_images(parts, config, cache)
            if cell.kind == TRAINED:
                found.append(Job(cell, seed, "", folder, config))
            else:
                found += _alone(plan, cell, seed, folder, config, parts, sizes)
            _check_mixed(cell, config, sizes)
    for job in found:  # all are checked before any is written
        _check(job)
    rows = cache.rows(laterals=plan.base.data.laterals)
    index, held_out = cache.index.iloc[rows], cache.held_out(plan.base.data.test_share)[rows]
    for job in found:
        if not job.is_finished:
            if job.site:
                text = published.text(index, held_out, {job.site: job.groups})
                write_atomically(job.folder / _SITE, text.encode())
            write_atomically(job.folder / JOB, json.dumps(_asked(job, cache), indent=1).encode())
    return found


def _training_images(parts: Mapping[str, Sequence[str]], config: Config, cache: Cache) -> dict[str, int]:
    """Return site -> how many images it trains on."""
    rows = cache.rows(laterals=config.data.laterals)
    rows = rows[~cache.held_out(config.data.test_share)[rows]]
    groups = cache.index["group"].iloc[rows]
    return {site: int(groups.isin(members).sum()) for site, members in parts.items()}


def _check_mixed(cell: Cell, config: Config, sizes: Mapping[str, int]) -> None:
    """Refuse updates of so few images that no site would send them: the run would wait for that site in vain."""
    for site, images in sizes.items():
        mixed = floors.least_mixed(config, images)
        if mixed < MIXED_IMAGES:
            raise ConfigError(
                f"cell {cell.name!r}: an update of {site} would mix {mixed} of its {images} images, and a site "
                f"sends none below {MIXED_IMAGES}; raise federation.local_epochs={config.federation.local_epochs:g}"
            )


def _alone(
    plan: Plan,
    cell: Cell,
    seed: int,
    folder: Path,
    config: Config,
    parts: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
) -> Iterator[Job]:
    """Yield one run for each site, which trains on that site's images alone, under its name."""
    local = config.federation.local_epochs
    for name, groups in parts.items():
        epochs = cell.epochs
        if epochs is None:
            epochs = max(1, round(plan.epochs * sum(sizes.values()) / sizes[name] / local)) * local
        own = cell.settings(seed, rounds_of(epochs, config))
        own.sim.partition, own.sim.file = "file", str((folder / name / _SITE).resolve())
        yield Job(cell, seed, name, folder / name, own, tuple(groups))


def _asked(job: Job, cache: Cache) -> dict[str, Any]:
    return {
        "clients": job.clients,
        "untrained": job.cell.kind == UNTRAINED,
        "data": str(cache.folder.resolve()),
        "settings": configs.dumps(job.config),
    }


def _check(job: Job) -> None:
    """Refuse a run that was begun with other settings than the file has now."""
    file = job.folder / JOB
    if not file.exists() or not (job.is_finished or asked.is_started(job.folder)):
        return
    try:
        before = json.loads(file.read_text())
        then = configs.as_dict(configs.loads(before["settings"], partial=True))
        clients_then, untrained_then = before["clients"], before["untrained"]
    except (ValueError, LookupError, TypeError):  # also bad UTF-8, and settings that cannot be read
        raise LedgerError(f"{file} is damaged; delete its folder to run it again") from None
    keys = [key for key in differing(then, configs.as_dict(job.config)) if key not in _NO_MATTER]
    keys += ["clients"] * (clients_then != job.clients)
    keys += ["untrained"] * (untrained_then != (job.cell.kind == UNTRAINED))
    if keys:
        raise LedgerError(
            f"{job.folder} was run with other settings ({', '.join(keys[:5])}); delete that folder to run it "
            "again, or give another --out"
        )


def run(jobs: Sequence[Job], workers: int, threads: int) -> dict[str, str]:
    """Run what is not finished.

    Args:
        workers: how many at a time.
        threads: of each, where its settings do not say (torch has `run.threads`).

    Returns:
        The title of each run that failed -> the last line of its log.
    """
    waiting = [job for job in jobs if not job.is_finished]
    failed: dict[str, str] = {}
    done, total = len(jobs) - len(waiting), len(jobs)
    clock = Clock()
    with Board() as board, _Pool(threads) as pool:
        while waiting or pool.running:
            while waiting and len(pool.running) < workers:
                pool.start(waiting.pop(0))
            for job, code, seconds in pool.ended():
                done += 1
                what = f"done in {duration(seconds)}"
                if code or not job.is_finished:
                    failed[job.title] = last_line(job.folder / LOG) or f"exit code {code}"
                    what = f"failed: {failed[job.title]}"
                board.say(
                    f"{done} of {total}: {job.title}: {what}", style="bold red" if job.title in failed else ""
                )
            running = [_progress(job) for job in pool.running]
            share = done + sum(line.done / (line.total or 1) for line in running)
            left = clock.left(share, total)
            board.lines = [Line(f"{done} of {total} runs", share, total, [left] if left else []), *running]
            time.sleep(_LOOK)
    return failed


def last_line(file: Path) -> str:
    """Return the last line of a log that is not empty; of an error, without the word."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line.removeprefix("error: ") for line in reversed(lines) if line), "")


def _progress(job: Job) -> Line:
    try:
        status = runs.read_status(job.folder, again=False)
        return Line(
            job.title, status.round, max(1, status.rounds), [f"round {status.round} of {status.rounds}"]
        )
    except runs.RunError:
        return Line(job.title, 0, 1, ["starting"])


class _Pool:
    """Processes at work; they end with the pool."""

    def __init__(self, threads: int) -> None:
        self.running: dict[Job, tuple[BaseProcess, float]] = {}
        self._threads = threads

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        end([process for process, _ in self.running.values()])

    def start(self, job: Job) -> None:
        """Start a run."""
        start_forking(worker.IMPORTS, self._threads)
        folder = str(job.folder.resolve())
        process = CONTEXT.Process(target=worker.forked, args=(folder, str(Path(folder) / LOG)))
        process.start()
        self.running[job] = process, time.monotonic()

    def ended(self) -> list[tuple[Job, int, float]]:
        """Return the runs that have ended since the last call, their exit codes and seconds."""
        found = []
        for job, (process, began) in list(self.running.items()):
            if process.exitcode is not None:
                found.append((job, process.exitcode, time.monotonic() - began))
                del self.running[job]
        return found
