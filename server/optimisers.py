"""The server's rules: how the mean of a round's updates moves the encoder."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sscxr import stages
from sscxr.config import Config, ConfigError
from sscxr.training import optim

_BETA2, _TAU = 0.99, 1e-3  # FedAdam's, as published


class ServerOptimiser(Protocol):
    """Applies the mean update to the encoder; its state is part of the checkpoint."""

    def step(
        self, encoder: Mapping[str, Tensor], mean: Mapping[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return the next encoder, fp32.

        Args:
            encoder, mean: the weights, and the mean of what the sites sent.
            progress: the share of the run that is done after this round, 0..1.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to keep between rounds."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""


class FedAvg:
    """Add the mean update, times `lr` (McMahan et al., arXiv 1602.05629; lr = 1 there)."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def step(
        self, encoder: Mapping[str, Tensor], mean: Mapping[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Return encoder + lr * mean."""
        return {name: (self.lr * mean[name]).add_(weights) for name, weights in encoder.items()}

    def state(self) -> dict[str, Tensor]:
        """Return an empty dict."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""


class Nesterov:
    """Outer Nesterov momentum on the mean update (DiLoCo, arXiv 2311.08105; lr 0.7, momentum 0.9 there)."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum = lr, momentum
        self._velocity: dict[str, Tensor] = {}

    def step(
        self, encoder: Mapping[str, Tensor], mean: Mapping[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Update v <- momentum * v + mean; return encoder + lr * (mean + momentum * v)."""
        result = {}
        for name, weights in encoder.items():
            velocity = self.momentum * self._velocity.get(name, torch.zeros_like(weights)) + mean[name]
            self._velocity[name] = velocity
            result[name] = weights + self.lr * (mean[name] + self.momentum * velocity)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return the velocity."""
        return dict(self._velocity)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the velocity."""
        self._velocity = {name: tensor.clone() for name, tensor in state.items()}


class FedAdam:
    """Adam on the mean update (Reddi et al., arXiv 2003.00295, algorithm 2, without bias correction, as there)."""

    def __init__(self, lr: float, beta1: float) -> None:
        self.lr, self.beta1 = lr, beta1
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}

    def step(
        self, encoder: Mapping[str, Tensor], mean: Mapping[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Update both moments; return encoder + lr * m / (sqrt(v) + tau)."""
        result = {}
        for name, weights in encoder.items():
            # v begins at tau squared.
            first = self._first.get(name, torch.zeros_like(weights))
            second = self._second.get(name, torch.full_like(weights, _TAU**2))
            self._first[name] = self.beta1 * first + (1 - self.beta1) * mean[name]
            self._second[name] = _BETA2 * second + (1 - _BETA2) * mean[name].square()
            result[name] = weights + self.lr * self._first[name] / (self._second[name].sqrt() + _TAU)
        return result

    def state(self) -> dict[str, Tensor]:
        """Return both moments."""
        first = {f"first.{name}": tensor for name, tensor in self._first.items()}
        return first | {f"second.{name}": tensor for name, tensor in self._second.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore both moments."""
        for prefix, kept in (("first.", self._first), ("second.", self._second)):
            kept.clear()
            kept |= {n.removeprefix(prefix): t.clone() for n, t in state.items() if n.startswith(prefix)}


class JointAdamW:
    """AdamW of the mean gradient, by the run's own schedule: a round is one step of training in one place."""

    def __init__(self, config: Config) -> None:
        self._settings, self._schedule = config.pretrain, stages.of(config).schedule()
        self._moments: dict[str, Tensor] = {}

    def step(
        self, encoder: Mapping[str, Tensor], mean: Mapping[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """Clip the gradient, and return the encoder after one step of AdamW."""
        settings = self._settings
        weights = _Weights(encoder)
        for name, weight in weights.named().items():
            # Without a gradient at any site, it does not decay, as in one place.
            weight.grad = mean[name].clone() if mean[name].any() else None
        first, second = settings.betas
        adamw = optim.adamw(weights, lr=settings.lr, betas=(first, second))
        optim.restore_moments(adamw, weights, self._moments)
        optim.set_rates(adamw, *self._schedule.at(progress))
        optim.clip(weights.parameters(), settings.clip, per_tensor=settings.clip_per_tensor)
        adamw.step()
        self._moments = optim.moments(adamw, weights)
        return {name: weight.detach() for name, weight in weights.named().items()}

    def state(self) -> dict[str, Tensor]:
        """Return AdamW's moments and step counts."""
        return dict(self._moments)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the moments."""
        self._moments = {name: tensor.clone() for name, tensor in state.items()}


class _Weights(nn.Module):
    """Tensors as the parameters of a module, whose names may not have dots."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = sorted(tensors)
        for place, name in enumerate(self._names):
            self.register_parameter(str(place), nn.Parameter(tensors[name].clone()))

    def named(self) -> dict[str, nn.Parameter]:
        return dict(zip(self._names, self.parameters(), strict=True))


def server_optimiser(config: Config) -> ServerOptimiser:
    """Return the rule that `federation.server.name` names.

    Raises:
        ConfigError: there is no rule of that name.
    """
    settings = config.federation.server
    if settings.name == "nesterov":
        return Nesterov(settings.lr, settings.momentum)
    if settings.name == "fedadam":
        return FedAdam(settings.lr, settings.momentum)
    if settings.name == "adamw":
        return JointAdamW(config)
    if settings.name == "fedavg":
        return FedAvg(settings.lr)
    raise ConfigError(f"federation.server.name={settings.name!r} is not known")
