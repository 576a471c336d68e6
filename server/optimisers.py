"""The server's rules: how the mean of a round's updates moves the encoder."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sscxr import stages
from sscxr.config import Config
from sscxr.training import optim

Tensors = dict[str, Tensor]

_BETA2, _TAU = 0.99, 1e-3  # FedAdam's, as published


class ServerOptimiser(ABC):
    """Applies the mean update to the encoder; its state is part of the checkpoint."""

    def __init__(self, lr: float, momentum: float = 0.0) -> None:
        self.lr, self.momentum = lr, momentum
        self._kept: Tensors = {}

    @abstractmethod
    def step(self, encoder: Tensors, mean: Tensors, progress: float) -> Tensors:
        """Return the next encoder, fp32.

        Args:
            encoder, mean: the weights, and the mean of what the sites sent.
            progress: the share of the run that is done after this round, 0..1.
        """

    def state(self) -> Tensors:
        """Return the tensors to keep between rounds."""
        return dict(self._kept)

    def load(self, state: Tensors) -> None:
        """Restore what `state` returned."""
        self._kept = {name: tensor.clone() for name, tensor in state.items()}


class FedAvg(ServerOptimiser):
    """Add the mean update, times `lr` (McMahan et al., arXiv 1602.05629; lr = 1 there)."""

    def step(self, encoder: Tensors, mean: Tensors, progress: float) -> Tensors:
        """Return encoder + lr * mean."""
        return {name: (self.lr * mean[name]).add_(weights) for name, weights in encoder.items()}


class Nesterov(ServerOptimiser):
    """Outer Nesterov momentum on the mean update (DiLoCo, arXiv 2311.08105; lr 0.7, momentum 0.9 there).

    It keeps the velocity.
    """

    def step(self, encoder: Tensors, mean: Tensors, progress: float) -> Tensors:
        """Update v <- momentum * v + mean; return encoder + lr * (mean + momentum * v)."""
        result = {}
        for name, weights in encoder.items():
            velocity = self.momentum * self._kept.get(name, torch.zeros_like(weights)) + mean[name]
            self._kept[name] = velocity
            result[name] = weights + self.lr * (mean[name] + self.momentum * velocity)
        return result


class FedAdam(ServerOptimiser):
    """Adam on the mean update (Reddi et al., arXiv 2003.00295, algorithm 2, without bias correction, as there).

    It keeps both moments; `momentum` is beta 1.
    """

    def step(self, encoder: Tensors, mean: Tensors, progress: float) -> Tensors:
        """Update both moments; return encoder + lr * m / (sqrt(v) + tau)."""
        result = {}
        for name, weights in encoder.items():
            # v begins at tau squared.
            first = self._kept.get(f"first.{name}", torch.zeros_like(weights))
            second = self._kept.get(f"second.{name}", torch.full_like(weights, _TAU**2))
            first = self.momentum * first + (1 - self.momentum) * mean[name]
            second = _BETA2 * second + (1 - _BETA2) * mean[name].square()
            self._kept |= {f"first.{name}": first, f"second.{name}": second}
            result[name] = weights + self.lr * first / (second.sqrt() + _TAU)
        return result


class JointAdamW(ServerOptimiser):
    """AdamW of the mean gradient, by the run's own schedule: a round is one step of training in one place.

    It keeps AdamW's moments and step counts.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config.pretrain.lr)
        self._settings, self._schedule = config.pretrain, stages.of(config).schedule()

    def step(self, encoder: Tensors, mean: Tensors, progress: float) -> Tensors:
        """Clip the gradient, and return the encoder after one step of AdamW."""
        settings = self._settings
        weights = _Weights(encoder)
        for name, weight in weights.named().items():
            # Without a gradient at any site, it does not decay, as in one place.
            weight.grad = mean[name].clone() if mean[name].any() else None
        first, second = settings.betas
        adamw = optim.adamw(weights, lr=settings.lr, betas=(first, second))
        optim.restore_moments(adamw, weights, self._kept)
        optim.set_rates(adamw, *self._schedule.at(progress))
        optim.clip(weights.parameters(), settings.clip, per_tensor=settings.clip_per_tensor)
        adamw.step()
        self._kept = optim.moments(adamw, weights)
        return {name: weight.detach() for name, weight in weights.named().items()}


class _Weights(nn.Module):
    """Tensors as the parameters of a module, whose names may not have dots."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._names = sorted(tensors)
        for place, name in enumerate(self._names):
            self.register_parameter(str(place), nn.Parameter(tensors[name].clone()))

    def named(self) -> dict[str, nn.Parameter]:
        return dict(zip(self._names, self.parameters(), strict=True))


def server_optimiser(config: Config) -> ServerOptimiser:
    """Return the rule that `federation.server.name` names."""
    settings = config.federation.server
    if settings.name == "adamw":
        return JointAdamW(config)
    rules: dict[str, Callable[[float, float], ServerOptimiser]]
    rules = {"fedavg": FedAvg, "nesterov": Nesterov, "fedadam": FedAdam}
    return rules[settings.name](settings.lr, settings.momentum)
