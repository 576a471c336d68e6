"""Classification as a task of fine-tuning: its images, targets, loss and score."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sscxr import seeds
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.evaluation import classification
from sscxr.evaluation.metrics import auroc
from sscxr.finetuning import finetune
from sscxr.finetuning.finetune import FinetuneError, JudgeError, Split, varied
from sscxr.finetuning.kind import Figures, Kind
from sscxr.models import inference
from sscxr.models.classifier import Classifier
from sscxr.models.inference import Input

Targets = npt.NDArray[np.float32]

_MAX_ODDS = 20.0  # upper bound of a rare label's weight: beyond it a few images would dominate each step


class Classification(finetune.Task):
    """Predicts labels that may occur together; the loss leaves out unknown labels.

    Attributes:
        targets: float32 [N, L] of the whole cache: 1 present, 0 absent, NaN unknown.
    """

    def __init__(
        self, model: Classifier, cache: Cache, config: Config, device: torch.device, *, train: Rows
    ) -> None:
        """Prepare for the training rows, whose label frequencies set the balance.

        Args:
            model: on `device`; a logit for each of `classify.labels`.
            train: rows of the cache.
        """
        super().__init__(model, cache, config, device)
        self.targets = known_targets(cache, config.classify.labels)
        self.prior = torch.from_numpy(log_odds(self.targets[train])).to(device)

    def batch(self, rows: Rows, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return varied views [B, 1, H, W] and targets [B, L]."""
        pixels = torch.from_numpy(self.cache.images[rows]).to(self.device)
        inputs, _ = varied(pixels, None, self.config, generator, out=self.input.img_size)
        return inputs, torch.from_numpy(self.targets[rows]).to(self.device)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return `balanced_loss`; without `classify.balance` the plain cross-entropy."""
        inputs, wanted = batch
        settings = self.config.classify
        prior = self.prior if settings.balance else torch.zeros_like(self.prior)
        return balanced_loss(self.model(inputs).float(), wanted, prior, smoothing=settings.smoothing)

    def score(self, rows: Rows) -> float:
        """Return the mean AUROC over the labels on whole images; NaN if no label has both classes."""
        predicted, wanted = self.probabilities(rows), self.targets[rows]
        areas = [
            auroc(predicted[known, place], wanted[known, place] > 0.5)
            for place in range(wanted.shape[1])
            if (known := np.isfinite(wanted[:, place])).any()
        ]
        areas = [area for area in areas if math.isfinite(area)]
        return math.fsum(areas) / len(areas) if areas else math.nan

    def probabilities(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Return the probabilities for whole images, float64 [len(rows), L]."""
        return inference.probabilities(self.model, self.cache.images, rows, wants=self.input)


def targets(cache: Cache, labels: Sequence[str]) -> Targets:
    """Return the labels of a cache, float32 [N, L]: 1 present, 0 absent, NaN unknown.

    Raises:
        CacheError: the cache does not have a label; the message names those it has.
    """
    return np.stack([cache.label(name) for name in labels], axis=1)


def known_targets(cache: Cache, labels: Sequence[str]) -> Targets:
    """Return `targets`; a label that the cache does not have is unknown for all its images."""
    unknown = np.full(len(cache), np.nan, dtype=np.float32)
    return np.stack([cache.label(name) if name in cache.labels else unknown for name in labels], axis=1)


def labelled(wanted: Targets, rows: Rows) -> Rows:
    """Return the rows with at least one known label."""
    return rows[np.isfinite(wanted[rows]).any(axis=1)]


def check_classes(wanted: Targets, parts: Split, labels: Sequence[str]) -> None:
    """Refuse a label that has only one class among the training or the test images.

    Raises:
        FinetuneError: the label has one class only; the message gives the counts.
    """
    for place, label in enumerate(labels):
        for part, rows in (("training", parts.train), ("test", parts.test)):
            column = wanted[rows, place]
            present, absent = int((column == 1).sum()), int((column == 0).sum())
            if len(rows) and not (present and absent):
                unknown = len(rows) - present - absent
                rest = f", {unknown} are unknown" if unknown else ""
                raise FinetuneError(
                    f"label {label!r}: {present} of the {part} images have it and {absent} do not{rest}; "
                    "a classifier needs both"
                )


def log_odds(wanted: Targets) -> Targets:
    """Return each label's log-odds of being present, float32 [L], capped; 0 if nothing is known."""
    present, absent = (wanted == 1).sum(axis=0), (wanted == 0).sum(axis=0)
    known = present + absent > 0
    odds = np.where(known, np.maximum(present, 0.5) / np.maximum(absent, 0.5), 1.0)
    logs: Targets = np.log(np.clip(odds, 1 / _MAX_ODDS, _MAX_ODDS)).astype(np.float32)
    return logs


def balanced_loss(logits: Tensor, wanted: Tensor, prior: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the binary cross-entropy over known labels, both classes of a label weighing the same.

    Present images weigh by the odds against the label. That alone would train the model as if every label were
    present in half of the images; so the loss uses the logits less the prior (logit adjustment, Menon et
    al., arXiv 2007.07314), and the logits themselves stay calibrated to the training images.

    Args:
        logits: float32 [B, L].
        wanted: [B, L], 1 present, 0 absent, NaN unknown.
        prior: log-odds [L] of each label; 0: the classes are not weighted.
        smoothing: share of the target that becomes an even guess.

    Returns:
        The mean over known labels, a scalar; 0 if none is known.
    """
    known = wanted.isfinite()
    smooth = wanted.nan_to_num(0.0) * (1 - smoothing) + smoothing / 2
    each = nn.functional.binary_cross_entropy_with_logits(
        logits - prior, smooth, pos_weight=torch.exp(-prior), reduction="none"
    )
    return (each * known).sum() / known.sum().clamp(min=1)


def draw(
    cache: Cache, wanted: Targets, rows: Rows, labels: Sequence[str], *, per_class: int, seed: int
) -> Rows:
    """Draw a few training rows: for each label, `per_class` images with it and as many without.

    Patients come in a random order, and none gives a second image before each has given one. The rows of
    several labels are merged, and all their known labels are used for training.

    Args:
        wanted: `targets` of the whole cache.
        rows: to draw from.

    Raises:
        FinetuneError: a class has fewer images than requested.
    """
    drawn: set[int] = set()
    groups = cache.index["group"].to_numpy()
    for place, label in enumerate(labels):
        for value, word in ((1, "with"), (0, "without")):
            candidates = rows[wanted[rows, place] == value]
            if len(candidates) < per_class:
                raise FinetuneError(
                    f"{per_class} images per class are requested, but there are {len(candidates)} training images "
                    f"{word} label {label!r}"
                )
            source = seeds.generator("cpu", seed, "few labels", label, value)
            shuffled = candidates[torch.randperm(len(candidates), generator=source).numpy()]
            turns = cache.index["group"].iloc[shuffled].groupby(groups[shuffled]).cumcount().to_numpy()
            drawn.update(shuffled[np.argsort(turns, kind="stable")][:per_class].tolist())
    return np.array(sorted(drawn), dtype=np.int64)


def split(cache: Cache, config: Config, sources: Sequence[str], note: Callable[[str], None]) -> Split:
    """See `Kind`; with `classify.per_class` a few rows to learn from, and none for validation."""
    labels, few = list(config.classify.labels), config.classify.per_class
    _check_labels(labels)
    wanted = targets(cache, labels)
    rows = labelled(wanted, finetune.usable(cache, laterals=config.data.laterals, sources=sources))
    if not len(rows):
        raise FinetuneError(
            f"{', '.join(labels)} is unknown of every image here: there is nothing to learn from"
        )
    val_share = 0.0 if few else config.finetune.val_share
    parts = finetune.split(cache, rows, test_share=config.data.test_share, val_share=val_share)
    if few:
        drawn = draw(cache, wanted, parts.train, labels, per_class=few, seed=config.run.seed)
        parts = dataclasses.replace(parts, train=drawn)
    check_classes(wanted, parts, labels)
    val = wanted[parts.val]
    if len(val) and not ((val == 1).any(axis=0) & (val == 0).any(axis=0)).any():
        note("the validation patients have one class only: no early stopping, the last weights are kept")
    return parts


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise FinetuneError("classify.labels is empty: name the labels to learn, as in --label pneumonia")
    twice = [label for place, label in enumerate(labels) if label in labels[:place]]
    if twice:
        raise FinetuneError(f"label {twice[0]!r} is named twice")


def judgeable(cache: Cache, rows: Rows, labels: Sequence[str]) -> tuple[Rows, list[str]]:
    """Return the rows with a known label, and notes on weak labels."""
    there = [label for label in labels if label in cache.labels]
    if not there:
        cache.label(labels[0])  # raises an error that lists the labels
    notes = [f"the cache has no label {label!r}" for label in labels if label not in there]
    truth = known_targets(cache, labels)
    known = labelled(truth, rows)
    if not len(known):
        raise JudgeError(f"cache {cache.folder} knows {', '.join(there)} for none of {len(rows)} images")
    for label in there:
        column = truth[known, labels.index(label)]
        present, absent = int((column == 1).sum()), int((column == 0).sum())
        if not (present and absent):
            notes.append(
                f"label {label!r}: {present} images have it and {absent} do not, so figures that need "
                "both are left out"
            )
    return known, notes


def _predict(
    model: nn.Module, wants: Input, cache: Cache, rows: Rows, known: Sequence[str], labels: Sequence[str]
) -> npt.NDArray[np.float64]:
    predicted = inference.probabilities(model, cache.images, rows, wants=wants)
    return predicted[:, [known.index(label) for label in labels]]


def _evaluate(predicted: Any, cache: Cache, rows: Rows, labels: Sequence[str], **settings: Any) -> Figures:
    truth = known_targets(cache, labels)[rows]
    return classification.evaluate(predicted, truth, cache.index.iloc[rows], labels, **settings)


def _compare(
    first: Any, second: Any, cache: Cache, rows: Rows, labels: Sequence[str], **settings: Any
) -> tuple[list[Figures], Figures]:
    beside = known_targets(cache, labels)[rows], cache.index["group"].to_numpy()[rows], labels
    each = [classification.figures(predicted, *beside, **settings) for predicted in (first, second)]
    return each, classification.difference(first, second, *beside, **settings)


KIND = Kind(
    noun="classifier",
    verb="Classifies",
    score="AUROC",
    shown=classification.FIGURES,
    labels=lambda config: config.classify.labels,
    build=lambda encoder, spec: Classifier(encoder, labels=len(spec.labels), pool=spec.pool),
    split=split,
    task=lambda model, cache, config, device, train: Classification(
        model, cache, config, device, train=train
    ),
    begin=lambda task: task.model.start_at(task.prior),
    judgeable=judgeable,
    predict=_predict,
    settings=lambda config: {
        "specificity": config.classify.specificity,
        "resamples": config.probe.resamples,
    },
    evaluate=_evaluate,
    compare=_compare,
)
