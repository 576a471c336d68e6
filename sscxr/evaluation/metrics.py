"""Figures of a binary classifier and their uncertainty over patients.

Images of one patient resemble each other, so the bootstrap draws patient groups, not images: intervals over
images are too narrow if patients have several. One resample is a row of weights (how often each image's
patient was drawn). Cases are sorted by score once, and the weights of tied scores summed; every figure of a
thousand resamples is then a cumulative sum over these steps.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

# How many weights are in memory at a time, which bounds it for any test set.
CHUNK = 4_000_000
THRESHOLD = 0.5  # probability at and above which a case is called positive
LEVEL = 0.95  # nominal coverage of an interval
BINS = 15  # of equal width, for the calibration error (Guo et al., arXiv 1706.04599)
_EDGES = np.linspace(0, 1, BINS + 1)


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval.

    Attributes:
        value: the figure on the sample itself.
        low: lower bound; NaN if no resample had both classes.
        high: upper bound; NaN likewise.
    """

    value: float
    low: float
    high: float


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Return the area under the ROC curve; ties count half. NaN if a class is absent.

    Args:
        scores: float [N], higher for a likelier positive.
        positive: bool [N].
    """
    return float(area(steps(scores, positive, np.ones((1, np.size(scores)))))[0])


@dataclass(frozen=True)
class Steps:
    """A sample under many weightings, with cases of equal score combined.

    Attributes:
        scores: float [K], the distinct scores, ascending.
        positives, negatives: float [R, K], the weight of each class at each score.
    """

    scores: Floats
    positives: Floats
    negatives: Floats


def steps(scores: npt.ArrayLike, positive: npt.ArrayLike, weights: npt.ArrayLike) -> Steps:
    """Sort and sum a sample.

    Args:
        scores: float [N].
        positive: bool [N].
        weights: float or int [R, N], not below 0: how often each case counts.
    """
    scores, positive = _checked(scores, positive)
    levels, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    in_order = np.asarray(weights, dtype=np.float64)[:, order]
    positives = np.add.reduceat(in_order * positive[order], starts, axis=1)
    negatives = np.add.reduceat(in_order * ~positive[order], starts, axis=1)
    return Steps(levels, positives, negatives)


def area(sample: Steps) -> Floats:
    """Return the area under the ROC curve, ties counting half: float [R]; NaN if a class is absent."""
    below = np.cumsum(sample.negatives, axis=1) - sample.negatives / 2
    pairs = sample.positives.sum(axis=1) * sample.negatives.sum(axis=1)
    return _shares((sample.positives * below).sum(axis=1), pairs)


def average_precision(sample: Steps) -> Floats:
    """Return the area under the precision-recall curve, without interpolation: float [R]; NaN if a class is absent.

    This is the mean over the positives of the precision at each one's score (scikit-learn's definition). A random
    classifier has the share of positives, not a half.
    """
    found, called = _from_above(sample.positives), _from_above(sample.positives + sample.negatives)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    value = _shares((sample.positives * precision).sum(axis=1), found[:, 0])
    return np.where(sample.negatives.sum(axis=1) > 0, value, np.nan)


def accuracy(sample: Steps) -> Floats:
    """Return the share of correct cases, those of at least `THRESHOLD` being called positive: float [R]."""
    called = sample.scores >= THRESHOLD
    right = sample.positives[:, called].sum(axis=1) + sample.negatives[:, ~called].sum(axis=1)
    return _shares(right, sample.positives.sum(axis=1) + sample.negatives.sum(axis=1))


def operating_point(sample: Steps, specificity: float) -> tuple[Floats, Floats, Floats]:
    """Return the point of the ROC curve with the best sensitivity at a given specificity.

    It is chosen on the same cases that it is measured on, separately in every resample.

    Args:
        sample: the cases.
        specificity: the least specificity, 0 .. 1.

    Returns:
        sensitivity, specificity, threshold (cases of at least this score are called positive; infinite if none
        may be): three float [R], NaN if a class is absent.
    """
    none = np.zeros((len(sample.positives), 1))
    # [R, K + 1]; the last step calls no case positive.
    found = np.hstack([_from_above(sample.positives), none])
    spared = np.hstack([none, np.cumsum(sample.negatives, axis=1)])
    total = np.broadcast_to(spared[:, -1:], spared.shape)
    reached = _shares(spared, total) >= specificity
    first = reached.argmax(axis=1)[:, None]
    sensitivity = _shares(np.take_along_axis(found, first, axis=1)[:, 0], found[:, 0])
    achieved = _shares(np.take_along_axis(spared, first, axis=1)[:, 0], spared[:, -1])
    threshold = np.append(sample.scores, np.inf)[first[:, 0]]
    absent = np.isnan(sensitivity) | np.isnan(achieved)
    sensitivity[absent], achieved[absent], threshold[absent] = np.nan, np.nan, np.nan
    return sensitivity, achieved, threshold


def calibration_error(sample: Steps) -> Floats:
    """Return the expected calibration error: float [R], 0 .. 1.

    Cases are in bins of equal width by the probability of being positive; the error is the mean over cases of the
    distance, in the case's bin, between the mean probability and the share of positives (Naeini et al., AAAI
    2015; Guo et al., arXiv 1706.04599, use the probability of the likelier class instead). With few cases it is
    too large: a perfectly calibrated sample has an error above 0, and its resamples a larger one.
    """
    total = sample.positives + sample.negatives
    starts = np.flatnonzero(np.diff(_bin(sample.scores), prepend=-1))
    gaps = np.add.reduceat(sample.positives - total * sample.scores, starts, axis=1)
    return _shares(np.abs(gaps).sum(axis=1), total.sum(axis=1))


def reliability(probabilities: npt.ArrayLike, positive: npt.ArrayLike) -> list[dict[str, float]]:
    """Return the reliability curve, which the calibration error sums up.

    Args:
        probabilities: float [N], 0 .. 1.
        positive: bool [N].

    Returns:
        For each bin its ends `low` and `high` (the last includes 1), its cases `n`, their `mean` probability and
        their share of positives, `observed`; both are NaN without cases.
    """
    probabilities, positive = _checked(probabilities, positive)
    place = _bin(probabilities)
    n, summed, found = (
        np.bincount(place, weights, minlength=BINS) for weights in (None, probabilities, positive)
    )
    names = ("low", "high", "n", "mean", "observed")
    columns = (_EDGES[:-1], _EDGES[1:], n, _shares(summed, n), _shares(found, n))
    return [
        dict(zip(names, row, strict=True)) for row in zip(*(one.tolist() for one in columns), strict=True)
    ]


def bootstrap(
    scores: npt.ArrayLike,
    positive: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    baseline: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return the AUROC with a percentile bootstrap interval over patient groups; or a gain in it, paired.

    A resample without positives or without negatives has no AUROC and is left out of the percentiles.

    Args:
        scores: float [N].
        positive: bool [N].
        groups: [N], the patient group of each image.
        baseline: float [N], whose AUROC is subtracted; both use the same resamples, so that effects of easy or
            hard patients on both cancel. None: nothing is subtracted.
        resamples: number of resamples.
        seed: of the resamples; the same seed and groups give the same resamples.
    """
    scores, positive = _checked(scores, positive)
    less = None if baseline is None else _checked(baseline, positive)[0]

    def gain(weights: npt.ArrayLike) -> Floats:
        areas = area(steps(scores, positive, weights))
        return areas if less is None else areas - area(steps(less, positive, weights))

    drawn = [gain(weights) for weights in resampled(groups, resamples, seed)]
    return interval(float(gain(np.ones((1, len(scores))))[0]), np.concatenate(drawn))


def resampled(groups: npt.ArrayLike, resamples: int, seed: int = 0) -> Iterator[npt.NDArray[np.int64]]:
    """Yield chunks [R', N] of weights: how often each image's group was drawn, groups with replacement."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples} is below 1")
    # By first appearance, not by name: group names are salted hashes, and the salt must not matter.
    codes, names = pd.factorize(np.asarray(groups))
    generator = np.random.default_rng(seed)
    chunk = max(1, CHUNK // max(1, len(codes)))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        yield counts[:, codes]


def interval(value: float, drawn: Floats) -> Interval:
    """Return a figure with the 95 % percentile interval of its resamples [R], ignoring NaN."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def figure(value: float, drawn: Floats, n: int) -> dict[str, Any]:
    """Return {value, low, high, n} for JSON: a figure, its `interval`, and its number of images."""
    return {name: plain(number) for name, number in asdict(interval(value, drawn)).items()} | {"n": n}


def plain(value: float) -> float | None:
    """Return a number for JSON: None if it is not finite."""
    return value if math.isfinite(value) else None


def p_value(drawn: Floats) -> float:
    """Return the p value of a two-sided bootstrap test that a difference is 0, from its resamples [R]; or NaN.

    It is twice the share of resamples on the rarer side of 0, with the sample itself counted on both
    sides (Davison and Hinkley, 1997, 4.2): with R resamples it is at least 2 / (R + 1).
    """
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return np.nan
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(drawn) + 1)))


def _from_above(weights: Floats) -> Floats:
    """Return [R, K], the weight at and above each score."""
    summed: Floats = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
    return summed


def _shares(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
    """Return part / whole, NaN if whole is 0."""
    shares: Floats = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return shares


def _bin(probabilities: Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each probability, int64 [N]; a bin includes its lower end, the last one both ends."""
    return np.clip(np.searchsorted(_EDGES, probabilities, side="right") - 1, 0, BINS - 1)


def _checked(scores: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[Floats, Bools]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive)
    if scores.ndim != 1 or scores.shape != positive.shape or not len(scores):
        raise ValueError(
            f"scores {scores.shape} and classes {positive.shape}: two equal, non-empty [N] expected"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return scores, positive.astype(bool)
