"""AUROC and its uncertainty over patients.

Images of one patient resemble each other, so the bootstrap draws patient groups, not images: intervals drawn
over images are too narrow wherever a patient has several. One resample is a row of weights (how often each
image's patient was drawn), and the AUROC of a thousand resamples is one cumulative sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

# Weights held at once, in numbers: bounds the memory whatever the size of the test set.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval.

    Attributes:
        value: the figure on the sample itself.
        low: lower bound; NaN where no resample had both classes.
        high: upper bound; NaN likewise.
    """

    value: float
    low: float
    high: float


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the ROC curve; ties count half. NaN where a class is absent.

    Args:
        scores: float [N], higher for a likelier positive.
        positive: bool [N].
    """
    scores, positive = _checked(scores, positive)
    return float(weighted_auroc(scores, positive, np.ones((1, len(scores))))[0])


def weighted_auroc(scores: npt.ArrayLike, positive: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """AUROC of one sample under many weightings: float [R]; NaN where the weights leave one class only.

    Args:
        scores: float [N].
        positive: bool [N].
        weights: float or int [R, N], not below 0: how often each case counts.
    """
    scores, positive = _checked(scores, positive)
    _, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    # Cases of one score are one step of the curve: weights are summed between the steps' first cases.
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    sorted_weights = np.asarray(weights, dtype=np.float64)[:, order]
    of_positives = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
    of_negatives = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
    below = np.cumsum(of_negatives, axis=1) - of_negatives / 2
    pairs = of_positives.sum(axis=1) * of_negatives.sum(axis=1)
    won = (of_positives * below).sum(axis=1)
    areas: Floats = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return areas


def bootstrap(
    scores: npt.ArrayLike,
    positive: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """AUROC with a percentile bootstrap interval over patient groups.

    A resample without positives or without negatives has no AUROC and is left out of the percentiles.

    Args:
        scores: float [N].
        positive: bool [N].
        groups: [N], the patient group of each image.
        resamples: number of resamples.
        seed: of the resamples; the same seed and groups give the same resamples.
        level: coverage aimed at, 0 .. 1.
    """
    scores, positive = _checked(scores, positive)
    drawn = [weighted_auroc(scores, positive, weights) for weights in _resampled(groups, resamples, seed)]
    return _percentiles(auroc(scores, positive), np.concatenate(drawn), level)


def bootstrap_difference(
    scores: npt.ArrayLike,
    baseline: npt.ArrayLike,
    positive: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """AUROC of `scores` minus that of `baseline` on the same images: a paired bootstrap over groups.

    Both are taken on the same resamples, so what makes a patient easy or hard for both cancels out.
    Arguments as in `bootstrap`.
    """
    scores, positive = _checked(scores, positive)
    baseline, _ = _checked(baseline, positive)
    drawn = [
        weighted_auroc(scores, positive, weights) - weighted_auroc(baseline, positive, weights)
        for weights in _resampled(groups, resamples, seed)
    ]
    return _percentiles(auroc(scores, positive) - auroc(baseline, positive), np.concatenate(drawn), level)


def _resampled(groups: npt.ArrayLike, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Chunks [R', N] of weights: how often each image's group was drawn, groups with replacement."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples} is below 1")
    # By first appearance, not by name: group names are salted hashes, and a salt must change nothing.
    codes, names = pd.factorize(np.asarray(groups))
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK // max(1, len(codes)))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        yield counts[:, codes]


def _percentiles(value: float, drawn: Floats, level: float) -> Interval:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _checked(scores: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[Floats, Bools]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or scores.shape != positive.shape or not len(scores):
        raise ValueError(
            f"scores {scores.shape} and classes {positive.shape}: two equal, non-empty [N] wanted"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return scores, positive.astype(bool)
