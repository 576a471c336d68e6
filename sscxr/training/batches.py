"""The batches and steps of a round: the same epochs at every site, wherever rounds begin and end."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sscxr import seeds
from sscxr.config import Config
from sscxr.config.schema import MIXED_IMAGES
from sscxr.data.rows import Rows
from sscxr.training.loop import Stretch


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Return how many batches of `batch_size` an epoch of so many images has.

    They are of nearly equal size, at most `batch_size`; larger if some would have fewer than `schema.MIXED_IMAGES`,
    which a site does not send, unless `batch_size` itself is below it.
    """
    batches = -(-images // batch_size)
    if batch_size >= MIXED_IMAGES:
        batches = min(batches, images // MIXED_IMAGES)
    return max(1, batches)


def round_of(config: Config, images: int, round_number: int) -> tuple[int, range]:
    """Return the images a step at a site of so many images, and its steps of a round, counted from the run's first.

    If sites send gradients, a round is one step, over `local_epochs` of the images at each site.
    """
    local_epochs = config.federation.local_epochs
    if config.federation.sends == "gradients":
        return max(MIXED_IMAGES, math.ceil(images * local_epochs)), range(round_number, round_number + 1)
    batch = config.learning.batch_size
    return batch, steps_of_round(images, batch, local_epochs, round_number)


def steps_of_round(images: int, batch_size: int, local_epochs: float, round_number: int) -> range:
    """Return the steps of a round, counted from the run's first: `local_epochs` passes, or that share of one.

    A round has at least one step, even if the share is less than a batch.
    """
    per_round = local_epochs * batches_per_epoch(images, batch_size)
    first, last = (math.floor(number * per_round + 1e-6) for number in (round_number, round_number + 1))
    return range(first, max(last, first + 1))


def stretch_of_round(steps: range, round_number: int, rounds: int) -> Stretch:
    """Return the place of a round's steps in a run of so many rounds."""
    return Stretch(len(steps), round_number / rounds, (round_number + 1) / rounds)


def batches_of_round(
    rows: Rows,
    batch_size: int,
    steps: range,
    *,
    seed: int,
    site: str,
    sources: npt.NDArray[Any] | None = None,
) -> Iterator[Rows]:
    """Yield the batches of a round's steps: each epoch has its own order, wherever rounds begin and end in it.

    Args:
        sources: each row's source, [rows of the cache]; an epoch then shows the images of one after another.
    """
    per_epoch = batches_per_epoch(len(rows), batch_size)
    for number, steps_of_epoch in itertools.groupby(steps, lambda step: step // per_epoch):
        batches = epoch(rows, batch_size, seeds.generator("cpu", seed, "order", site, number), sources)
        for step in steps_of_epoch:
            yield batches[step % per_epoch]


def epoch(
    rows: Rows, batch_size: int, order: torch.Generator, sources: npt.NDArray[Any] | None = None
) -> list[Rows]:
    """Return all rows once in batches of nearly equal size, so that no small batch is left over.

    They are shuffled; with `sources`, within each source, and the sources follow one another by name.
    """
    shuffled = rows[torch.randperm(len(rows), generator=order).numpy()]
    if sources is not None:
        shuffled = shuffled[np.argsort(sources[shuffled], kind="stable")]
    return np.array_split(shuffled, batches_per_epoch(len(rows), batch_size))
