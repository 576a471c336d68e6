"""Fine-tuning whatever the task: patients split, epochs, early stopping, the best weights kept."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from sscxr import seeds
from sscxr.config import Config, FinetuneConfig
from sscxr.data import augment
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.errors import SscxrError
from sscxr.models.classifier import Classifier
from sscxr.training import optim
from sscxr.training.batches import batches_per_epoch, epoch
from sscxr.training.device import autocast
from sscxr.training.loop import NonFiniteLossError, Stretch, train

# Factor on the rate of a linear head that learns alone. Ours, on paediatric X-rays: at the plain rate the head
# stays far from the best linear classifier (AUROC 0.86; with this factor 0.93).
_LINEAR_RATE = 20.0


class FinetuneError(SscxrError):
    """Data or settings that nothing can be learned from: one line that says why."""


class Task(Protocol):
    """What is learned, and how well it is known: classification, segmentation.

    Attributes:
        model: what learns; its attribute `encoder` is a timm ViT.
    """

    model: nn.Module

    def batch(self, rows: Rows, generator: torch.Generator) -> Any:
        """Varied inputs and their targets, on the device; the generator is on the device too."""

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def score(self, rows: Rows) -> float:
        """How good the model is on whole images of cache rows: higher is better; NaN: these cannot tell."""


@dataclass(frozen=True)
class Split:
    """Cache rows to learn from, to stop by, and to judge by: no patient group is in two of them."""

    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        epoch: from 1.
        loss: mean over its steps.
        score: on the validation images; NaN where there are none.
        images, seconds: seen, and the time they took with the score's.
    """

    epoch: int
    loss: float
    score: float
    images: int
    seconds: float


@dataclass(frozen=True)
class History:
    """What a fine-tuning was.

    Attributes:
        epochs: each pass that was made.
        planned: how many there would have been at most.
        best: the epoch whose weights were kept, from 1.
    """

    epochs: Sequence[Epoch]
    planned: int
    best: int

    @property
    def seconds(self) -> float:
        """Wall time of all passes."""
        return math.fsum(one.seconds for one in self.epochs)


def usable(cache: Cache, *, laterals: bool, sources: Sequence[str] = ()) -> Rows:
    """The rows that may be used: of the named sources, or of all; without lateral views, or with.

    Raises:
        FinetuneError: a source that the cache does not have; the message names those it has.
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
    """Split rows by patient group, by the place that each group has had since the cache first saw it.

    Groups below `test_share` are for testing, as in pretraining; of the rest, the next `val_share` of all the
    groups here (one at least) are for validation. More data moves no patient from testing to training.

    Args:
        rows: those that the task can use.
        val_share: of the patients; 0: none.

    Raises:
        FinetuneError: fewer patients than parts.
    """
    index = cache.index.iloc[rows]
    groups = index["group"].to_numpy()
    held_out = cache.held_out(test_share)
    # A group with any image set aside is no training patient, whatever its other rows say.
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
    """Keep an encoder as it is: no gradients; `fine_tune` keeps it in eval mode too."""
    encoder.requires_grad_(False).eval()


def optimiser(model: nn.Module, settings: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW with rates by layer; a frozen encoder is left out, and a classifier's head on it learns faster."""
    low, high = settings.betas
    top = _LINEAR_RATE if settings.frozen and isinstance(model, Classifier) else 1.0
    return optim.layered_adamw(
        model, lr=settings.lr, betas=(low, high), layer_decay=settings.layer_decay, top=top
    )


def schedule(settings: FinetuneConfig) -> optim.Schedule:
    """Warm-up, then a cosine; the weight decay is constant."""
    return optim.Schedule(
        lr=settings.lr,
        min_lr=settings.min_lr,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        weight_decay_end=settings.weight_decay,
    )


def planned_epochs(images: int, settings: FinetuneConfig) -> int:
    """How many passes over so many images: as many as are set, or as give `min_steps`."""
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

    Where the validation rows give a score, the best epoch's weights are kept, and `finetune.patience` epochs
    without a better one end the training; where there are none, or none can tell, the last weights are.

    Args:
        on_epoch: told of each epoch when it is done.
        on_step: told how many of an epoch's steps are done.

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
        steps = len(batches)
        with seeds.forked(seed, "fine-tune", "drop-path", number):
            try:
                trained = train(
                    model,
                    adam,
                    _batches(task, batches, seeds.generator(device, seed, "fine-tune", "views", number)),
                    lambda batch: loss_of(task, batch, frozen=settings.frozen),
                    stretch=Stretch(steps, number / planned, (number + 1) / planned),
                    schedule=schedule(settings),
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


def _batches(
    task: Task, batches: Sequence[Rows], generator: torch.Generator
) -> Iterator[tuple[Any, Sequence[int]]]:
    for rows in batches:
        yield task.batch(rows, generator), rows.tolist()


def loss_of(task: Task, batch: Any, *, frozen: bool) -> Tensor:
    """A task's loss, a frozen encoder in eval mode."""
    if frozen:
        cast(nn.Module, task.model.encoder).eval()  # `train` puts the whole model into training mode
    return task.loss(batch)


def varied(
    images: Tensor, masks: Tensor | None, config: Config, generator: torch.Generator, *, out: int
) -> tuple[Tensor, Tensor | None]:
    """Cached images uint8 [B, S, S], and masks, as a fine-tuning sees them; see `augment.affine`."""
    settings = config.finetune
    low, high = settings.scale
    return augment.affine(
        images,
        masks,
        out=out,
        rotate=settings.rotate,
        shift=settings.shift,
        scale=(low, high),
        flip=settings.flip,
        brightness=settings.brightness,
        contrast=settings.contrast,
        mean=config.data.mean,
        std=config.data.std,
        generator=generator,
    )


def trained_on(cache: Cache, parts: Split) -> str:
    """The text of `trained_on.csv`: each patient group's salted hash, and whether it is train or val."""
    groups = cache.index["group"].to_numpy()
    lines = [
        f"{group},{part}"
        for part, rows in (("train", parts.train), ("val", parts.val))
        for group in sorted(set(groups[rows]))
    ]
    return "\n".join(["group,part", *lines]) + "\n"
