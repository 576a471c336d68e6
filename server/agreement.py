"""How far each site's update points the way of the others': the cosine with the mean of the other sites' updates.

Updates are folded one at a time and dropped, so a sketch of each is kept: its values with random signs, added up in
4096 places (Charikar et al. 2002, "Finding frequent items in data streams"). Sketches keep dot products up to an
error of about 1 / sqrt(4096) of the norms, whatever the size of the model.

This is a report for people, not a defence: whoever knows the signs can hide from it.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sscxr import seeds
from sscxr.federation import codecs

_PLACES = 4096
_FEWEST = 3  # sites; of two that disagree, neither is the odd one


class Agreement:
    """The sketches of one attempt's updates."""

    def __init__(self, like: Mapping[str, Tensor], seed: int) -> None:
        """Draw the signs: a byte a value.

        Args:
            like: tensors of an update's names and shapes.
        """
        source = seeds.generator("cpu", seed, "agreement")
        self._signs = {
            name: torch.randint(0, 2, (tensor.numel(),), generator=source, dtype=torch.int8) * 2 - 1
            for name, tensor in sorted(like.items())
        }
        self._sketches: dict[str, Tensor] = {}

    def add(self, site: str, update: Mapping[str, Tensor], weight: int) -> None:
        """Sketch a site's update, with its weight in the average."""
        sketch, place = torch.zeros(_PLACES, dtype=torch.float64), 0
        for name, signs in self._signs.items():
            values = update[name].reshape(-1)
            for part, sign in zip(
                torch.split(values, codecs.CHUNK), torch.split(signs, codecs.CHUNK), strict=True
            ):
                padded = torch.zeros(-(-(place + len(part)) // _PLACES) * _PLACES)
                torch.mul(part, sign, out=padded[place : place + len(part)])
                sketch += padded.view(-1, _PLACES).sum(0)
                place = (place + len(part)) % _PLACES
        self._sketches[site] = sketch * weight

    def cosines(self) -> dict[str, float]:
        """Return each site's cosine with the mean of the others, -1..1; none with fewer than three sites."""
        sites = sorted(self._sketches)  # the same sums whatever the order of the replies
        if len(sites) < _FEWEST:
            return {}
        total = torch.stack([self._sketches[site] for site in sites]).sum(0)
        return {site: _cosine(self._sketches[site], total - self._sketches[site]) for site in sites}


def _cosine(one: Tensor, other: Tensor) -> float:
    size = math.sqrt(float(one @ one) * float(other @ other))
    return round(float(one @ other) / size, 3) if size else 0.0
