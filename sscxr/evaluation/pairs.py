"""Two encoders on the same patients: the mean AUROC of their probes, and the difference, over several labels.

A single label often has too few cases at one site. The mean over the labels is one figure for each encoder, and its
bootstrap draws patients once for all labels, so that a patient with several findings counts as one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sscxr.evaluation import metrics
from sscxr.evaluation.metrics import Interval
from sscxr.evaluation.tasks import Task

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
# Cases with and without a label below which its AUROC on one site's patients is left out of the mean (ours).
MIN_CASES = 5


@dataclass(frozen=True)
class Scored:
    """One task's test images under two encoders.

    Attributes:
        positive: bool [N].
        groups: [N], patient groups.
        first, second: float [N], a probe's scores on the features of either encoder.
    """

    positive: Bools
    groups: npt.NDArray[Any]
    first: Floats
    second: Floats

    @property
    def fewest(self) -> int:
        """Return the number of images of the rarer class."""
        return int(min(self.positive.sum(), (~self.positive).sum()))


@dataclass(frozen=True)
class Pair:
    """The mean AUROC over some tasks, of two encoders on the same images.

    Attributes:
        tasks, images, patients: how many the mean is over.
        first, second: each encoder's mean AUROC.
        gap: first minus second, paired.
    """

    tasks: int
    images: int
    patients: int
    first: Interval
    second: Interval
    gap: Interval


def of_tasks(
    tasks: Sequence[Task],
    first: Sequence[Mapping[str, Floats]],
    second: Sequence[Mapping[str, Floats]],
    kind: str,
    *,
    groups: Collection[str] | None = None,
) -> list[Scored]:
    """Return one kind of probe's scores by two encoders on the tasks' test images.

    Args:
        first, second: from `probe.scores`, for these tasks.
        groups: only images of these patient groups; None: of all.
    """
    found = []
    for task, one, other in zip(tasks, first, second, strict=True):
        inside = np.ones(len(task.test), dtype=bool)
        if groups is not None:
            inside = np.isin(task.test_groups, list(groups))
        positive, of = task.test_positive[inside], task.test_groups[inside]
        found.append(Scored(positive, of, one[kind][inside], other[kind][inside]))
    return found


def compare(
    scored: Sequence[Scored], *, min_cases: int = MIN_CASES, resamples: int = 1000, seed: int = 0
) -> Pair | None:
    """Compare two encoders by the mean AUROC over tasks, with 95 % intervals over patients.

    The mean of a resample is over the tasks of which it has both classes, the same ones for both encoders.

    Args:
        scored: the tasks; those with fewer than `min_cases` images of a class are left out.
        resamples, seed: of the bootstrap.

    Returns:
        None if no task is left.
    """
    scored = [one for one in scored if one.fewest >= max(1, min_cases)]
    if not scored:
        return None
    groups = np.concatenate([one.groups for one in scored])
    whole = _means(scored, np.ones((1, len(groups)), dtype=np.int64))[:, 0]
    chunks = metrics.resampled(groups, resamples, seed)
    drawn = np.concatenate([_means(scored, weights) for weights in chunks], axis=1)
    first, second = (metrics.interval(float(value), each) for value, each in zip(whole, drawn, strict=True))
    gap = metrics.interval(float(whole[0] - whole[1]), drawn[0] - drawn[1])
    images = max(len(one.positive) for one in scored)
    return Pair(len(scored), images, len(np.unique(groups)), first, second, gap)


def _means(scored: Sequence[Scored], weights: npt.NDArray[np.int64]) -> Floats:
    """Return each encoder's mean AUROC, [2, R], under weights [R, N] of the tasks' images, task by task."""
    ends = np.cumsum([len(one.positive) for one in scored])
    areas = np.array([
        [metrics.area(metrics.steps(scores, one.positive, part)) for scores in (one.first, one.second)]
        for one, part in zip(scored, np.split(weights, ends[:-1], axis=1), strict=True)
    ])  # fmt: skip
    there = np.isfinite(areas)
    sums, counts = np.where(there, areas, 0.0).sum(axis=0), there.sum(axis=0)
    means: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means
