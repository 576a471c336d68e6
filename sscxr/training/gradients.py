"""Gradients in place of an update: the server steps, so that a round is one step of training in one place."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sscxr.training.parts import Parts


class Gradients(torch.optim.Optimizer):
    """Keeps the gradients of one step instead of taking it."""

    def __init__(self, parts: Parts) -> None:
        self._named = dict(parts.parameters())
        super().__init__([{"params": list(self._named.values()), "decays": False}], {"lr": 0.0})
        self._kept: dict[str, Tensor] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Keep the present gradients."""
        self._kept = {
            name: weight.grad.detach().clone()
            for name, weight in self._named.items()
            if weight.grad is not None
        }

    def of(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradient of each tensor that was received, on the CPU; zero for one without."""
        return {
            name: self._kept[name].cpu() if name in self._kept else torch.zeros(tensor.shape)
            for name, tensor in received.items()
        }
