"""One fine-tuning, from an encoder's folder to a model's: the work of `sscxr finetune`, with any display."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sscxr import config as configs
from sscxr.config import Config, ConfigError
from sscxr.data.cache.cache import Cache
from sscxr.finetuning import KINDS, finetune, finetuned, finetuned_card
from sscxr.finetuning.finetune import Epoch, History, Split
from sscxr.finetuning.finetuned import Spec
from sscxr.training.device import set_up


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
    if config.privacy.noise:
        raise ConfigError(
            f"privacy.noise={config.privacy.noise:g}: differential privacy is for federations; this model is "
            "trained without, and is as private as its images"
        )
    return config


def fine_tune(job: Job, listener: Listener | None = None) -> Tuned:
    """Fine-tune a model for the task of `run.stage`, evaluate it on the test patients, and write it.

    Raises:
        SscxrError: one line states what cannot be done.
    """
    listener, kind = listener or Listener(), KINDS[job.config.run.stage]
    parts = kind.split(job.cache, job.config, job.sources, listener.note)
    finetuned.refuse(job.out, overwrite=job.overwrite)
    device = set_up(job.config)
    for note in () if job.untrained else finetuned.notes_on_start(job.encoder, job.config):
        listener.note(note)
    model, spec = finetuned.start(job.encoder, job.config, untrained=job.untrained)
    task = kind.task(model.to(device), job.cache, job.config, device, parts.train)
    kind.begin(task)
    asked, planned = job.config.finetune, finetune.planned_epochs(len(parts.train), job.config.finetune)
    if planned > asked.epochs:
        listener.note(f"{planned} epochs instead of {asked.epochs}, for finetune.min_steps={asked.min_steps}")
    listener.begin(parts, planned)
    history = finetune.fine_tune(task, parts, job.config, on_epoch=listener.epoch, on_step=listener.step)
    figures = {}
    if len(parts.test):
        place = job.cache, parts.test, spec.labels
        predicted = kind.predict(task.model, task.input, *place, spec.labels)
        figures = kind.evaluate(predicted, *place, **kind.settings(job.config))
    extra = {
        finetuned.SETTINGS: configs.dumps(job.config),
        finetuned.HISTORY: _lines(history),
        finetuned.TRAINED_ON: finetune.trained_on(job.cache, parts),
        finetuned.EVALUATION: json.dumps(figures, indent=1, allow_nan=False) + "\n",
        finetuned.CARD: finetuned_card.render(spec, job.config, job.cache.index, parts, history, figures),
    }
    folder = finetuned.save(job.out, task.model, spec, extra=extra, overwrite=job.overwrite)
    return Tuned(folder, spec, history, parts, figures)


def _lines(history: History) -> str:
    """Return the text of `history.jsonl`; the score of an epoch without one is null."""
    lines = []
    for one in history.epochs:
        facts = dataclasses.asdict(one)
        facts["score"] = facts["score"] if np.isfinite(facts["score"]) else None
        facts["seconds"] = round(facts["seconds"], 3)
        lines.append(json.dumps(facts | {"kept": one.epoch == history.best}))
    return "\n".join(lines) + "\n"
