"""What frozen features give with few labels: linear probes fitted on small draws of the training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from sscxr import seeds
from sscxr.data.cache.cache import Cache
from sscxr.evaluation import metrics
from sscxr.evaluation.metrics import Interval
from sscxr.evaluation.probe import linear_scores
from sscxr.evaluation.tasks import Task
from sscxr.models import inference
from sscxr.models.inference import Input

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FewLabels:
    """One task learned from few labels.

    Attributes:
        cohort, label: the task.
        per_class: patients with the label that a draw has, and as many without.
        draws: how many draws the AUROCs are a mean over; all encoders have the same ones.
        auroc: encoder -> AUROC with its 95 % interval over test patients and draws.
        gain: encoder -> the same of its difference to the reference, paired; without the reference.
    """

    cohort: str
    label: str
    per_class: int
    draws: int
    auroc: Mapping[str, Interval]
    gain: Mapping[str, Interval]


def few_labels(
    encoders: Mapping[str, tuple[nn.Module, Input]],
    cache: Cache,
    tasks: Sequence[Task],
    *,
    reference: str,
    per_class: int = 20,
    draws: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> list[FewLabels]:
    """Return one result for each task that has enough patients in training.

    Args:
        encoders: name -> a ViT, and its input; see `inference.features`.
        tasks: from `find_tasks`.
        reference: the name of the encoder that gains are over.
        per_class: patients of each class in a draw, one image of each.
        draws: number of draws.
        resamples: of the bootstrap.
        seed: of the draws and of the bootstrap.
    """
    wanted = [task for task in tasks if _fewest(task) >= per_class]
    if not wanted:
        return []
    rows = np.unique(np.concatenate([part for task in wanted for part in (task.train, task.test)]))
    features = {
        name: inference.features(encoder, cache.images, rows, wants=wants)
        for name, (encoder, wants) in encoders.items()
    }
    found = []
    for task in wanted:
        fits = [drawn(task, per_class, seed, number) for number in range(draws)]
        scores = {name: _scores(task, fits, values, rows) for name, values in features.items()}
        areas = _areas(task, scores, resamples, seed)
        auroc = {name: metrics.interval(*area) for name, area in areas.items()}
        value, resampled = areas[reference]
        gain = {
            name: metrics.interval(area[0] - value, area[1] - resampled)
            for name, area in areas.items()
            if name != reference
        }
        found.append(FewLabels(task.cohort, task.label, per_class, draws, auroc, gain))
    return found


def drawn(task: Task, per_class: int, seed: int, number: int) -> npt.NDArray[np.int64]:
    """Return the places in `task.train` of a draw: an image of each of `per_class` patients a class.

    A patient who has images of both classes is drawn for at most one of them.
    """
    generator = np.random.default_rng(seeds.derive(seed, "few labels", task.cohort, task.label, number))
    order = generator.permutation(len(task.train))
    places: list[int] = []
    patients: set[Any] = set()
    for has in (True, False):
        taken = 0
        for place in order[task.train_positive[order] == has]:
            if taken < per_class and task.train_groups[place] not in patients:
                patients.add(task.train_groups[place])
                places.append(int(place))
                taken += 1
    return np.array(places)


def _fewest(task: Task) -> int:
    """Return how many patients the rarer class has in training; a patient of both classes counts for neither."""
    positive, negative = (set(task.train_groups[task.train_positive == has]) for has in (True, False))
    return min(len(positive - negative), len(negative - positive))


def _scores(task: Task, fits: Sequence[npt.NDArray[np.int64]], features: Floats, rows: Floats) -> Floats:
    """Return the test rows' log-odds by each draw's probe: float [draws, M]."""
    train, test = features[np.searchsorted(rows, task.train)], features[np.searchsorted(rows, task.test)]
    return np.stack(
        [linear_scores(train[fit], task.train_positive[fit], task.train_groups[fit], test) for fit in fits]
    )


def _areas(
    task: Task, scores: Mapping[str, Floats], resamples: int, seed: int
) -> dict[str, tuple[float, Floats]]:
    """Return each encoder's mean AUROC over the draws, and its resamples of test patients and draws, [R]."""
    generator = np.random.default_rng(seeds.derive(seed, "draws resampled"))
    draws = len(next(iter(scores.values())))
    chunks: dict[str, list[Floats]] = {name: [] for name in scores}
    for weights in metrics.resampled(task.test_groups, resamples, seed):
        share = generator.multinomial(draws, np.full(draws, 1 / draws), size=len(weights)) / draws
        for name, values in scores.items():
            areas = np.stack(
                [metrics.area(metrics.steps(row, task.test_positive, weights)) for row in values], axis=1
            )
            chunks[name].append((areas * share).sum(axis=1))
    means = {
        name: float(np.mean([metrics.auroc(row, task.test_positive) for row in values]))
        for name, values in scores.items()
    }
    return {name: (means[name], np.concatenate(chunks[name])) for name in scores}
