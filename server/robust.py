"""Averages that a minority of sites cannot move far: the median and the trimmed mean of each value (Yin et al.,
arXiv 1803.01498).

They need all updates of a round at once, so each waits in a file without a name beside the run, which is gone when
the round or the server ends; values are then read in blocks. So memory stays flat, and the disk has an fp32 model
for each site. All sites weigh the same, since a weight is what a site claims.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from server.aggregate import FoldError, WeightedSum, check_sizes
from sscxr.federation import codecs

# `federation.rule` -> the share of the values that are dropped at each end.
TRIMMED: Final[dict[str, float]] = {"trimmed": 0.25, "median": 0.5}


class Total(Protocol):
    """The updates of one attempt at a round."""

    def add(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Add one update: finite fp32 tensors of the names and shapes given at the start.

        Raises:
            FoldError: it cannot be added; nothing is added then.
        """

    def mean(self) -> dict[str, Tensor]:
        """Return the average, fp32."""


def total(rule: str, like: Mapping[str, Tensor], folder: Path) -> Total:
    """Return an empty total under `federation.rule`; updates that have to wait do so in the folder."""
    return WeightedSum(like) if rule == "mean" else TrimmedMean(like, TRIMMED[rule], folder)


class TrimmedMean:
    """The mean of each value over the sites, without the largest and the smallest; in the end the median."""

    def __init__(self, like: Mapping[str, Tensor], share: float, folder: Path) -> None:
        """Begin without updates.

        Args:
            share: of the sites, dropped at each end, rounded down; at 0.5 one or two values are left.
        """
        self._shapes = {name: tensor.shape for name, tensor in like.items()}
        self._share, self._folder = share, folder
        self._files: list[IO[bytes]] = []

    def add(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Add one update, whatever its weight.

        Raises:
            FoldError: a value out of range; nothing is added then.
        """
        check_sizes(update)
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it is open until the round ends
        for name in self._shapes:
            file.write(update[name].contiguous().numpy().data)
        file.flush()
        self._files.append(file)

    def mean(self) -> dict[str, Tensor]:
        """Return the trimmed mean, fp32; the order of the updates does not change it."""
        if not self._files:
            raise FoldError("no update was added")
        count = len(self._files)
        drop = min(math.floor(self._share * count), (count - 1) // 2)
        found, begin = {}, 0
        for name, shape in self._shapes.items():
            found[name] = torch.empty(shape)
            for part in torch.split(found[name].reshape(-1), codecs.CHUNK):
                values = torch.stack(list(_read(self._files, begin, part.numel())))
                kept = values.sort(dim=0).values[drop : count - drop]
                part.copy_(kept.double().mean(dim=0))
                begin += part.numel()
        return found


def _read(files: Sequence[IO[bytes]], begin: int, count: int) -> Iterator[Tensor]:
    """Yield from each file `count` fp32 values from the place `begin` on."""
    size = np.dtype(np.float32).itemsize
    for file in files:
        data = os.pread(file.fileno(), count * size, begin * size)
        yield torch.from_numpy(np.frombuffer(data, np.float32).copy())
