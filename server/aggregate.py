"""Averaging updates: a sum that does not depend on order, and what the server does with the mean.

The sum is kept in 64-bit integers. Each value of an update is rounded once to a multiple of 2^-32, times the
site's whole-number weight, and added: integer addition is associative, so replies in any order, and sums of
sums, give the same bits. Secure aggregation needs the same form later.
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from sscxr import codecs
from sscxr.config import ConfigError, ServerOptimiserConfig
from sscxr.errors import SscxrError
from sscxr.ranges import MAX_TOTAL_WEIGHT

FRACTION_BITS = 32
# |value| <= 64 and a total weight below 2^25 (33 million images) keep every sum below 2^63.
MAX_ABS = 64.0


class FoldError(SscxrError):
    """An update that cannot be added: one line that says why."""


class WeightedSum:
    """A weighted sum of updates; its memory is one model, whatever the number of updates.

    Attributes:
        weight: the weights' total.
        updates: how many were added.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._sums = {name: torch.zeros(t.shape, dtype=torch.int64) for name, t in like.items()}
        self.weight = 0
        self.updates = 0

    def add(self, update: Mapping[str, Tensor], weight: int) -> None:
        """Add one update: fp32 tensors of the names and shapes given at the start, all finite.

        Raises:
            FoldError: a weight below 1, or a total or a value out of the range that the sum can hold; nothing
                was added then.
        """
        if weight < 1:
            raise FoldError(f"weight {weight} is below 1")
        if self.weight + weight > MAX_TOTAL_WEIGHT:
            raise FoldError(f"total weight {self.weight + weight} is above {MAX_TOTAL_WEIGHT}")
        for tensor in update.values():
            largest = codecs.size(tensor)
            if not largest <= MAX_ABS:  # NaN too
                raise FoldError(f"an update's value of size {largest:g} is not within {MAX_ABS:g}")
        for name, total in self._sums.items():
            values, sums = update[name].reshape(-1), total.view(-1)
            for start in range(0, len(sums), codecs.CHUNK):
                fixed = to_fixed(values[start : start + codecs.CHUNK])
                sums[start : start + codecs.CHUNK].add_(fixed, alpha=weight)
        self.weight += weight
        self.updates += 1

    def merge(self, other: "WeightedSum") -> None:
        """Add another sum to this one.

        Raises:
            FoldError: the total weight would be out of range; nothing was added then.
        """
        if self.weight + other.weight > MAX_TOTAL_WEIGHT:
            raise FoldError(f"total weight {self.weight + other.weight} is above {MAX_TOTAL_WEIGHT}")
        for name, total in self._sums.items():
            total.add_(other._sums[name])
        self.weight += other.weight
        self.updates += other.updates

    def mean(self) -> dict[str, Tensor]:
        """The weighted mean, fp32."""
        if not self.weight:
            raise FoldError("no update was added")
        scale = math.ldexp(1.0, FRACTION_BITS) * self.weight
        found = {name: torch.empty(total.shape) for name, total in self._sums.items()}
        for name, total in self._sums.items():
            sums, values = total.view(-1), found[name].view(-1)
            for start in range(0, len(sums), codecs.CHUNK):
                part = slice(start, start + codecs.CHUNK)
                values[part] = sums[part].double().div_(scale)
        return found


def to_fixed(values: Tensor) -> Tensor:
    """fp32 values of size at most `MAX_ABS` as int64 multiples of 2^-32, rounded to nearest."""
    # A power of two moves the exponent alone, and whole numbers stay whole: fp32 loses nothing on the way.
    return values.mul(math.ldexp(1.0, FRACTION_BITS)).round_().to(torch.int64)


class ServerOptimiser(Protocol):
    """What the server does with the mean update; its state is part of the checkpoint."""

    def step(self, encoder: dict[str, Tensor], mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The next encoder, fp32."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers between rounds."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


class FedAvg:
    """Add the mean update, times `lr` (McMahan et al., arXiv 1602.05629; lr = 1 there)."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(self, encoder: dict[str, Tensor], mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """encoder + lr * mean."""
        return {name: (self.lr * mean[name]).add_(weights) for name, weights in encoder.items()}

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take up."""


class Nesterov:
    """Outer Nesterov momentum on the mean update (DiLoCo, arXiv 2311.08105; lr 0.7, momentum 0.9 there)."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum = lr, momentum
        self._velocity: dict[str, Tensor] = {}

    def step(self, encoder: dict[str, Tensor], mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """v <- momentum * v + mean; encoder + lr * (mean + momentum * v)."""
        result = {}
        for name, weights in encoder.items():
            velocity = self.momentum * self._velocity.get(name, torch.zeros_like(weights)) + mean[name]
            self._velocity[name] = velocity
            result[name] = weights + self.lr * (mean[name] + self.momentum * velocity)
        return result

    def state(self) -> dict[str, Tensor]:
        """The velocity."""
        return dict(self._velocity)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up the velocity."""
        self._velocity = {name: tensor.clone() for name, tensor in state.items()}


def server_optimiser(settings: ServerOptimiserConfig) -> ServerOptimiser:
    """The rule that the settings name.

    Raises:
        ConfigError: an unknown name.
    """
    if settings.name == "fedavg":
        return FedAvg(settings.lr)
    if settings.name == "nesterov":
        return Nesterov(settings.lr, settings.momentum)
    raise ConfigError(f"federation.server.name={settings.name!r} is not known; there are: fedavg, nesterov")
