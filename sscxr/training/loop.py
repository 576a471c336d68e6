"""The training loop, the only one: schedule, forward, backward, clip, step."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import torch
from torch import Tensor, nn

from sscxr.training import optim
from sscxr.training.optim import Schedule, set_rates

_CHECK_EVERY = 20  # steps between looks at the losses; each look waits for the device

BatchT = TypeVar("BatchT")


class NonFiniteLossError(RuntimeError):
    """A loss, or the weights after the last step, are NaN or infinite; names the step.

    For a loss it also names the batch's images, by their cache rows.
    """


class OutOfTimeError(RuntimeError):
    """The time budget for this training ended before its steps did."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a stretch of training.

    Attributes:
        loss: mean over its steps.
        steps, images: their numbers.
        seconds: wall time.
    """

    loss: float
    steps: int
    images: int
    seconds: float


@dataclass(frozen=True)
class HeldOut:
    """Figures of a model on a site's held-out images.

    Attributes:
        loss: mean over the images.
        score: mean AUROC of a classifier, Dice of a segmenter; NaN: none.
    """

    loss: float
    score: float


@dataclass(frozen=True)
class Stretch:
    """The place of a stretch of `steps` in the whole run: from `begin` to `end`, shares in 0..1."""

    steps: int
    begin: float
    end: float

    def progress(self, step: int) -> float:
        """Return the share of the run that is done after step `step`, counted from 0."""
        return self.begin + (self.end - self.begin) * (step + 1) / self.steps


def train(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[tuple[BatchT, Sequence[int]]],
    loss_of: Callable[[BatchT], Tensor | Iterator[Tensor]],
    *,
    stretch: Stretch,
    schedule: Schedule,
    clip: float,
    per_tensor: bool,
    autocast: AbstractContextManager[object] | None = None,
    gradients: Callable[[BatchT, Sequence[int]], Tensor] | None = None,
    budget: float = math.inf,
    on_step: Callable[[int, int, float], None] | None = None,
    after_step: Callable[[float], None] = lambda progress: None,
) -> Trained:
    """Train `model` for one stretch.

    Args:
        batches: pairs of a batch for `loss_of` and the cache rows of its images.
        loss_of: returns the loss of a batch, or an iterator over parts that add up to it; each part is computed,
            differentiated and freed before the next.
        gradients: sets the parameters' gradients for a batch and its rows, in place of `loss_of`, and returns the
            loss; see `private`.
        budget: seconds; after the step that exceeds it, training stops with an error rather than reply too late.
        on_step: called with (steps done, images done, latest known loss).
        after_step: called after each optimiser's step with the share of the run that is done.

    Raises:
        NonFiniteLossError: a loss was not finite, which is noticed at most `_CHECK_EVERY` steps later; or the
            weights are not finite after the last step.
        OutOfTimeError: the budget ended first.
    """
    model.train()
    began = monotonic()
    recent: list[tuple[int, Tensor, Sequence[int]]] = []
    losses: list[float] = []
    images = 0
    for step, (batch, rows) in enumerate(batches):
        lr, weight_decay = schedule.at(stretch.progress(step))
        set_rates(optimiser, lr, weight_decay)
        if gradients is None:
            loss = _differentiate(loss_of, batch, autocast or nullcontext())
        else:
            with autocast or nullcontext():
                loss = gradients(batch, rows)
        optim.clip(model.parameters(), clip, per_tensor=per_tensor)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after_step(stretch.progress(step))
        recent.append((step, loss, rows))
        images += len(rows)
        if len(recent) == _CHECK_EVERY or step + 1 == stretch.steps:
            losses += _finite(recent)
            recent.clear()
        if monotonic() - began > budget:  # at each step: on a slow machine twenty of them are many minutes
            raise OutOfTimeError(
                f"{step + 1} of {stretch.steps} steps took the whole budget of {budget:.0f} s"
            )
        if on_step is not None:
            on_step(step + 1, images, losses[-1] if losses else math.nan)
    losses += _finite(recent)
    # The last loss is from before the last step, so it does not show the final weights.
    largest = torch.stack(torch._foreach_norm(list(model.parameters()), math.inf))
    if not largest.isfinite().all():
        raise NonFiniteLossError(
            f"weights that are not finite after step {len(losses) - 1} of this round, the last; begin a new "
            "run with a lower learning rate (lr), or with amp=fp32"
        )
    return Trained(math.fsum(losses) / max(1, len(losses)), len(losses), images, monotonic() - began)


def _differentiate(
    loss_of: Callable[[BatchT], Tensor | Iterator[Tensor]],
    batch: BatchT,
    autocast: AbstractContextManager[object],
) -> Tensor:
    """Add a batch's gradients to the parameters, and return its loss, detached."""
    with autocast:
        loss = loss_of(batch)
    if isinstance(loss, Tensor):
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()
    done: list[Tensor] = []
    while True:
        with autocast:  # the forward pass of a part runs in `next`
            part = next(loss, None)
        if part is None:
            return torch.stack(done).sum()
        part.backward()  # type: ignore[no-untyped-call]
        done.append(part.detach())


def _finite(recent: Sequence[tuple[int, Tensor, Sequence[int]]]) -> list[float]:
    if not recent:
        return []
    values: list[float] = torch.stack([loss for _, loss, _ in recent]).double().tolist()
    for value, (step, _, rows) in zip(values, recent, strict=True):
        if not math.isfinite(value):
            listed = ", ".join(str(int(row)) for row in rows)
            raise NonFiniteLossError(
                f"loss {value} at step {step} of this round; the batch's images by cache row: {listed}. "
                "Look at them, then begin a new run with a lower learning rate (lr), or with amp=fp32"
            )
    return values
