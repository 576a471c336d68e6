"""Two encoders on the same images of a cache: probes of both, label by label and on average, in pairs."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sscxr import config as configs
from sscxr.data.cache.cache import open_cache
from sscxr.errors import SscxrError
from sscxr.evaluation import pairs, probe
from sscxr.evaluation.metrics import Interval
from sscxr.evaluation.tasks import Task, find_tasks
from sscxr.predict import neighbours


class ProbingError(SscxrError):
    """Encoders cannot be compared on a cache; one line states why."""


def compare(
    first: str, second: str, cache_folder: str | Path, *, sources: Sequence[str] = (), resamples: int = 2000
) -> dict[str, Any]:
    """Return the AUROC of two encoders' probes and the differences, first minus second.

    Probes are fitted on patients that the cache lets be trained on and tested on those that it sets aside, by the
    default recipe's `data.test_share`. A label within one source is a task, never across sources.

    Args:
        first, second: the folder or address of a released encoder; or the folder of a fine-tuned model.
        cache_folder: a prepared cache with labels.
        sources: only images of these; empty: of all.
        resamples: of the bootstrap over patients.

    Returns:
        `n`, `patients`: the test images, and their patients; `mean`: kind of probe -> figures over all tasks;
        `tasks`: figures of each. Figures are `a`, `b`, and their difference's `value`, `low`, `high`, `tasks`.

    Raises:
        ProbingError: no label has enough cases.
        CacheError, ReleaseError, FetchError, FinetunedError: bad input.
    """
    embedders = [neighbours.open_embedder(source) for source in (first, second)]
    cache, usual = open_cache(cache_folder), configs.load()
    tasks = find_tasks(
        cache,
        test_share=usual.data.test_share,
        min_cases=usual.probe.min_cases,
        cohorts={name: [name] for name in sources} or None,
    )
    if not tasks:
        raise ProbingError(
            f"cache {cache.folder}: no label has {usual.probe.min_cases} images with and without it, in training"
            " and in test, within one source"
        )
    each = [
        probe.scores(embedder.encoder, cache, tasks, wants=embedder.input, neighbours=usual.probe.neighbours)
        for embedder in embedders
    ]
    scored = {kind: pairs.of_tasks(tasks, each[0], each[1], kind) for kind in probe.KINDS}
    tested = np.unique(np.concatenate([task.test for task in tasks]))
    return {
        "encoders": [first, second],
        "cache": str(cache_folder),
        "n": len(tested),
        "patients": len(set(cache.index["group"].to_numpy()[tested])),
        "mean": {kind: _figures(pairs.compare(found, resamples=resamples)) for kind, found in scored.items()},
        "tasks": [
            _about(task, kind) | _figures(pairs.compare([scored[kind][number]], resamples=resamples))
            for number, task in enumerate(tasks)
            for kind in probe.KINDS
        ],
    }


def _about(task: Task, kind: str) -> dict[str, Any]:
    return {"label": task.label, "cohort": task.cohort, "probe": kind}


def _figures(pair: pairs.Pair | None) -> dict[str, Any]:
    assert pair is not None, "a task has enough cases"

    def ends(found: Interval) -> dict[str, float | None]:
        return {name: value if np.isfinite(value) else None for name, value in asdict(found).items()}

    counts = {"tasks": pair.tasks, "n": pair.images, "patients": pair.patients}
    return {"a": ends(pair.first), "b": ends(pair.second)} | ends(pair.gap) | counts
