"""Fine-tuning for any task: patients split, epochs, early stopping, the best weights kept."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sscxr import seeds
from sscxr.config import Config, FinetuneConfig
from sscxr.data import augment
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.errors import SscxrError
from sscxr.models.inference import Input
from sscxr.training import optim
from sscxr.training.batches import batches_per_epoch, epoch
from sscxr.training.device import autocast
from sscxr.training.loop import NonFiniteLossError, Stretch, train


class FinetuneError(SscxrError):
    """The data or settings do not allow training; one line states why."""


class JudgeError(SscxrError):
    """A model cannot be judged on the data; one line states why."""


class Task(ABC):
    """A task, with its loss and score: classification, segmentation.

    Attributes:
        model: the model to train; its attribute `encoder` is a timm ViT.
        cache, config, device: its images, its settings, and where it is.
        input: what the model takes.
    """

    def __init__(self, model: nn.Module, cache: Cache, config: Config, device: torch.device) -> None:
        self.model, self.cache, self.config, self.device = model, cache, config, device
        size = config.finetune.img_size or config.encoder.img_size
        self.input = Input(size, config.data.mean, config.data.std, device=device)

    @abstractmethod
    def batch(self, rows: Rows, generator: torch.Generator) -> Any:
        """Return varied inputs and their targets, on the device; the generator is on the device too."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    @abstractmethod
    def score(self, rows: Rows) -> float:
        """Return the model's score on whole images of cache rows: higher is better; NaN if undefined on these."""


@dataclass(frozen=True)
class Split:
    """Cache rows for training, early stopping and testing; no patient group is in two of them."""

    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        loss: mean over its steps.
        score: on the validation images; NaN without any.
        images, seconds: the number of images, and the time including that of the score.
    """

    epoch: int
    loss: float
    score: float
    images: int
    seconds: float


@dataclass(frozen=True)
class History:
    """The history of a fine-tuning.

    Attributes:
        epochs: the completed passes.
        planned: the largest number of passes.
        best: the epoch whose weights were kept, from 1.
    """

    epochs: Sequence[Epoch]
    planned: int
    best: int

    @property
    def seconds(self) -> float:
        """Return the wall time of all passes."""
        return math.fsum(one.seconds for one in self.epochs)


def usable(cache: Cache, *, laterals: bool, sources: Sequence[str] = ()) -> Rows:
    """Return the rows that may be used: of the named sources, or of all; with or without lateral views.

    Raises:
        FinetuneError: the cache does not have a source; the message names its sources.
    """
    rows = cache.rows(laterals=laterals)
    known = sorted(cache.index["source"].unique())
    strange = [name for name in sources if name not in known]
    if strange:
        raise FinetuneError(
            f"cache {cache.folder} has no source {strange[0]!r}; its sources: {', '.join(known)}"
        )
    if not sources:
        return rows
    return rows[cache.index["source"].isin(list(sources)).to_numpy()[rows]]


def split(cache: Cache, rows: Rows, *, test_share: float, val_share: float) -> Split:
    """Split rows by patient group, by each group's place since the cache first saw it.

    Groups below `test_share` are for testing, as in pretraining; of the rest, the next `val_share` of all the
    groups here (at least one) are for validation. More data does not move a patient from testing to training.

    Args:
        rows: the rows that the task can use.
        val_share: of the patients; 0: none.

    Raises:
        FinetuneError: fewer patients than parts.
    """
    index = cache.index.iloc[rows]
    groups = index["group"].to_numpy()
    held_out = cache.held_out(test_share)
    # A group with any image set aside is not trained on, whatever its other rows.
    tested = cache.index["group"].to_numpy()[held_out]
    testing, free = held_out[rows], ~np.isin(groups, tested)
    places = index[free].groupby("group", sort=False)["split"].min().sort_values(kind="stable")
    patients = len(set(groups))
    of_val = max(1, round(val_share * patients)) if val_share else 0
    if len(places) <= of_val or (test_share and not testing.any()):
        parts = ["training", *["validation"] * bool(of_val), *["testing"] * bool(test_share)]
        raise FinetuneError(
            f"{patients} patient{'s' if patients != 1 else ''} with {len(rows)} usable images are too few: "
            f"{len(places)} for {' and '.join(parts[: 1 + bool(of_val)])}, {len(set(groups[testing]))} for testing"
        )
    validating = np.isin(groups, places.index[:of_val])
    return Split(rows[free & ~validating], rows[validating], rows[testing])


def freeze(encoder: nn.Module) -> None:
    """Freeze an encoder: no gradients; `fine_tune` keeps it in eval mode too."""
    encoder.requires_grad_(False).eval()


def optimiser(model: nn.Module, settings: FinetuneConfig) -> torch.optim.AdamW:
    """Return AdamW with rates by layer, without a frozen encoder, on which a classifier's head learns faster."""
    low, high = settings.betas
    top = getattr(model, "frozen_rate", 1.0) if settings.frozen else 1.0
    return optim.layered_adamw(
        model, lr=settings.lr, betas=(low, high), layer_decay=settings.layer_decay, top=top
    )


def planned_epochs(images: int, settings: FinetuneConfig) -> int:
    """Return the number of passes over so many images: the set number, or as many as `min_steps` needs."""
    return max(settings.epochs, -(-settings.min_steps // batches_per_epoch(images, settings.batch_size)))


def fine_tune(
    task: Task,
    parts: Split,
    config: Config,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> History:
    """Train `task.model`, and leave it with its best weights, in eval mode.

    If the validation rows give a score, the best epoch's weights are kept, and `finetune.patience` epochs without
    a better one end the training; otherwise the last weights are kept.

    Args:
        on_epoch: called after each epoch.
        on_step: called with the number of an epoch's steps done.

    Raises:
        FinetuneError: the loss is no longer finite.
    """
    settings, seed = config.finetune, config.run.seed
    model = task.model
    device = next(model.parameters()).device
    if settings.frozen:
        freeze(cast(nn.Module, model.encoder))
    adam = optimiser(model, settings)
    planned = planned_epochs(len(parts.train), settings)
    done: list[Epoch] = []
    best, kept = 0, None
    for number in range(planned):
        began = monotonic()
        order = seeds.generator("cpu", seed, "fine-tune", "order", number)
        batches = epoch(parts.train, settings.batch_size, order)
        steps, views = len(batches), seeds.generator(device, seed, "fine-tune", "views", number)
        with seeds.forked(seed, "fine-tune", "drop-path", number):
            try:
                trained = train(
                    model,
                    adam,
                    ((task.batch(rows, views), rows.tolist()) for rows in batches),
                    lambda batch: loss_of(task, batch, frozen=settings.frozen),
                    stretch=Stretch(steps, number / planned, (number + 1) / planned),
                    schedule=optim.Schedule.of(settings),
                    clip=settings.clip,
                    per_tensor=False,
                    autocast=autocast(settings.amp, device),
                    on_step=lambda step, images, loss, steps=steps: on_step(step, steps),  # type: ignore[misc]
                )
            except NonFiniteLossError:
                raise FinetuneError(
                    f"the loss is no longer finite in epoch {number + 1}; lower finetune.lr, or set "
                    "finetune.amp=fp32"
                ) from None
        model.eval()
        score = task.score(parts.val) if len(parts.val) else math.nan
        done.append(Epoch(number + 1, trained.loss, score, trained.images, monotonic() - began))
        if kept is None or not score <= done[best].score:
            best, kept = number, None if math.isnan(score) else copy.deepcopy(model.state_dict())
        on_epoch(done[-1])
        if settings.patience and number - best >= settings.patience:
            break
    if kept is not None:
        model.load_state_dict(kept)
    model.eval()
    return History(done, planned, best + 1)


def loss_of(task: Task, batch: Any, *, frozen: bool) -> Tensor:
    """Return a task's loss, with a frozen encoder in eval mode."""
    if frozen:
        cast(nn.Module, task.model.encoder).eval()  # `train` puts the whole model into training mode
    return task.loss(batch)


def varied(
    images: Tensor, masks: Tensor | None, config: Config, generator: torch.Generator, *, out: int
) -> tuple[Tensor, Tensor | None]:
    """Vary cached images uint8 [B, S, S], and masks, for a fine-tuning; see `augment.affine`."""
    settings = config.finetune
    return augment.affine(
        images,
        masks,
        out=out,
        rotate=settings.rotate,
        shift=settings.shift,
        scale=settings.scale,
        flip=settings.flip,
        brightness=settings.brightness,
        contrast=settings.contrast,
        mean=config.data.mean,
        std=config.data.std,
        generator=generator,
    )


def trained_on(cache: Cache, parts: Split) -> str:
    """Return the text of `trained_on.csv`: each patient group's salted hash, and whether it is train or val."""
    groups = cache.index["group"].to_numpy()
    lines = [
        f"{group},{part}"
        for part, rows in (("train", parts.train), ("val", parts.val))
        for group in sorted(set(groups[rows]))
    ]
    return "\n".join(["group,part", *lines]) + "\n"
