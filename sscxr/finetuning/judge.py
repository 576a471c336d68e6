"""Evaluation of fine-tuned models on a prepared cache: one model alone, or two against each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from sscxr import config as configs
from sscxr.config import Config
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.data.rows import Rows
from sscxr.errors import SscxrError
from sscxr.evaluation import classification, segmentation
from sscxr.finetuning import finetune, finetuned
from sscxr.finetuning.finetuned import Model, Spec
from sscxr.models import inference
from sscxr.models.inference import Input
from sscxr.training.device import set_up

Floats = npt.NDArray[np.floating[Any]]


class JudgeError(SscxrError):
    """A model cannot be judged on the data; one line states why."""


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
    if opened.spec.task == "segment":
        rows = segmentation.masked(cache, rows)
        resamples = opened.config.probe.resamples
        found = segmentation.evaluate(
            _measured(opened, cache, rows), cache.index.iloc[rows], resamples=resamples
        )
    else:
        rows, truth, more = _truth(cache, rows, opened.spec.labels)
        notes += more
        found = classification.evaluate(
            probabilities(opened, cache.images, rows),
            truth,
            cache.index.iloc[rows],
            opened.spec.labels,
            specificity=opened.config.classify.specificity,
            resamples=opened.config.probe.resamples,
        )
    about = {"task": opened.spec.task, "labels": opened.spec.labels}
    return Judged(found | about | {"model": str(folder), "cache": str(cache_folder)}, notes)


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
    groups, resamples = cache.index["group"].to_numpy(), pair[0].config.probe.resamples
    if a.task == "segment":
        rows = segmentation.masked(cache, rows)
        measured = [_measured(opened, cache, rows) for opened in pair]
        found = segmentation.difference(measured[0], measured[1], groups[rows], resamples=resamples)
        each = [segmentation.figures(one, groups[rows], resamples=resamples) for one in measured]
        return Judged(found | {"a": each[0], "b": each[1]} | about, notes)
    rows, truth, more = _truth(cache, rows, labels)
    predicted = [
        probabilities(opened, cache.images, rows)[:, [opened.spec.labels.index(label) for label in labels]]
        for opened in pair
    ]
    settings: dict[str, Any] = {
        "specificity": pair[0].config.classify.specificity,
        "resamples": resamples,
    }
    found = classification.difference(predicted[0], predicted[1], truth, groups[rows], labels, **settings)
    each = [classification.figures(one, truth, groups[rows], labels, **settings) for one in predicted]
    return Judged(found | {"a": each[0], "b": each[1]} | about, notes + more)


def probabilities(
    opened: Opened, images: npt.NDArray[np.uint8], rows: Rows | None = None
) -> npt.NDArray[np.float64]:
    """Return a classifier's probabilities for square 8-bit images; see `inference.probabilities`."""
    return inference.probabilities(opened.model, images, rows, wants=opened.input)


def lungs(opened: Opened, images: npt.NDArray[np.uint8], rows: Rows | None = None) -> npt.NDArray[np.bool_]:
    """Return a segmenter's masks of square 8-bit images, at their resolution; see `inference.lungs`."""
    return inference.lungs(opened.model, images, rows, wants=opened.input)


def _measured(opened: Opened, cache: Cache, rows: Rows) -> pd.DataFrame:
    """Return a segmenter's figures for each row; all rows have a mask; see `segmentation.measure`."""
    if cache.masks is None:
        raise JudgeError(f"cache {cache.folder} has no masks")
    millimetres = segmentation.mm_per_px(cache.index.iloc[rows])
    return segmentation.measure(lungs(opened, cache.images, rows), cache.masks[rows], millimetres)


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


def _truth(cache: Cache, rows: Rows, labels: Sequence[str]) -> tuple[Rows, Floats, list[str]]:
    """Return the rows with a known label, their labels float32 [N, L] (NaN: unknown), and notes on weak labels."""
    there = [label for label in labels if label in cache.labels]
    if not there:
        cache.label(labels[0])  # raises an error that lists the labels
    notes = [f"the cache has no label {label!r}" for label in labels if label not in there]
    unknown = np.full(len(cache), np.nan, dtype=np.float32)
    truth = np.stack([cache.label(label) if label in there else unknown for label in labels], axis=1)[rows]
    known = np.isfinite(truth).any(axis=1)
    if not known.any():
        raise JudgeError(f"cache {cache.folder} knows {', '.join(there)} for none of {len(rows)} images")
    truth = truth[known]
    for label in there:
        column = truth[:, labels.index(label)]
        present, absent = int((column == 1).sum()), int((column == 0).sum())
        if not (present and absent):
            notes.append(
                f"label {label!r}: {present} images have it and {absent} do not, so figures that need "
                "both are left out"
            )
    return rows[known], truth, notes
