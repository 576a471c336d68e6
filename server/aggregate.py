"""Averaging updates: a sum that does not depend on order.

The sum has whole numbers only. Each value of an update is rounded once to a multiple of 2^-32 and added as that
multiple, times the site's whole-number weight, so that replies in any order give the same bits. Secure
aggregation needs the same form later.

fp64 adds whole numbers exactly up to 2^53, and faster than integers: a rounded value has at most the 24 bits of
fp32, its product with a weight at most 49. Sums that could exceed 2^53 are first moved to 64-bit integers.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sscxr.config.schema import MAX_TOTAL_WEIGHT
from sscxr.errors import SscxrError
from sscxr.federation import codecs

FRACTION_BITS = 32
# |value| <= 64 and a total weight below 2^25 (33 million images) keep every sum below 2^63.
MAX_ABS = 64.0
_EXACT = 2**53  # fp64 has every whole number up to here


class FoldError(SscxrError):
    """An update cannot be added; one line states why."""


class WeightedSum:
    """A weighted sum of updates. It takes the memory of one or two models, whatever the number of updates.

    Attributes:
        weight: the weights' total.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._sums = {name: torch.zeros(t.numel(), dtype=torch.float64) for name, t in like.items()}
        self._reach = 0  # an upper bound on the size of the values in `_sums`
        self._moved: dict[str, Tensor] = {}  # int64; empty until sums are moved
        self._shapes = {name: tensor.shape for name, tensor in like.items()}
        self.weight = 0

    def add(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Add one update: finite fp32 tensors of the names and shapes given at the start.

        Raises:
            FoldError: a weight below 1, or a total or a value out of the range of the sum; nothing is added then.
        """
        if weight < 1:
            raise FoldError(f"weight {weight} is below 1")
        if self.weight + weight > MAX_TOTAL_WEIGHT:
            raise FoldError(f"total weight {self.weight + weight} is above {MAX_TOTAL_WEIGHT}")
        reach = weight * math.ceil(math.ldexp(check_sizes(update), FRACTION_BITS))
        if self._reach + reach > _EXACT:
            self._move()
        self._reach += reach
        scratch = torch.empty(codecs.CHUNK)
        for name, sums in self._sums.items():
            for values, part in _pieces(update[name], sums):
                part.add_(to_fixed(values, scratch[: len(values)]), alpha=weight)
        self.weight += weight

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean, fp32."""
        if not self.weight:
            raise FoldError("no update was added")
        if self._moved:
            self._move()
        scale = math.ldexp(1.0, FRACTION_BITS) * self.weight
        found = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        for name, total in (self._moved or self._sums).items():
            for values, part in _pieces(found[name], total):
                values.copy_(part.double() / scale)
        return found

    def _move(self) -> None:
        """Move `_sums` to integers, which are large enough for all that may be added."""
        for name, sums in self._sums.items():
            moved = self._moved.setdefault(name, torch.zeros(sums.shape, dtype=torch.int64))
            moved += sums.to(torch.int64)
            sums.zero_()
        self._reach = 0


def check_sizes(update: Mapping[str, Tensor]) -> float:
    """Return the size of an update's largest value.

    Raises:
        FoldError: it is above `MAX_ABS`, or NaN.
    """
    sizes = [codecs.size(tensor) for tensor in update.values()]
    for largest in sizes:
        if not largest <= MAX_ABS:  # NaN too
            raise FoldError(f"an update's value of size {largest:g} is not within {MAX_ABS:g}")
    return max(sizes, default=0.0)


def _pieces(tensor: Tensor, sums: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a tensor and its sums [values] into pieces that fit into the processor's cache."""
    return zip(torch.split(tensor.reshape(-1), codecs.CHUNK), torch.split(sums, codecs.CHUNK), strict=True)


def to_fixed(values: Tensor, into: Tensor) -> Tensor:
    """Return fp32 values of size at most `MAX_ABS` as multiples of 2^-32, rounded to nearest, in fp32."""
    # Multiplying by a power of two changes only the exponent, so fp32 loses nothing.
    return torch.mul(values, math.ldexp(1.0, FRACTION_BITS), out=into).round_()
