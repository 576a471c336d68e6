"""An optimiser's moments, averaged over the sites beside the weights.

A site may keep its own. `federation.moments` averages the first ones (FedMuon, arXiv 2510.27403; the
slow ones of MT-DAO, 2510.05361), the second ones (FedAdamW, 2510.27486, there as one number a tensor), or both
(DES-LOC, 2505.22549, with one period for all). A site then continues from the moments of all sites' gradients,
which are less noisy than its own.

A second moment travels as its root, a gradient's typical size: its square would vanish in fp16 and in the server's
sum of multiples of 2^-32. So the average is that of the roots. Step counts stay at the site.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from sscxr.training import optimisers
from sscxr.training.parts import MOMENT, Parts

# `federation.moments` -> whether the first and the second moments are averaged.
AVERAGED: Final[dict[str, tuple[bool, bool]]] = {
    "local": (False, False),
    "first": (True, False),
    "second": (False, True),
    "second-means": (False, True),
    "both": (True, True),
}


class Moments:
    """The moments of one optimiser that are averaged."""

    def __init__(
        self, which: str, kind: str, parts: Parts, optimiser: torch.optim.Optimizer | None = None
    ) -> None:
        """Name the moments.

        Args:
            which: a key of `AVERAGED`.
            kind: `pretrain.optimiser`.
            optimiser: of the parts; None before the first step.
        """
        self._which, self._means = AVERAGED[which], which == "second-means"
        self._kind, self._parts, self._optimiser = kind, parts, optimiser
        self._new: list[dict[str, Any]] = []  # states without a step count of their own

    def shared(self) -> dict[str, Tensor]:
        """Return the moments under flat names, on the CPU; zeros before the first step."""
        return {
            name: self._sent(moment, second, state, parameter)
            for name, moment, second, state, parameter in self._each()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the moments to the average that the server sent."""
        self._new = []
        for name, moment, second, state, parameter in self._each():
            if not state:
                state |= optimisers.blank(self._kind, parameter)
                self._new.append(state)
            average = tensors[name].to(parameter.device)
            if second:  # a root may be below zero by a codec's rounding
                average = average.clamp(min=0).square()
            state[moment] = average.expand_as(parameter).clone()

    def begin(self, steps_done: int) -> None:
        """Give moments without a step count of their own that of the run, for AdamW's bias correction."""
        for state in self._new:
            if "step" in state:
                state["step"].fill_(steps_done)

    def _each(self) -> Iterator[tuple[str, str, bool, dict[str, Any], nn.Parameter]]:
        """Yield each averaged moment: flat name, name in the state, whether a second one, state, parameter."""
        if not any(self._which):
            return
        for name, parameter in self._parts.parameters():
            state = {} if self._optimiser is None else self._optimiser.state[parameter]
            names = optimisers.averaged(self._kind, parameter)
            for moment, wanted, second in zip(names, self._which, (False, True), strict=True):
                if wanted and moment:
                    yield f"{MOMENT}{moment}.{name}", moment, second, state, parameter

    def _sent(self, moment: str, second: bool, state: Mapping[str, Any], parameter: nn.Parameter) -> Tensor:
        value = state.get(moment)
        found = torch.zeros(parameter.shape) if value is None else value.detach().cpu()
        if self._means:
            found = found.mean().reshape(1)
        return found.sqrt() if second else found.clone()
