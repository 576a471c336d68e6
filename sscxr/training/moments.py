"""AdamW's moments, averaged over the sites beside the weights.

By default each site keeps its own. `federation.moments` averages the second moments (FedAdamW, arXiv 2510.27486,
there as one number a tensor), or both (DES-LOC, arXiv 2505.22549, with one period for all): then a site continues
from the moments of all sites' gradients, which are less noisy than its own.

A second moment travels as its root, a gradient's typical size: its square would vanish in fp16 and in the server's
sum of multiples of 2^-32. So the average is that of the roots. Step counts stay at the site.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from sscxr.training.parts import MOMENT, Parts

_FIRST, _SECOND = "exp_avg", "exp_avg_sq"
# `federation.moments` -> the moments that are averaged.
AVERAGED: Final[dict[str, tuple[str, ...]]] = {
    "local": (),
    "second": (_SECOND,),
    "second-means": (_SECOND,),
    "both": (_FIRST, _SECOND),
}


class Moments:
    """The moments of one optimiser that are averaged."""

    def __init__(self, which: str, parts: Parts, optimiser: torch.optim.Optimizer | None = None) -> None:
        """Args: a key of `AVERAGED`; the parts and their optimiser, None before the first step."""
        self._names, self._means = AVERAGED[which], which == "second-means"
        self._parts, self._optimiser = parts, optimiser
        self._new: list[dict[str, Any]] = []  # states without a step count of their own

    def shared(self) -> dict[str, Tensor]:
        """Return the moments under flat names, on the CPU; zeros before the first step."""
        return {name: self._sent(moment, state, parameter) for name, moment, state, parameter in self._each()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the moments to the average that the server sent."""
        self._new = []
        for name, moment, state, parameter in self._each():
            if not state:
                state |= {_FIRST: torch.zeros_like(parameter), _SECOND: torch.zeros_like(parameter)}
                state["step"] = torch.zeros((), device=parameter.device)
                self._new.append(state)
            average = tensors[name].to(parameter.device)
            if moment == _SECOND:  # a root may be below zero by a codec's rounding
                average = average.clamp(min=0).square()
            state[moment] = average.expand_as(parameter).clone()

    def begin(self, steps_done: int) -> None:
        """Give moments without a step count of their own that of the run, for AdamW's bias correction."""
        for state in self._new:
            state["step"].fill_(steps_done)

    def _each(self) -> Iterator[tuple[str, str, dict[str, Any], nn.Parameter]]:
        """Yield each averaged moment's flat name, its name in AdamW, and its parameter's state and parameter."""
        for moment in self._names:
            for name, parameter in self._parts.parameters():
                state = {} if self._optimiser is None else self._optimiser.state[parameter]
                yield f"{MOMENT}{moment}.{name}", moment, state, parameter

    def _sent(self, moment: str, state: Mapping[str, Any], parameter: nn.Parameter) -> Tensor:
        value = state.get(moment)
        found = torch.zeros(parameter.shape) if value is None else value.detach().cpu()
        if self._means:
            found = found.mean().reshape(1)
        return found.sqrt() if moment == _SECOND else found.clone()
