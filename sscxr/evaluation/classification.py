"""Evaluates a classifier: figures with intervals over patients, and by subgroup with counts.

Of several labels each has its figures (`auroc:LABEL`), and their mean over labels has the plain name (`auroc`).
An unknown label is left out of that label's figures. In a subgroup without one of the classes, figures that need
both are null; the subgroup's counts are beside them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.evaluation import metrics

Floats = npt.NDArray[np.floating[Any]]
Groups = npt.ArrayLike

FIGURES = ("auroc", "aupr", "accuracy", "sensitivity", "specificity", "ece")
SUBGROUPS = ("source", "view", "sex", "age_band")  # columns of a cache's index


def evaluate(
    probabilities: Floats,
    truth: Floats,
    index: pd.DataFrame,
    labels: Sequence[str],
    *,
    specificity: float = 0.9,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return all figures of a classifier on a set of images, ready for JSON (null for undefined ones).

    Args:
        probabilities: float [N, L], of each label being present.
        truth: float [N, L], 1 present, 0 absent, NaN unknown.
        index: a cache's index, N rows, with the patient groups and the columns of the subgroups.
        labels: L names.
        specificity: at which sensitivity is measured.
        resamples: of the bootstrap.

    Returns:
        What `figures` returns; `reliability`: label -> the bins of the reliability curve; `by`: source, view,
        sex and age_band -> value ("unknown" if empty) -> what `figures` returns for those images.

    Raises:
        ValueError: no image has a known label, or the shapes do not agree.
    """
    known = np.flatnonzero(np.isfinite(truth).any(axis=1))
    probabilities, truth, index = probabilities[known], truth[known], index.iloc[known]
    settings: dict[str, Any] = {"specificity": specificity, "resamples": resamples}
    found = figures(probabilities, truth, index["group"], labels, **settings)
    found["reliability"] = {
        label: [
            {name: metrics.plain(value) for name, value in one.items()}
            for one in metrics.reliability(probabilities[rows, place], truth[rows, place] > 0.5)
        ]
        for place, label, rows in _known(truth, labels)
    }

    def of(rows: npt.NDArray[np.bool_]) -> dict[str, Any]:
        return figures(probabilities[rows], truth[rows], index["group"][rows], labels, **settings)

    return found | {"by": by_subgroup(index, of)}


def by_subgroup(
    index: pd.DataFrame, figures_of: Callable[[npt.NDArray[np.bool_]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return for each of `SUBGROUPS` value ("unknown" if empty) -> the figures of those rows, bool [N]."""
    found = {}
    for column in SUBGROUPS:
        names = index[column].replace("", "unknown").to_numpy()
        found[column] = {str(name): figures_of(names == name) for name in sorted(set(names))}
    return found


def figures(
    probabilities: Floats,
    truth: Floats,
    groups: Groups,
    labels: Sequence[str],
    *,
    specificity: float = 0.9,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return figures with 95 % intervals over patients; arguments as in `evaluate`, groups [N].

    The interval of `ece` is around its value: its resamples are shifted by their average excess over it.

    Returns:
        Each of `FIGURES`, and for several labels each `FIGURE:LABEL`: {value, low, high, n}, with n its number of
        images. `sensitivity` and `specificity` belong to one threshold, chosen on these images. Then counts: n
        images and patients with a known label, `positives` and `known` by label; `threshold` by label, null if no
        case may be called positive, and the specificity that it was chosen for, `at_specificity`.
    """
    probabilities, truth, groups = _checked(probabilities, truth, groups, labels)
    ones = np.ones((1, len(truth)))
    values = _values(probabilities, truth, ones, labels, specificity)
    chunks = [
        _values(probabilities, truth, weights, labels, specificity)
        for weights in metrics.resampled(groups, resamples)
    ]
    # Drawing patients with replacement increases a calibration error: only the resamples' spread is used.
    for name in (name for name in values if name.startswith("ece") and np.isfinite(values[name]).all()):
        excess = np.nanmean(np.concatenate([chunk[name] for chunk in chunks])) - values[name]
        chunks = [{**chunk, name: np.maximum(chunk[name] - excess, 0)} for chunk in chunks]
    found = _described(values, chunks, truth, labels) | _counts(truth, groups, labels)
    found["threshold"] = dict.fromkeys(labels)
    for place, label, rows in _known(truth, labels):
        sample = metrics.steps(probabilities[rows, place], truth[rows, place] > 0.5, ones[:, rows])
        found["threshold"][label] = metrics.plain(float(metrics.operating_point(sample, specificity)[2][0]))
    return found | {"at_specificity": specificity}


def difference(
    probabilities: Floats,
    baseline: Floats,
    truth: Floats,
    groups: Groups,
    labels: Sequence[str],
    *,
    specificity: float = 0.9,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return figures of one classifier minus another's on the same images, by a paired bootstrap over patients.

    Arguments as in `evaluate`; `baseline` is like `probabilities`. If a difference's interval does not contain 0,
    the choice of patients does not explain it.

    Returns:
        As `figures`, without thresholds; each figure also has `p`, of the test for no difference.
    """
    _checked(baseline, truth, groups, labels)
    probabilities, truth, groups = _checked(probabilities, truth, groups, labels)

    def gains(weights: npt.NDArray[Any]) -> dict[str, Floats]:
        ours = _values(probabilities, truth, weights, labels, specificity)
        theirs = _values(baseline, truth, weights, labels, specificity)
        return {name: ours[name] - theirs[name] for name in ours}

    chunks = [gains(weights) for weights in metrics.resampled(groups, resamples)]
    found = _described(gains(np.ones((1, len(truth)))), chunks, truth, labels)
    for name, figure in found.items():
        figure["p"] = metrics.plain(metrics.p_value(np.concatenate([chunk[name] for chunk in chunks])))
    return found | _counts(truth, groups, labels)


def _values(
    probabilities: Floats,
    truth: Floats,
    weights: npt.NDArray[Any],
    labels: Sequence[str],
    specificity: float,
) -> dict[str, Floats]:
    """Return every figure under many weightings [R, N], by its name: float [R]."""
    by_label = {label: dict.fromkeys(FIGURES, np.full(len(weights), np.nan)) for label in labels}
    for place, label, rows in _known(truth, labels):
        sample = metrics.steps(probabilities[rows, place], truth[rows, place] > 0.5, weights[:, rows])
        sensitivity, achieved, _ = metrics.operating_point(sample, specificity)
        by_label[label] = {
            "auroc": metrics.area(sample),
            "aupr": metrics.average_precision(sample),
            "accuracy": metrics.accuracy(sample),
            "sensitivity": sensitivity,
            "specificity": achieved,
            "ece": metrics.calibration_error(sample),
        }
    if len(labels) == 1:
        return by_label[labels[0]]
    found = {name: _mean([by_label[label][name] for label in labels], truth, name) for name in FIGURES}
    return found | {f"{name}:{label}": by_label[label][name] for label in labels for name in FIGURES}


def _mean(columns: Sequence[Floats], truth: Floats, name: str) -> Floats:
    """Return the mean over the labels that have the figure on these images; NaN in resamples where one lacks it."""
    needs_both = name not in ("accuracy", "ece")
    has = [
        bool((known == 1).any() and (known == 0).any()) if needs_both else bool(np.isfinite(known).any())
        for known in truth.T
    ]
    kept = [column for column, there in zip(columns, has, strict=True) if there]
    mean: Floats = np.mean(kept, axis=0) if kept else np.full(len(columns[0]), np.nan)
    return mean


def _described(
    values: Mapping[str, Floats], chunks: Sequence[Mapping[str, Floats]], truth: Floats, labels: Sequence[str]
) -> dict[str, Any]:
    """Return {value, low, high, n} by name."""
    known, found = _each_known(truth, labels), {}
    for name, value in values.items():
        drawn = np.concatenate([chunk[name] for chunk in chunks])
        _, colon, label = name.partition(":")
        found[name] = metrics.figure(float(value[0]), drawn, known[label] if colon else len(truth))
    return found


def _counts(truth: Floats, groups: npt.NDArray[Any], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "n": len(truth),
        "patients": len(set(groups)),
        "positives": {label: int((truth[:, place] > 0.5).sum()) for place, label in enumerate(labels)},
        "known": _each_known(truth, labels),
    }


def _each_known(truth: Floats, labels: Sequence[str]) -> dict[str, int]:
    """Return the number of images with each label known."""
    return dict(zip(labels, np.isfinite(truth).sum(axis=0).tolist(), strict=True))


def _known(truth: Floats, labels: Sequence[str]) -> list[tuple[int, str, npt.NDArray[np.int64]]]:
    """Return place, name and rows of each label that is known for any image."""
    rows = [np.flatnonzero(np.isfinite(column)) for column in truth.T]
    return [(place, label, rows[place]) for place, label in enumerate(labels) if len(rows[place])]


def _checked(
    probabilities: Floats, truth: Floats, groups: Groups, labels: Sequence[str]
) -> tuple[Floats, Floats, npt.NDArray[Any]]:
    groups = np.asarray(groups)
    wanted = (len(groups), len(labels))
    if probabilities.shape != wanted or truth.shape != wanted:
        raise ValueError(
            f"probabilities {probabilities.shape}, truth {truth.shape}: [N, L] = {wanted} is expected"
        )
    if not np.isfinite(truth).any(axis=1).all() or not len(truth):
        raise ValueError("images without any known label; leave them out")
    if not np.isin(truth[np.isfinite(truth)], (0, 1)).all():
        raise ValueError("truth has values other than 0, 1 and NaN")
    return probabilities, truth, groups
