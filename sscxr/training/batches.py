"""Which images a round's steps train on, and when: the same at every site, wherever rounds begin and end."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch

from sscxr import seeds
from sscxr.data.rows import Rows
from sscxr.training.loop import Stretch


def batches_per_epoch(images: int, batch_size: int) -> int:
    """How many batches of at most `batch_size` hold so many images."""
    return max(1, -(-images // batch_size))


def steps_of_round(images: int, batch_size: int, local_epochs: float, round_number: int) -> range:
    """The steps of a round, counted from the run's first: `local_epochs` passes, or that share of one.

    Where a share is less than one batch, a round has one all the same.
    """
    per_round = local_epochs * batches_per_epoch(images, batch_size)
    first, last = (math.floor(number * per_round + 1e-6) for number in (round_number, round_number + 1))
    return range(first, max(last, first + 1))


def stretch_of_round(steps: range, round_number: int, rounds: int) -> Stretch:
    """Where the steps of a round, counted from 0, lie in a run of so many rounds."""
    return Stretch(len(steps), round_number / rounds, (round_number + 1) / rounds)


def batches_of_round(rows: Rows, batch_size: int, steps: range, *, seed: int, site: str) -> Iterator[Rows]:
    """The batches of a round's steps: each epoch has an order of its own, wherever rounds begin and end in it."""
    per_epoch = batches_per_epoch(len(rows), batch_size)
    for number, steps_of_epoch in itertools.groupby(steps, lambda step: step // per_epoch):
        batches = epoch(rows, batch_size, seeds.generator("cpu", seed, "order", site, number))
        for step in steps_of_epoch:
            yield batches[step % per_epoch]


def epoch(rows: Rows, batch_size: int, order: torch.Generator) -> list[Rows]:
    """All rows once, shuffled, in batches of nearly equal size, so that none is a leftover of one or two."""
    shuffled = rows[torch.randperm(len(rows), generator=order).numpy()]
    return np.array_split(shuffled, batches_per_epoch(len(rows), batch_size))
