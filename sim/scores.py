"""An encoder's probes, image by image, in a file: encoders of different processes are then compared in pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from sscxr import printable, stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.evaluation import probe
from sscxr.evaluation.tasks import Task, find_tasks
from sscxr.files import write_atomically
from sscxr.models.inference import Input
from sscxr.training.device import set_up

COLUMNS = ("cohort", "label", "kind", "image", "group", "positive", "score")
Scores = list[dict[str, npt.NDArray[np.float64]]]  # for each task, kind of probe -> scores of its test rows


def tasks_of(cache: Cache, config: Config) -> list[Task]:
    """Return the labels that a run's probes predict; none if no label has enough cases."""
    settings = config.probe
    return find_tasks(
        cache,
        test_share=config.data.test_share,
        min_cases=settings.min_cases,
        cohorts=dict(settings.cohorts) or None,
    )


def of(cache: Cache, config: Config, shared: Mapping[str, Tensor], tasks: Sequence[Task]) -> Scores:
    """Probe an encoder, given the tensors of a run; an empty list without tasks."""
    if not tasks:
        return []
    settings, data, device = config.probe, config.data, set_up(config)
    parts = stages.of(config).training(device, cache, np.empty(0, np.int64)).parts
    parts.load_shared(shared)
    wants = Input(config.encoder.img_size, data.mean, data.std, settings.batch_size, device)
    return probe.scores(parts.encoder, cache, tasks, wants=wants, neighbours=settings.neighbours)


def write(file: Path, cache: Cache, tasks: Sequence[Task], scores: Scores) -> None:
    """Write scores, one row for each test image of a task and kind."""
    images = cache.index["image"].to_numpy()
    rows: list[tuple[object, ...]] = []
    for task, kinds in zip(tasks, scores, strict=True):
        cases = list(zip(images[task.test], task.test_groups, task.test_positive.astype(int), strict=True))
        for kind, found in kinds.items():
            rows += [
                (task.cohort, task.label, kind, *case, float(score))
                for case, score in zip(cases, found, strict=True)
            ]
    write_atomically(file, printable.table(COLUMNS, rows).encode())


def read(file: Path) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Return what `write` wrote: cohort, label and kind -> rows with `COLUMNS`."""
    words: Any = dict.fromkeys(("cohort", "label", "kind", "image", "group"), str)
    scores = pd.read_csv(file, dtype=words, keep_default_na=False)
    return {
        (printable.plain(str(cohort)), printable.plain(str(label)), str(kind)): rows
        for (cohort, label, kind), rows in scores.groupby(["cohort", "label", "kind"], sort=False)
    }


def of_tasks(file: Path, tasks: Sequence[Task]) -> Scores:
    """Return the scores in a file for these tasks, with which they were written."""
    table = read(file)
    return [
        {
            kind: table[task.cohort, task.label, kind]["score"].to_numpy(dtype=np.float64)
            for kind in probe.KINDS
        }
        for task in tasks
    ]
