"""Alignment of local steps with the last change of the average: FedAdamW, arXiv 2510.27486, algorithm 1."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sscxr.training.parts import Parts

_PREVIOUS = "previous."  # prefix, in the site's state, of the average that the last round began with


class Alignment:
    """Adds to each of a round's K steps the share gamma / K of D, the last change of the average.

    D is the difference of the last two averages, both of which the site has received, so it costs no bytes. After a
    missed round it spans more; in the first round it is zero.
    """

    def __init__(self, gamma: float, parts: Parts) -> None:
        self._gamma, self._parts = gamma, parts
        self._previous: dict[str, Tensor] = {}
        self._begun: dict[str, Tensor] = {}
        self._moves: list[Tensor] = []

    def load_local(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `local` returned after an earlier round."""
        self._previous = {
            name.removeprefix(_PREVIOUS): tensor
            for name, tensor in tensors.items()
            if name.startswith(_PREVIOUS)
        }

    def local(self) -> dict[str, Tensor]:
        """Return the average that this round began with."""
        return {_PREVIOUS + name: tensor for name, tensor in self._begun.items()}

    @torch.no_grad()
    def begin(self, steps: int) -> None:
        """Begin a round of so many steps from the weights that the parts have now."""
        if not self._gamma:
            return
        weights = dict(self._parts.parameters())
        self._begun = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        self._moves = [
            (weight - self._previous[name].to(weight.device)) * (self._gamma / steps)
            if name in self._previous
            else torch.zeros_like(weight)
            for name, weight in weights.items()
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the weights by gamma / K of D."""
        if self._moves:
            torch._foreach_add_([weight for _, weight in self._parts.parameters()], self._moves)
