"""How well a classifier tells its labels: figures with intervals over patients, and by subgroup with counts.

Of several labels each has its figures (`auroc:LABEL`), and their mean over labels goes without a name (`auroc`).
An unknown label is left out of that label's figures. A subgroup in which a class is absent has no figure that
needs both, and says so by null: its counts stand beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is said of a classifier on a set of images, as JSON takes it (null where there is no figure).

    Args:
        probabilities: float [N, L], of each label being present.
        truth: float [N, L], 1 present, 0 absent, NaN unknown.
        index: a cache's index, N rows: the patient groups and what the subgroups are made of.
        labels: L names.
        specificity: at which sensitivity is given.
        resamples, seed: of the bootstrap.

    Returns:
        What `figures` returns; `reliability`: label -> the bins of the reliability curve; `by`: source, view,
        sex and age_band -> value ("unknown" where empty) -> what `figures` returns of those images.

    Raises:
        ValueError: no label is known of any image, or shapes that do not agree.
    """
    known = np.flatnonzero(np.isfinite(truth).any(axis=1))
    probabilities, truth, index = probabilities[known], truth[known], index.iloc[known]
    settings: dict[str, Any] = {"specificity": specificity, "resamples": resamples, "seed": seed}
    found = figures(probabilities, truth, index["group"], labels, **settings)
    found["reliability"] = {
        label: [
            {name: _json(value) for name, value in asdict(one).items()}
            for one in metrics.reliability(probabilities[rows, place], truth[rows, place] > 0.5)
        ]
        for place, label, rows in _known(truth, labels)
    }
    found["by"] = {}
    for column in SUBGROUPS:
        names = index[column].replace("", "unknown").to_numpy()
        found["by"][column] = {
            str(name): figures(
                probabilities[names == name],
                truth[names == name],
                index["group"][names == name],
                labels,
                **settings,
            )
            for name in sorted(set(names))
        }
    return found


def figures(
    probabilities: Floats,
    truth: Floats,
    groups: Groups,
    labels: Sequence[str],
    *,
    specificity: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures with 95 % intervals over patients; arguments as in `evaluate`, groups [N].

    The interval of `ece` lies about its value: its resamples are shifted by how much they exceed it on average.

    Returns:
        Each of `FIGURES`, and of several labels each `FIGURE:LABEL`: {value, low, high, n}, n the images that it
        is of. `sensitivity` and `specificity` belong to one threshold, chosen on these images. Then counts: n
        images and patients with a known label, `positives` and `known` by label; `threshold` by label, null
        where no case may be called, and the specificity it was chosen for, `at_specificity`.
    """
    probabilities, truth, groups = _checked(probabilities, truth, groups, labels)
    ones = np.ones((1, len(truth)))
    values = _values(probabilities, truth, ones, labels, specificity)
    chunks = [
        _values(probabilities, truth, weights, labels, specificity)
        for weights in metrics.resampled(groups, resamples, seed)
    ]
    # Drawing patients with replacement by itself adds to a calibration error: only the resamples' spread is used.
    for name in (name for name in values if name.startswith("ece") and np.isfinite(values[name]).all()):
        excess = np.nanmean(np.concatenate([chunk[name] for chunk in chunks])) - values[name]
        chunks = [{**chunk, name: np.maximum(chunk[name] - excess, 0)} for chunk in chunks]
    found = _described(values, chunks, truth, labels) | _counts(truth, groups, labels)
    found["threshold"] = dict.fromkeys(labels)
    for place, label, rows in _known(truth, labels):
        sample = metrics.steps(probabilities[rows, place], truth[rows, place] > 0.5, ones[:, rows])
        found["threshold"][label] = _json(float(metrics.operating_point(sample, specificity)[2][0]))
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
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of one classifier minus another's on the same images: a paired bootstrap over patients.

    Arguments as in `evaluate`; `baseline` is like `probabilities`. A difference whose interval leaves out 0
    is one beyond what the choice of patients explains.

    Returns:
        As `figures`, without thresholds; each figure has `p` as well, of the test that there is no difference.
    """
    _checked(baseline, truth, groups, labels)
    probabilities, truth, groups = _checked(probabilities, truth, groups, labels)

    def gains(weights: npt.NDArray[Any]) -> dict[str, Floats]:
        ours = _values(probabilities, truth, weights, labels, specificity)
        theirs = _values(baseline, truth, weights, labels, specificity)
        return {name: ours[name] - theirs[name] for name in ours}

    chunks = [gains(weights) for weights in metrics.resampled(groups, resamples, seed)]
    found = _described(gains(np.ones((1, len(truth)))), chunks, truth, labels)
    for name, figure in found.items():
        figure["p"] = _json(metrics.p_value(np.concatenate([chunk[name] for chunk in chunks])))
    return found | _counts(truth, groups, labels)


def _values(
    probabilities: Floats,
    truth: Floats,
    weights: npt.NDArray[Any],
    labels: Sequence[str],
    specificity: float,
) -> dict[str, Floats]:
    """Every figure under many weightings [R, N], by the name it goes by: float [R]."""
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
    """Mean over the labels that have the figure on these images at all; NaN in a resample where one lacks it."""
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
    """{value, low, high, n} by name."""
    known = {f":{label}": int(np.isfinite(truth[:, place]).sum()) for place, label in enumerate(labels)}
    found = {}
    for name, value in values.items():
        drawn = metrics.interval(float(value[0]), np.concatenate([chunk[name] for chunk in chunks]))
        _, colon, label = name.partition(":")
        found[name] = {
            "value": _json(drawn.value),
            "low": _json(drawn.low),
            "high": _json(drawn.high),
            "n": known[colon + label] if colon else len(truth),
        }
    return found


def _counts(truth: Floats, groups: npt.NDArray[Any], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "n": len(truth),
        "patients": len(set(groups)),
        "positives": {label: int((truth[:, place] > 0.5).sum()) for place, label in enumerate(labels)},
        "known": {label: int(np.isfinite(truth[:, place]).sum()) for place, label in enumerate(labels)},
    }


def _known(truth: Floats, labels: Sequence[str]) -> list[tuple[int, str, npt.NDArray[np.int64]]]:
    """Place, name and rows of each label that is known of any image."""
    rows = [np.flatnonzero(np.isfinite(column)) for column in truth.T]
    return [(place, label, rows[place]) for place, label in enumerate(labels) if len(rows[place])]


def _checked(
    probabilities: Floats, truth: Floats, groups: Groups, labels: Sequence[str]
) -> tuple[Floats, Floats, npt.NDArray[Any]]:
    groups = np.asarray(groups)
    wanted = (len(groups), len(labels))
    if probabilities.shape != wanted or truth.shape != wanted:
        raise ValueError(
            f"probabilities {probabilities.shape}, truth {truth.shape}: [N, L] = {wanted} is wanted"
        )
    if not np.isfinite(truth).any(axis=1).all() or not len(truth):
        raise ValueError("images without any known label; leave them out")
    if not np.isin(truth[np.isfinite(truth)], (0, 1)).all():
        raise ValueError("truth has values other than 0, 1 and NaN")
    return probabilities, truth, groups


def _json(value: float) -> float | None:
    """A number as JSON takes it: null where it is not finite."""
    return value if math.isfinite(value) else None
