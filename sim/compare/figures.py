"""Cells compared: each figure with its interval, the difference to the reference, and which cells are best.

AUROCs have one nested bootstrap: each resample draws patients, the same ones for all cells and seeds, and, where
there are several, seeds, the same ones for both cells of a difference. With few seeds the percentiles are somewhat
narrow: resampling S seeds shows (S - 1) / S of the variance between them. Losses have Student's t interval over
seeds, paired by seed in a difference; with one seed they have none. Each interval is of one comparison, at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from sim.compare import measure
from sim.compare.file import UNTRAINED, Plan
from sim.compare.jobs import Job
from sim.compare.measure import ALL_SITES, AUROC, HELD_OUT
from sscxr.evaluation import metrics
from sscxr.evaluation.metrics import Interval
from sscxr.runs import RunError

Floats = npt.NDArray[np.floating[Any]]

_SEED = 0  # of the bootstrap


@dataclass(frozen=True)
class Figure:
    """One figure of all cells that have it.

    Attributes:
        name: such as "held-out loss" or "linear AUROC".
        cohort, label: of a probe; else empty.
        rising: whether more is better.
        cells: cell -> its mean over seeds.
        differences: cell -> its difference to the reference, without the reference.
        best: the cell with the best mean.
        alike: the cells whose difference to the best has an interval with 0 in it, or none.
    """

    name: str
    cohort: str
    label: str
    rising: bool
    cells: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    best: str
    alike: Sequence[str]

    @property
    def title(self) -> str:
        """Return the name with label and cohort."""
        return ", ".join(filter(None, (self.name, self.label, self.cohort)))

    def verdict(self, cell: str) -> str:
        """Return better or worse if the difference's interval is beyond 0; else empty."""
        gap = self.differences.get(cell)
        if gap is None or not (gap.low > 0 or gap.high < 0):
            return ""
        return "better" if (gap.low > 0) == self.rising else "worse"


def of(plan: Plan, jobs: Sequence[Job], rows: pd.DataFrame) -> list[Figure]:
    """Return the losses, then each probe's AUROC, as far as cells are finished.

    The sites' own losses are of cells with the same sites: each site's images are corrupted by its own alone.
    """
    found = []
    for name in (ALL_SITES, HELD_OUT, HELD_OUT + measure.MEAN, HELD_OUT + measure.WORST):
        losses = last(rows, name)
        if name != ALL_SITES:
            same = _with_the_same_sites(plan)
            losses = {cell: losses[cell] for cell in losses if cell in same}
        if losses:
            found.append(_of_losses(name, losses, plan.reference))
    scores: dict[tuple[str, str, str], _Scores] = {}
    for job in measure.whole(jobs):
        for task, table in measure.read_scores(job).items():
            one = scores.setdefault(task, _Scores.of(table))
            one.add(job, table)
    for (cohort, label, kind), one in scores.items():
        found.append(
            _of_scores(f"{kind}{AUROC}", cohort, label, one, plan.reference, resamples=plan.resamples)
        )
    return found


def _with_the_same_sites(plan: Plan) -> set[str]:
    """Return the cells with the same sites as the reference; if it is one place, as most cells have."""
    parts = {
        cell.name: (cell.clients, asdict(cell.config.sim))
        for cell in plan.cells
        if cell.kind != UNTRAINED and cell.clients > 1
    }
    each = list(parts.values())
    usual = parts.get(plan.reference) or max(each, key=each.count, default=None)
    return {name for name, part in parts.items() if part == usual}


def last(rows: pd.DataFrame, figure: str) -> dict[str, dict[int, float]]:
    """Return the last value of a figure over all sites: cell -> seed -> value."""
    mine = rows[(rows["figure"] == figure) & (rows["site"] == "")]
    return {
        str(cell): dict(zip(part["seed"], part["value"], strict=True))
        for cell, part in mine.groupby("cell", sort=False)
    }


def _of_losses(name: str, losses: Mapping[str, Mapping[int, float]], reference: str) -> Figure:
    def gap(one: str, other: str) -> Interval:
        common = [seed for seed in losses[one] if seed in losses[other]]
        return t_interval([losses[one][seed] - losses[other][seed] for seed in common])

    cells = {cell: t_interval(list(values.values())) for cell, values in losses.items()}
    return _figure(name, "", "", False, cells, reference, gap)


def t_interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's t interval; NaN as its ends for a single value."""
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + metrics.LEVEL) / 2, len(values) - 1)) * float(
        np.std(values, ddof=1) / math.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half)


class _Scores:
    """One probe's scores on the same test images by all cells.

    Attributes:
        images: the images' hashes [N].
        positive: bool [N].
        groups: [N].
        cells: cell -> seed -> scores [N]; several of a cell of sites alone.
    """

    def __init__(
        self, images: npt.NDArray[Any], positive: npt.NDArray[np.bool_], groups: npt.NDArray[Any]
    ) -> None:
        self.images, self.positive, self.groups = images, positive, groups
        self.cells: dict[str, dict[int, list[Floats]]] = {}

    @classmethod
    def of(cls, table: Any) -> "_Scores":
        """Take the images of the first run's table."""
        positive = table["positive"].to_numpy(dtype=np.int64) > 0
        return cls(table["image"].to_numpy(), positive, table["group"].to_numpy())

    def add(self, job: Job, table: Any) -> None:
        """Add a run's scores.

        Raises:
            RunError: they are of other images.
        """
        if not np.array_equal(table["image"].to_numpy(), self.images):
            raise RunError(f"{job.folder}: its scores are of other images than those of the other runs")
        scores = table["score"].to_numpy(dtype=np.float64)
        self.cells.setdefault(job.cell.name, {}).setdefault(job.seed, []).append(scores)


def _of_scores(
    name: str, cohort: str, label: str, scores: _Scores, reference: str, *, resamples: int
) -> Figure:
    values = {
        cell: {seed: float(np.mean([metrics.auroc(each, scores.positive) for each in runs]))
               for seed, runs in seeds.items()}
        for cell, seeds in scores.cells.items()
    }  # fmt: skip
    drawn = resampled(scores.cells, scores.positive, scores.groups, resamples=resamples)

    def over_seeds(of: Mapping[int, Floats]) -> Floats:
        return nested(np.array([of[seed] for seed in sorted(of)]))

    def gap(one: str, other: str) -> Interval:
        common = sorted(values[one].keys() & values[other].keys())
        if not common:
            return Interval(math.nan, math.nan, math.nan)
        value = float(np.mean([values[one][seed] - values[other][seed] for seed in common]))
        return metrics.interval(
            value, over_seeds({seed: drawn[one][seed] - drawn[other][seed] for seed in common})
        )

    cells = {
        cell: metrics.interval(float(np.mean(list(seeds.values()))), over_seeds(drawn[cell]))
        for cell, seeds in values.items()
    }
    return _figure(name, cohort, label, True, cells, reference, gap)


def resampled(
    cells: Mapping[str, Mapping[int, Sequence[Floats]]],
    positive: npt.NDArray[np.bool_],
    groups: npt.NDArray[Any],
    *,
    resamples: int,
) -> dict[str, dict[int, Floats]]:
    """Return AUROCs under resampled patients, the same ones for all cells and seeds: cell -> seed -> [R].

    Args:
        cells: cell -> seed -> scores [N] of one or several encoders, whose AUROCs are averaged.
        positive, groups: [N], of the test images.
        resamples: R.
    """
    found: dict[str, dict[int, list[Floats]]] = {
        cell: {seed: [] for seed in seeds} for cell, seeds in cells.items()
    }
    for weights in metrics.resampled(groups, resamples, _SEED):
        for cell, seeds in cells.items():
            for seed, each in seeds.items():
                areas = [metrics.area(metrics.steps(scores, positive, weights)) for scores in each]
                found[cell][seed].append(np.mean(areas, axis=0))
    return {
        cell: {seed: np.concatenate(parts) for seed, parts in seeds.items()} for cell, seeds in found.items()
    }


def nested(values: Floats) -> Floats:
    """Return the mean over resampled seeds in each resample of the patients: float [R].

    Args:
        values: float [S, R], of S seeds; the same S gives the same draws.
    """
    seeds, resamples = values.shape
    draws = np.random.default_rng(_SEED).integers(seeds, size=(seeds, resamples))
    mean: Floats = np.take_along_axis(values, draws, axis=0).mean(axis=0)
    return mean


def _figure(
    name: str, cohort: str, label: str, rising: bool, cells: Mapping[str, Interval], reference: str, gap: Any
) -> Figure:
    known = [cell for cell in cells if math.isfinite(cells[cell].value)]
    best = (max if rising else min)(known, key=lambda cell: cells[cell].value)
    gaps = {cell: gap(cell, best) for cell in known if cell != best}
    alike = [cell for cell, found in gaps.items() if not (found.low > 0 or found.high < 0)]
    differences = (
        {cell: gap(cell, reference) for cell in known if cell != reference} if reference in cells else {}
    )
    return Figure(name, cohort, label, rising, cells, differences, best, alike)
