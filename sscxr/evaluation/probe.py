"""Probes of an encoder's frozen features: k-NN and linear classifiers on patient-split labels.

A task is a label within one source, never across sources, where the two are confounded (`tasks.py`). Probes
fit on the patients that pretraining may use and are tested on those set aside. The feature is the mean of the
patch tokens after the final norm; the CLS token is left out, because GMML does not train it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from sscxr.data.cache.cache import Cache
from sscxr.evaluation import metrics
from sscxr.evaluation.gains import KINDS as KINDS
from sscxr.evaluation.gains import Comparison, Probe
from sscxr.evaluation.tasks import Task, find_tasks
from sscxr.models import inference
from sscxr.models.inference import Input

Floats = npt.NDArray[np.floating[Any]]

# Inverse regularisation strengths tried for the linear probe (sklearn's C, on standardised features).
STRENGTHS = tuple(float(c) for c in np.logspace(-3, 2, 11))
FOLDS = 5
# Softmax temperature of the neighbours' votes, as in DINO's k-NN probe (arXiv 2104.14294, 4.1).
TEMPERATURE = 0.07


def knn_scores(
    train: Floats, positive: npt.NDArray[np.bool_], test: Floats, *, neighbours: int
) -> npt.NDArray[np.float64]:
    """Return the weighted share of positives among the nearest training images: float64 [M], 0 .. 1.

    Nearest by cosine on features standardised over the training images: without standardising, the mean vector,
    common to all chest X-rays, makes every cosine nearly 1. Votes are weighted by exp(cosine / 0.07), which also
    ranks the test images more finely than k + 1 possible shares.

    Args:
        train: float [N, D].
        positive: bool [N].
        test: float [M, D].
        neighbours: k; all training images if there are fewer.
    """
    scaler = StandardScaler().fit(train)
    from_train, from_test = _unit(scaler.transform(train)), _unit(scaler.transform(test))
    k = min(neighbours, len(from_train))
    scores = np.empty(len(from_test))
    for start in range(0, len(from_test), 1024):  # [1024, N] cosines at a time
        with threadpool_limits(1):
            cosines = from_test[start : start + 1024] @ from_train.T
        nearest = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(cosines, nearest, axis=1)
        votes = np.exp((near - near.max(axis=1, keepdims=True)) / TEMPERATURE)
        scores[start : start + 1024] = (votes * positive[nearest]).sum(axis=1) / votes.sum(axis=1)
    return scores


def linear_scores(
    train: Floats, positive: npt.NDArray[np.bool_], groups: npt.NDArray[Any], test: Floats
) -> npt.NDArray[np.float64]:
    """Return log-odds by logistic regression on standardised features: float64 [M].

    The L2 regularisation is the one of `STRENGTHS` with the least log loss in a cross-validation within the
    training images, no patient group in two folds.

    Args:
        train: float [N, D].
        positive: bool [N]; both classes.
        groups: [N], patient groups.
        test: float [M, D].
    """
    train, test = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    scaler = StandardScaler().fit(train)
    inputs = scaler.transform(train)
    # One BLAS thread: the same figures on every machine, and many small fits are faster.
    with threadpool_limits(1):
        model = _regression(_best_strength(inputs, positive, groups)).fit(inputs, positive)
        scores: npt.NDArray[np.float64] = model.decision_function(scaler.transform(test))
    return scores


def run(
    encoder: nn.Module,
    untrained: nn.Module,
    cache: Cache,
    *,
    wants: Input,
    test_share: float,
    neighbours: int = 20,
    resamples: int = 1000,
    min_cases: int = 20,
    cohorts: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Probe an encoder and its untrained twin on every task of a cache.

    Args:
        encoder, untrained: see `inference.features`.
        cache: labelled images; without a usable label the result is an empty list.
        seed: the bootstrap's. The others as in `inference.features`, `find_tasks` and `knn_scores`.

    Returns:
        Two comparisons per task, linear then k-NN, in the order of the cohorts and labels.
    """
    tasks = find_tasks(cache, test_share=test_share, min_cases=min_cases, cohorts=cohorts)
    if not tasks:
        return []
    both = [scores(model, cache, tasks, wants=wants, neighbours=neighbours) for model in (encoder, untrained)]
    return [
        compare(task, kind, trained[kind], blank[kind], resamples=resamples, seed=seed)
        for task, trained, blank in zip(tasks, *both, strict=True)
        for kind in KINDS
    ]


def scores(
    encoder: nn.Module, cache: Cache, tasks: Sequence[Task], *, wants: Input, neighbours: int = 20
) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Probe one encoder on some tasks, and return, for each task, kind of `KINDS` -> scores of its test rows.

    Args:
        encoder: see `inference.features`.
        tasks: at least one, from `find_tasks`. The others as in `run`.
    """
    rows = np.unique(np.concatenate([part for task in tasks for part in (task.train, task.test)]))
    features = inference.features(encoder, cache.images, rows, wants=wants)
    found = []
    for task in tasks:
        train, test = features[np.searchsorted(rows, task.train)], features[np.searchsorted(rows, task.test)]
        linear = linear_scores(train, task.train_positive, task.train_groups, test)
        nearest = knn_scores(train, task.train_positive, test, neighbours=neighbours)
        found.append(dict(zip(KINDS, (linear, nearest), strict=True)))
    return found


def compare(
    task: Task, kind: str, scores: Floats, baseline: Floats, *, resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare two encoders' scores on a task's test rows (float [M] each), with intervals over patients."""
    truth, groups = task.test_positive, task.test_groups
    drawn: dict[str, Any] = {"resamples": resamples, "seed": seed}
    difference = metrics.bootstrap(scores, truth, groups, baseline=baseline, **drawn)
    trained, untrained = (
        _probe(task, kind, metrics.bootstrap(values, truth, groups, **drawn)) for values in (scores, baseline)
    )
    return Comparison(trained, untrained, difference.value, difference.low, difference.high)


def _probe(task: Task, kind: str, area: metrics.Interval) -> Probe:
    return Probe(
        label=task.label,
        cohort=task.cohort,
        kind=kind,
        auroc=area.value,
        low=area.low,
        high=area.high,
        train_images=len(task.train),
        train_positives=int(task.train_positive.sum()),
        test_images=len(task.test),
        test_positives=int(task.test_positive.sum()),
        test_patients=len(np.unique(task.test_groups)),
    )


def _best_strength(inputs: Floats, positive: npt.NDArray[np.bool_], groups: npt.NDArray[Any]) -> float:
    """Return the strength of least out-of-fold log loss; the middle one if a class has too few patients."""
    # Codes by first appearance: folds must not depend on the salt of the groups' names.
    codes, _ = pd.factorize(groups)
    folds = min(FOLDS, *(len(np.unique(codes[positive == has])) for has in (True, False)))
    if folds < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    splits = list(StratifiedGroupKFold(folds).split(inputs, positive, codes))
    losses = np.zeros(len(STRENGTHS))
    for fit, check in splits:
        if positive[fit].all() or not positive[fit].any():
            continue
        for number, strength in enumerate(STRENGTHS):
            model = _regression(strength).fit(inputs[fit], positive[fit])
            chance = model.predict_proba(inputs[check])
            losses[number] += len(check) * log_loss(positive[check], chance, labels=[False, True])
    return STRENGTHS[int(np.argmin(losses))]


def _regression(strength: float) -> LogisticRegression:
    # Newton steps on the D x D Hessian: exact in about five steps however weak the regularisation.
    return LogisticRegression(C=strength, solver="newton-cholesky", max_iter=100)


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
