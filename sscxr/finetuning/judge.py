"""Evaluation of fine-tuned models on a prepared cache: one model alone, or two against each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sscxr import config as configs
from sscxr import files
from sscxr.config import Config
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.data.rows import Rows
from sscxr.finetuning import KINDS, finetune, finetuned
from sscxr.finetuning.finetune import JudgeError
from sscxr.finetuning.finetuned import Model, Spec
from sscxr.models.inference import Input
from sscxr.training.device import set_up


@dataclass(frozen=True)
class Judged:
    """The figures, in types that JSON has, and notes for the user, one line each."""

    figures: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Opened:
    """A loaded fine-tuned model with its specification, the settings of its training, and its device."""

    folder: Path
    model: Model
    spec: Spec
    config: Config
    device: torch.device

    @property
    def input(self) -> Input:
        """Return the form of the model's input."""
        return Input(self.spec.img_size, self.spec.mean, self.spec.std, device=self.device)

    def predict(self, cache: Cache, rows: Rows, labels: Sequence[str]) -> Any:
        """Return the model's predictions; see `Kind`."""
        return KINDS[self.spec.task].predict(self.model, self.input, cache, rows, self.spec.labels, labels)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the weights."""
        return files.sha256(self.folder / finetuned.WEIGHTS)

    @property
    def cache_size(self) -> int:
        """Return the px a side of the images cached for the model; files are scaled down to it too."""
        return max(self.config.data.cache_size, self.spec.img_size)


def open_model(folder: str | Path) -> Opened:
    """Load a fine-tuned model, and prepare this process for it (its thread count; a GPU if there is one).

    Raises:
        FinetunedError, SigningError, ConfigError: there is no model, or it is damaged.
    """
    folder = Path(folder)
    model, spec = finetuned.load(folder)
    file = folder / finetuned.SETTINGS
    # As a recipe: a setting that a later sscxr has added is at its default.
    settings = configs.load(file, foreign=True) if file.is_file() else configs.load()
    settings.run.device = "auto"  # the device of another machine does not apply here
    return Opened(folder, model, spec, settings, set_up(settings))


def evaluate(
    folder: str | Path, cache_folder: str | Path, *, sources: Sequence[str] = (), held_out: bool = False
) -> Judged:
    """Evaluate a fine-tuned model on the images of a cache that it was not trained on.

    Args:
        folder: the model's.
        cache_folder: the cache's.
        sources: only images of these; empty: of all.
        held_out: only patients that the cache sets aside for testing.

    Returns:
        The result of `classification.evaluate` or `segmentation.evaluate`, with `task`, `labels`, `model`, `cache`.

    Raises:
        JudgeError: the cache has no images that the model could be judged on.
        CacheError, FinetunedError, FinetuneError, SigningError: bad input; one line states what is wrong.
    """
    opened, cache = open_model(folder), open_cache(cache_folder)
    rows, notes = _rows(cache, [opened], sources, held_out)
    kind, labels = KINDS[opened.spec.task], opened.spec.labels
    rows, more = kind.judgeable(cache, rows, labels)
    predicted = opened.predict(cache, rows, labels)
    found = kind.evaluate(predicted, cache, rows, labels, **kind.settings(opened.config))
    about = {"task": opened.spec.task, "labels": labels}
    return Judged(found | about | {"model": str(folder), "cache": str(cache_folder)}, notes + more)


def compare(
    first: str | Path,
    second: str | Path,
    cache_folder: str | Path,
    *,
    sources: Sequence[str] = (),
    held_out: bool = False,
) -> Judged:
    """Return the first model's figures minus the second's, on images that neither was trained on.

    Arguments and errors as in `evaluate`. Labels that only one of them predicts are left out.

    Returns:
        Each figure's difference, paired over patients; `a` and `b`: each model's own figures on the same images;
        `task`, `labels`, `models`, `cache`.
    """
    pair, cache = [open_model(first), open_model(second)], open_cache(cache_folder)
    a, b = (opened.spec for opened in pair)
    if a.task != b.task:
        raise JudgeError(f"{first} is made to {a.task}, {second} to {b.task}: they cannot be compared")
    labels = [label for label in a.labels if label in b.labels]
    if not labels:
        both = " and ".join(
            f"{one} predicts {', '.join(spec.labels)}" for one, spec in ((first, a), (second, b))
        )
        raise JudgeError(f"the models have no label in common: {both}")
    rows, notes = _rows(cache, pair, sources, held_out)
    about = {"task": a.task, "labels": labels, "models": [str(first), str(second)]}
    about |= {"cache": str(cache_folder)}
    kind = KINDS[a.task]
    rows, more = kind.judgeable(cache, rows, labels)
    predicted = [opened.predict(cache, rows, labels) for opened in pair]
    each, found = kind.compare(*predicted, cache, rows, labels, **kind.settings(pair[0].config))
    return Judged(found | {"a": each[0], "b": each[1]} | about, notes + more)


def _rows(
    cache: Cache, models: Sequence[Opened], sources: Sequence[str], held_out: bool
) -> tuple[Rows, list[str]]:
    """Return the rows that no model was trained on, and notes on those left out."""
    laterals = all(opened.config.data.laterals for opened in models)  # only if every model is made for them
    rows, notes = finetune.usable(cache, laterals=laterals, sources=sources), []
    if held_out:  # from the training of every model
        share = min(opened.config.data.test_share for opened in models)
        rows = rows[cache.held_out(share)[rows]]
    silent = [opened.folder for opened in models if not (opened.folder / finetuned.TRAINED_ON).is_file()]
    if not held_out:
        notes += [
            f"{folder} does not list its training patients: if some are in this cache, give --held-out"
            for folder in silent
        ]
    known = {group for opened in models for group in trained_on(opened.folder)}
    groups = cache.index["group"].to_numpy()[rows]
    met = np.isin(groups, sorted(known))
    if met.any():
        trained = "it was" if len(models) == 1 else "they were"
        notes.append(
            f"left out: {met.sum()} images of {len(set(groups[met]))} patients that {trained} trained on"
        )
    if not len(rows) or met.all():
        why = "all of their patients were trained on" if len(rows) else "none may be used"
        raise JudgeError(f"cache {cache.folder} has no image to judge the model on: {why}")
    return rows[~met], notes


def trained_on(folder: str | Path) -> set[str]:
    """Return salted hashes of the patient groups that a model learned from; they are valid in its own cache only.

    Raises:
        JudgeError: there is a list, but it cannot be read.
    """
    file = Path(folder) / finetuned.TRAINED_ON
    if not file.is_file():
        return set()
    try:
        return set(pd.read_csv(file, dtype=str, keep_default_na=False)["group"])
    except (OSError, ValueError, KeyError) as error:
        raise JudgeError(f"{file} is not readable as a list of patient groups ({error})") from None
