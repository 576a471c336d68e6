"""How far one site may move the average: its weight, its images and its update, each held to the other sites'.

A site says itself how many images it trained on, and what it sends is whatever it likes. So its images are at most
those that it joined with, its weight is at most `federation.weight_cap` times the roster's median, and an update
longer than `federation.clip_updates` times the usual is scaled down to that (norm bounding, arXiv 1911.07963).

What is usual is the median over the sites, and then over the last rounds. Norms are compared per step and
learning rate, or a run's warm-up and its sites' sizes would look like attacks: an update of AdamW is the sum of
`steps` moves of the rate's size that partly cancel, and so grows with sqrt(steps) x rate.
"""

import math
from collections.abc import Iterable
from statistics import median_low

from torch import Tensor

from server.ledger import State
from sscxr import stages
from sscxr.config import Config
from sscxr.training import batches

_MEMORY = 10  # committed rounds that tell what is usual
_RATES = 64  # steps of a round at most whose rates are looked at


class Bounds:
    """The bounds of one round, fixed before its first reply, so that replies in any order are held to the same.

    Attributes:
        most: no site weighs more.
    """

    def __init__(self, config: Config, state: State) -> None:
        federation = config.federation
        self._federation, self._round = federation, state.round
        self._batch, self._schedule = config.learning.batch_size, stages.of(config).schedule()
        self._joined = dict(state.joined)
        self._values = sum(tensor.numel() for tensor in state.encoder.values())
        self._usual = median_low(state.norms[-_MEMORY:]) if state.norms else math.nan
        known = [self._joined[site] for site in state.roster if site in self._joined]
        self.most = federation.max_images
        if federation.weight_cap and known:
            self.most = _cap(federation.weight_cap, (min(n, federation.max_images) for n in known), self.most)

    def images(self, site: str, said: int) -> int:
        """The images that a site says it trained on, at most those that it joined with."""
        return min(said, self._joined.get(site, said))

    def weight(self, site: str, said: int) -> int:
        """Its weight in the average."""
        return min(self.images(site, said), self.most)

    def norm(self, site: str, said: int) -> float:
        """The longest update that is added whole, as an L2 norm; infinite where nothing is clipped.

        In the first round nothing is known to be usual: AdamW moves no value by much more than the rate in a step.
        """
        if not self._federation.clip_updates:
            return math.inf
        steps, rate = self._steps(site, said)
        if math.isnan(self._usual):
            return math.sqrt(self._values) * steps * rate
        return self._federation.clip_updates * self._usual * math.sqrt(steps) * rate

    def relative(self, site: str, said: int, norm: float) -> float:
        """An update's norm per sqrt(steps) and rate, which is what is compared."""
        steps, rate = self._steps(site, said)
        return norm / (math.sqrt(steps) * rate)

    def _steps(self, site: str, said: int) -> tuple[int, float]:
        """How many steps a site took in this round, and their highest learning rate."""
        federation = self._federation
        images = self.weight(site, said)
        steps = batches.steps_of_round(images, self._batch, federation.local_epochs, self._round)
        stretch = batches.stretch_of_round(steps, self._round, federation.rounds)
        places = range(0, len(steps), -(-len(steps) // _RATES))
        rates = [self._schedule.at(stretch.progress(step))[0] for step in places]
        # A schedule may end at a rate of 0, and a round of one step is at the end of its stretch.
        return len(steps), max(*rates, self._schedule.lr * 1e-6)


def capped(counts: dict[str, int], cap: float) -> dict[str, int]:
    """Counts of images by site, each at most `cap` times their median; 0: as they are."""
    if not (cap and counts):
        return counts
    most = _cap(cap, counts.values(), max(counts.values()))
    return {site: min(count, most) for site, count in counts.items()}


def clip(update: dict[str, Tensor], norm: float, most: float) -> float:
    """Scale an update of this norm down to at most `most`, in place; its norm then."""
    if norm <= most:
        return norm
    for tensor in update.values():
        tensor.mul_(most / norm)
    return most


def _cap(cap: float, counts: Iterable[int], most: int) -> int:
    return max(1, min(most, math.floor(cap * median_low(counts))))
