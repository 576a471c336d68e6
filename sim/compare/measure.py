"""The figures of finished runs, one a row: losses along the way, bytes, seconds, and the AUROC of the probes.

They are read from the files of each run (`rounds.jsonl`, `sites.csv`, `scores.csv`), so that a new kind of figure
does not require running anything again.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sim import scores
from sim.compare import worker
from sim.compare.file import ALONE, UNTRAINED
from sim.compare.jobs import Job
from sim.compare.worker import SCORES
from sscxr import printable, runs
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.evaluation import metrics
from sscxr.training.batches import batches_per_epoch, round_of

COLUMNS = ("cell", "seed", "site", "views", "bytes", "figure", "cohort", "label", "value", "seconds")
HELD_OUT, TRAINING, UP, DOWN = "held-out loss", "training loss", "bytes up", "bytes down"
ALL_SITES = "loss on all held-out images"
MEAN, WORST = ", mean of the sites", ", worst site"  # endings of a figure's name
AUROC = " AUROC"  # behind the kind of a probe


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        cell, seed: the run's.
        site: the site that the figure is of; empty: all of them.
        views: images drawn by all sites together until then; by the site, if it is alone.
        bytes: sent and received by all sites together until then; 0 for a single place.
        figure: its name.
        cohort, label: of a probe; else empty.
        value: the figure.
        seconds: of all rounds until then.
    """

    cell: str
    seed: int
    site: str
    views: int
    bytes: int
    figure: str
    cohort: str
    label: str
    value: float
    seconds: float


@dataclass(frozen=True)
class Point:
    """A round with a held-out loss, or the last one.

    Attributes:
        views, up, down, seconds: sums until then.
        training: the mean over images of the losses since the point before, and how many images that is.
        held_out: site -> its loss and its number of held-out images.
    """

    views: int
    up: int
    down: int
    seconds: float
    training: tuple[float, int]
    held_out: Mapping[str, tuple[float, int]]


def of(jobs: Sequence[Job], cache: Cache) -> list[Row]:
    """Return the figures of all finished runs, in the order of the runs."""
    found: list[Row] = []
    for (_, _), group in itertools.groupby(jobs, lambda job: (job.seed, job.cell.name)):
        together = list(group)
        points = {job.site: list(points_of(job, cache)) for job in together if job.is_finished}
        for job in together:
            if job.is_finished:
                found += _rows(job, points[job.site])
        if together[0].cell.kind == ALONE and len(points) == len(together):
            found += _over_sites(together, points)
    return found


def whole(jobs: Sequence[Job]) -> list[Job]:
    """Return the finished runs; of a cell of sites alone, those of the seeds that every site has finished."""
    groups = itertools.groupby(jobs, lambda job: (job.seed, job.cell.name))
    together = [list(group) for _, group in groups]
    return [job for group in together if all(job.is_finished for job in group) for job in group]


def table(rows: Sequence[Row]) -> str:
    """Return the figures as CSV."""
    return printable.table(COLUMNS, ([getattr(row, name) for name in COLUMNS] for row in rows))


def _rows(job: Job, points: Sequence[Point]) -> Iterator[Row]:
    for point in points:
        yield from _point_rows(job, job.site, point)
    if (value := loss_on_all(job)) is not None:
        yield _row(job, job.site, points, ALL_SITES, "", "", value)
    for (cohort, label, kind), value in aurocs(job).items():
        yield _row(job, job.site, points, f"{kind}{AUROC}", cohort, label, value)


def _row(
    job: Job, site: str, points: Sequence[Point], figure: str, cohort: str, label: str, value: float
) -> Row:
    """Return a row about the end of a run."""
    end = points[-1] if points else Point(0, 0, 0, 0.0, (math.nan, 0), {})
    sent = _bytes(job, end)
    seconds = round(end.seconds, 3)
    return Row(job.cell.name, job.seed, site, end.views, sent, figure, cohort, label, value, seconds)


def _bytes(job: Job, point: Point) -> int:
    return 0 if is_one_place(job) else point.up + point.down


def is_one_place(job: Job) -> bool:
    """Return whether a run has a single site, which in practice would send nothing."""
    return job.cell.kind == ALONE or job.cell.clients == 1


def _point_rows(job: Job, site: str, point: Point) -> Iterator[Row]:
    def row(figure: str, value: float, of: str = site) -> Row:
        at = (point.views, _bytes(job, point))
        return Row(job.cell.name, job.seed, of, *at, figure, "", "", value, round(point.seconds, 3))

    if math.isfinite(point.training[0]):
        yield row(TRAINING, point.training[0])
    losses = {name: loss for name, (loss, _) in point.held_out.items()}
    if losses:
        yield row(HELD_OUT, mean_loss(point.held_out.values()))
    if len(losses) > 1:
        yield row(HELD_OUT + MEAN, math.fsum(losses.values()) / len(losses))
        yield row(HELD_OUT + WORST, max(losses.values()))
        if not is_one_place(job):
            for name in sorted(losses, key=runs.natural):
                yield row(HELD_OUT, losses[name], name)
    for name, value in ((UP, point.up), (DOWN, point.down)):
        yield row(name, 0 if is_one_place(job) else value)


def mean_loss(losses: Iterable[tuple[float, int]]) -> float:
    """Return the mean over images of losses, each with its number of images; NaN without any."""
    each = list(losses)
    images = sum(count for _, count in each)
    return math.fsum(loss * count for loss, count in each) / images if images else math.nan


def _over_sites(jobs: Sequence[Job], points: Mapping[str, Sequence[Point]]) -> Iterator[Row]:
    """Yield figures over the sites of a cell alone: at each point that all of them have, and at the end."""
    counts = {len(each) for each in points.values()}
    steps = (
        zip(*points.values(), strict=True) if len(counts) == 1 else [[each[-1] for each in points.values()]]
    )
    together = [_together(step) for step in steps]
    for point in together:
        yield from _point_rows(jobs[0], "", point)
    losses = [loss for job in jobs if (loss := loss_on_all(job)) is not None]
    for ending, loss in (("", math.fsum(losses) / len(losses)), (WORST, max(losses))) if losses else ():
        yield _row(jobs[0], "", together, ALL_SITES + ending, "", "", loss)
    found = [aurocs(job) for job in jobs]
    for cohort, label, kind in found[0]:
        values = [each[cohort, label, kind] for each in found]
        for ending, value in (("", math.fsum(values) / len(values)), (WORST, min(values))):
            yield _row(jobs[0], "", together, f"{kind}{AUROC}{ending}", cohort, label, value)


def _together(points: Sequence[Point]) -> Point:
    trained = [point.training for point in points if point.training[1]]
    return Point(
        views=sum(point.views for point in points),
        up=sum(point.up for point in points),
        down=sum(point.down for point in points),
        seconds=math.fsum(point.seconds for point in points),
        training=(mean_loss(trained), sum(images for _, images in trained)),
        held_out={site: loss for point in points for site, loss in point.held_out.items()},
    )


def points_of(job: Job, cache: Cache) -> Iterator[Point]:
    """Yield the points of a run; none of an untrained cell."""
    if job.cell.kind == UNTRAINED:
        return
    sites = runs.read_sites(job.folder / runs.SITES)
    sites = sites[sites["outcome"] == "folded"]
    replies: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for number, images, loss in zip(sites["round"], sites["images"], sites["loss"], strict=True):
        replies[int(number)].append((int(images), float(loss)))
    counts = _held_out_images(job, cache)
    views = up = down = 0
    seconds, losses = 0.0, list[tuple[float, int]]()
    for record in runs.read_rounds(job.folder / runs.ROUNDS):
        number = int(record["round"])
        drawn = [(loss, views_of_round(images, job.config, number - 1)) for images, loss in replies[number]]
        losses += drawn
        views += sum(count for _, count in drawn)
        up, down = up + int(record["bytes_up"]), down + int(record["bytes_down"])
        seconds += float(record["seconds"])
        if record["held_out"] or number == job.config.federation.rounds:
            held_out = {site: (float(loss), counts[site]) for site, loss in record["held_out"].items()}
            training = (mean_loss(losses), sum(count for _, count in losses))
            yield Point(views, up, down, seconds, training, held_out)
            losses = []


def views_of_round(images: int, config: Config, number: int) -> int:
    """Return how many images a site draws in a round, from 0; an image that is drawn twice counts twice."""
    batch, steps = round_of(config, images, number)
    return _views_until(steps.stop, images, batch) - _views_until(steps.start, images, batch)


def _views_until(step: int, images: int, batch_size: int) -> int:
    """Return the images in the batches before a step; an epoch's first batches have one more where they must."""
    per_epoch = batches_per_epoch(images, batch_size)
    epochs, rest = divmod(step, per_epoch)
    size, larger = divmod(images, per_epoch)
    return epochs * images + rest * size + min(rest, larger)


def _held_out_images(job: Job, cache: Cache) -> dict[str, int]:
    """Return site -> the images that its held-out loss is over."""
    rows = cache.rows(laterals=job.config.data.laterals)
    rows = rows[cache.held_out(job.config.data.test_share)[rows]]
    groups = cache.index["group"].iloc[rows]
    found = {}
    for file in sorted((job.folder / "sites").glob("*/groups.txt")):
        found[file.parent.name] = int(groups.isin(file.read_text().split()).sum())
    return found


def loss_on_all(job: Job) -> float | None:
    """Return a run's loss on the held-out images of all sites; None without an averaged head."""
    file = job.folder / worker.ALL_SITES
    return float(json.loads(file.read_text())["loss"]) if file.exists() else None


def read_scores(job: Job) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Return the scores of a run's probes by cohort, label and kind."""
    return scores.read(job.folder / SCORES)


def aurocs(job: Job) -> dict[tuple[str, str, str], float]:
    """Return the AUROC of a run's probes by cohort, label and kind."""
    return {
        task: metrics.auroc(rows["score"].to_numpy(), rows["positive"].to_numpy(dtype=np.int64) > 0)
        for task, rows in read_scores(job).items()
    }
