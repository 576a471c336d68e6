"""One fine-tuning, from an encoder's folder to a model's: the work of `sscxr finetune`, with any display."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sscxr import config as configs
from sscxr.config import Config, ConfigError
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.evaluation import classification, segmentation
from sscxr.finetuning import classify as classifying
from sscxr.finetuning import finetune, finetuned, finetuned_card
from sscxr.finetuning.classify import Classification
from sscxr.finetuning.finetune import Epoch, FinetuneError, History, Split, Task
from sscxr.finetuning.finetuned import Model, Spec
from sscxr.models.classifier import Classifier
from sscxr.training.device import set_up

if TYPE_CHECKING:
    from sscxr.models.unetr import UNETR


@dataclass(frozen=True)
class Job:
    """A fine-tuning job: its encoder, data and output.

    Attributes:
        encoder: the folder of a released encoder.
        cache: the images for training and testing.
        config: `run.stage` is the task; has the encoder's settings (`settings`).
        out: the model's folder.
        sources: only images of these; empty: all.
        untrained: start from random weights of the same network, as a baseline.
        overwrite: whether a fine-tuned model in `out` may be replaced.
    """

    encoder: Path
    cache: Cache
    config: Config
    out: Path
    sources: Sequence[str] = ()
    untrained: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Listener:
    """Callbacks about the progress.

    Attributes:
        note: called with a line for the user.
        begin: called with the images' split and the planned epochs.
        epoch: called after each epoch.
        step: called with the number of an epoch's steps done.
    """

    note: Callable[[str], None] = lambda text: None
    begin: Callable[[Split, int], None] = lambda parts, planned: None
    epoch: Callable[[Epoch], None] = lambda epoch: None
    step: Callable[[int, int], None] = lambda done, steps: None


@dataclass(frozen=True)
class Tuned:
    """The result: the model's folder, its training, its figures on the test patients (empty without any)."""

    folder: Path
    spec: Spec
    history: History
    parts: Split
    figures: dict[str, Any]


def settings(
    encoder: Path, stage: str, file: str | Path = "default", overrides: Sequence[str] = ()
) -> Config:
    """Return the settings of a fine-tuning of an encoder, with the encoder's own sizes and normalisation.

    Raises:
        ConfigError, FinetunedError: an invalid setting, or not a released encoder.
    """
    own = finetuned.encoder_settings(encoder)
    config = configs.load(file, [*overrides, *own, f"run.stage={stage}"])
    for override in overrides:
        if override.startswith(("encoder.", "data.mean=", "data.std=")) and override not in own:
            raise ConfigError(
                f"override {override!r} has no effect: the encoder keeps its own sizes and normalisation; "
                "finetune.img_size and finetune.drop_path are those of a fine-tuning"
            )
    return config


def classify(job: Job, listener: Listener | None = None) -> Tuned:
    """Fine-tune a classifier for `classify.labels`, evaluate it on the test patients, and write it.

    Raises:
        SscxrError: one line states what cannot be done.
    """
    listener = listener or Listener()
    config, cache, labels = job.config, job.cache, list(job.config.classify.labels)
    _check_labels(labels)
    wanted = classifying.targets(cache, labels)
    rows = classifying.labelled(wanted, _usable(job))
    if not len(rows):
        raise FinetuneError(
            f"{', '.join(labels)} is unknown of every image here: there is nothing to learn from"
        )
    parts = _split(job, rows)
    if config.classify.per_class:
        drawn = classifying.draw(
            cache, wanted, parts.train, labels, per_class=config.classify.per_class, seed=config.run.seed
        )
        parts = dataclasses.replace(parts, train=drawn)
    classifying.check_classes(wanted, parts, labels)
    if len(parts.val) and not classifying.has_both(wanted[parts.val]).any():
        listener.note(
            "the validation patients have one class only: no early stopping, the last weights are kept"
        )

    def task_of(model: Model, device: torch.device) -> Classification:
        task = Classification(cast(Classifier, model), cache, config, device, train=parts.train)
        cast(Classifier, model).start_at(task.prior)
        return task

    def judged(task: Classification, test: Rows) -> dict[str, Any]:
        return classification.evaluate(
            task.probabilities(test),
            wanted[test],
            cache.index.iloc[test],
            labels,
            specificity=config.classify.specificity,
            resamples=config.probe.resamples,
        )

    return _tuned(job, listener, parts, task_of, judged)


def segment(job: Job, listener: Listener | None = None) -> Tuned:
    """Fine-tune a lung segmenter on the images that have a mask, evaluate it on the test patients, and write it.

    Raises:
        SscxrError: one line states what cannot be done.
    """
    from sscxr.finetuning.segment import Segmentation  # MONAI takes seconds to import

    config, cache = job.config, job.cache
    parts = _split(job, segmentation.masked(cache, _usable(job)))

    def task_of(model: Model, device: torch.device) -> Segmentation:
        return Segmentation(cast("UNETR", model), cache, config, device)

    def judged(task: Segmentation, test: Rows) -> dict[str, Any]:
        return segmentation.evaluate(
            task.measured(test), cache.index.iloc[test], resamples=config.probe.resamples
        )

    return _tuned(job, listener or Listener(), parts, task_of, judged)


def _tuned(
    job: Job,
    listener: Listener,
    parts: Split,
    task_of: Callable[[Model, torch.device], Any],
    judged: Callable[[Any, Rows], dict[str, Any]],
) -> Tuned:
    """Train, evaluate and write a model for any task.

    Args:
        task_of: returns the task of a model on its device.
        judged: returns the figures of a task's model on test rows.
    """
    finetuned.refuse(job.out, overwrite=job.overwrite)
    device = set_up(job.config)
    for note in () if job.untrained else finetuned.notes_on_start(job.encoder, job.config):
        listener.note(note)
    model, spec = finetuned.start(job.encoder, job.config, untrained=job.untrained)
    task: Task = task_of(model.to(device), device)
    asked, planned = job.config.finetune, finetune.planned_epochs(len(parts.train), job.config.finetune)
    if planned > asked.epochs:
        listener.note(f"{planned} epochs instead of {asked.epochs}, for finetune.min_steps={asked.min_steps}")
    listener.begin(parts, planned)
    history = finetune.fine_tune(task, parts, job.config, on_epoch=listener.epoch, on_step=listener.step)
    figures = judged(task, parts.test) if len(parts.test) else {}
    extra = {
        finetuned.SETTINGS: configs.dumps(job.config),
        finetuned.HISTORY: _lines(history),
        finetuned.TRAINED_ON: finetune.trained_on(job.cache, parts),
        finetuned.EVALUATION: json.dumps(figures, indent=1, allow_nan=False) + "\n",
        finetuned.CARD: finetuned_card.render(spec, job.config, job.cache.index, parts, history, figures),
    }
    folder = finetuned.save(job.out, task.model, spec, extra=extra, overwrite=job.overwrite)
    return Tuned(folder, spec, history, parts, figures)


def _usable(job: Job) -> Rows:
    return finetune.usable(job.cache, laterals=job.config.data.laterals, sources=job.sources)


def _split(job: Job, rows: Rows) -> Split:
    few = job.config.run.stage == "classify" and job.config.classify.per_class
    val_share = 0.0 if few else job.config.finetune.val_share
    return finetune.split(job.cache, rows, test_share=job.config.data.test_share, val_share=val_share)


def _check_labels(labels: Sequence[str]) -> None:
    if not labels:
        raise FinetuneError("classify.labels is empty: name the labels to learn, as in --label pneumonia")
    twice = [label for place, label in enumerate(labels) if label in labels[:place]]
    if twice:
        raise FinetuneError(f"label {twice[0]!r} is named twice")


def _lines(history: History) -> str:
    """Return the text of `history.jsonl`; the score of an epoch without one is null."""
    lines = []
    for one in history.epochs:
        facts = dataclasses.asdict(one)
        facts["score"] = facts["score"] if np.isfinite(facts["score"]) else None
        facts["seconds"] = round(facts["seconds"], 3)
        lines.append(json.dumps(facts | {"kept": one.epoch == history.best}))
    return "\n".join(lines) + "\n"
