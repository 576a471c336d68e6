"""A teacher: a copy of modules that follows them by an exponential moving average and is not trained itself."""

import copy
import math
from typing import Self

import torch
from torch import nn


class Teacher(nn.Module):
    """Copies of modules, always in eval mode, so that stochastic depth does not vary their outputs.

    Attributes:
        copies: copies of the modules, in their order.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(module) for module in modules)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, *modules: nn.Module, momentum: float) -> None:
        """Move each parameter to `momentum` times itself and `1 - momentum` times that of the modules."""
        students = [parameter.detach() for module in modules for parameter in module.parameters()]
        torch._foreach_lerp_(list(self.copies.parameters()), students, 1 - momentum)

    @torch.no_grad()
    def reset(self, *modules: nn.Module) -> None:
        """Become equal to the modules."""
        for own, module in zip(self.copies, modules, strict=True):
            own.load_state_dict(module.state_dict())


def momentum_at(progress: float, start: float) -> float:
    """Return a teacher's momentum: from `start` to 1 by a cosine over the run (BYOL, arXiv 2006.07733, 3.2)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress))
