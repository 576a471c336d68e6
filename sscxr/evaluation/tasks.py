"""The tasks that a cache has for an encoder: labels within a cohort, split by patient.

A task is a label within one cohort: one source, or a few pooled sources of one hospital. It is never a label
across sources, since there label and source are confounded (all COVID-19 cases from one hospital, all healthy
ones from another), and a probe that only recognises the scanner would look like one that recognises the disease.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows

# Labels for no finding: if one only mirrors a finding, the finding's name is kept.
HEALTHY = frozenset({"normal", "no finding", "no_finding", "healthy"})


@dataclass(frozen=True)
class Task:
    """A label within a cohort, and the cache rows to learn it from and to test it on.

    Attributes:
        label: the label's name.
        cohort: a source, or the name of several pooled.
        train, test: rows of the cache, int64; no patient group is in both.
        train_positive, test_positive: bool, in the rows' order.
        train_groups, test_groups: the rows' patient groups.
    """

    label: str
    cohort: str
    train: Rows
    test: Rows
    train_positive: npt.NDArray[np.bool_]
    test_positive: npt.NDArray[np.bool_]
    train_groups: npt.NDArray[Any]
    test_groups: npt.NDArray[Any]


def find_tasks(
    cache: Cache,
    *,
    test_share: float,
    min_cases: int,
    cohorts: Mapping[str, Sequence[str]] | None = None,
) -> list[Task]:
    """Return every label within a cohort with enough cases to evaluate; the list may be empty.

    Unknown labels and lateral views are left out. Of two labels that mirror each other within a cohort
    (pneumonia and normal) only one is a task, the finding.

    Args:
        cache: the cache.
        test_share: share of the patient groups that were set aside.
        min_cases: images with and without the label that both training and test rows need.
        cohorts: cohort name -> sources pooled into it (one hospital's); None: each source alone.
    """
    if cohorts is None:
        cohorts = {name: [name] for name in sorted(cache.index["source"].unique())}
    frontal = np.zeros(len(cache), dtype=bool)
    frontal[cache.rows(laterals=False)] = True
    held_out = cache.held_out(test_share)
    groups = cache.index["group"].to_numpy()
    # A group with any image set aside is not trained on, whatever its other rows.
    trainable = ~np.isin(groups, groups[held_out])
    tasks: list[Task] = []
    for cohort, sources in cohorts.items():
        inside = frontal & cache.index["source"].isin(list(sources)).to_numpy()
        seen: list[npt.NDArray[np.float32]] = []
        for label in sorted(cache.labels, key=lambda name: (name.lower() in HEALTHY, name)):
            values = cache.label(label)
            train = np.flatnonzero(inside & trainable & np.isfinite(values))
            test = np.flatnonzero(inside & held_out & np.isfinite(values))
            fewest = min(
                ((values[rows] > 0.5) == has).sum() for rows in (train, test) for has in (True, False)
            )
            within = values[inside]
            if fewest < max(1, min_cases) or any(
                np.array_equal(1 - within, old, equal_nan=True) for old in seen
            ):
                continue
            seen.append(within)
            positive = values > 0.5
            tasks.append(
                Task(label, cohort, train, test, positive[train], positive[test], groups[train], groups[test])
            )
    return tasks
