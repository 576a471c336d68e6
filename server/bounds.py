"""Limits how far one site may move the average: its weight, its images and its update, relative to other sites.

A site reports its own number of images, and may send anything. So its images are at most those that it joined
with, those that count at most `federation.weight_cap` times the roster's median, and an update longer than
`federation.clip_updates` times the usual is scaled down to that (norm bounding, arXiv 1911.07963).
`federation.weights` makes a weight of the images that count: their number, its square root, or the same for all.

The usual norm is the median over the sites, and then over the last rounds. Norms are compared per step and
learning rate, since otherwise a run's warm-up and its sites' sizes would look like attacks: an update of AdamW is
the sum of `steps` moves of the rate's size that partly cancel, and so grows with sqrt(steps) x rate.

Averaged moments have a bound of their own. They are as noisy as a site's last few batches, so that honest ones
differ tenfold within a round: their usual norm is the sites' upper quartile, the largest of the last rounds.
"""

import math
from collections.abc import Iterable
from statistics import median_low

from torch import Tensor

from server.ledger import State
from sscxr import stages
from sscxr.config import Config
from sscxr.training import batches
from sscxr.training.parts import apart

_MEMORY = 10  # committed rounds that the usual norm is computed from
_MOMENT_MEMORY = 3  # of moments, which grow tenfold within a few rounds where the loss leaves a plateau
_RATES = 64  # at most so many of a round's steps are sampled for their rates
_ROOTS = 16  # weights are whole numbers: roots are counted in sixteenths


class Bounds:
    """The bounds of one round, fixed before its first reply, so that they do not depend on the order of replies.

    Attributes:
        most: the most images of a site that count.
    """

    def __init__(self, config: Config, state: State) -> None:
        federation = config.federation
        self._config, self._federation, self._round = config, federation, state.round
        self._schedule = stages.of(config).schedule()
        self._joined = dict(state.joined)
        weights, moments = apart(state.encoder)
        self._values = sum(tensor.numel() for tensor in weights.values())
        self._usual = median_low(state.norms[-_MEMORY:]) if state.norms else math.nan
        # A moment is at most as long as the clipped gradients that it averages, tensor by tensor.
        self._longest = 2 * config.learning.clip * math.sqrt(len(moments))
        self._moments = max(state.moment_norms[-_MOMENT_MEMORY:], default=math.nan)
        known = [self._joined[site] for site in state.roster if site in self._joined]
        self.most = federation.max_images
        if federation.weight_cap and known:
            self.most = _cap(federation.weight_cap, (min(n, federation.max_images) for n in known), self.most)

    def images(self, site: str, reported: int) -> int:
        """Return the images that a site reports, at most those that it joined with."""
        return min(reported, self._joined.get(site, reported))

    def counted(self, site: str, reported: int) -> int:
        """Return the images of a site that count, in the average and in figures over all images."""
        return min(self.images(site, reported), self.most)

    def weight(self, site: str, reported: int) -> int:
        """Return the site's weight in the average."""
        images = self.counted(site, reported)
        return {"images": images, "root": round(_ROOTS * math.sqrt(images)), "equal": 1}[
            self._federation.weights
        ]

    def norm(self, site: str, reported: int) -> float:
        """Return the largest L2 norm of an update that is not clipped; infinite without clipping.

        The first round has no usual norm: AdamW hardly moves a value by more than the rate in a step.
        """
        if not self._federation.clip_updates:
            return math.inf
        steps, rate = self._steps(site, reported)
        if math.isnan(self._usual):
            return math.sqrt(self._values) * steps * rate
        return self._federation.clip_updates * self._usual * math.sqrt(steps) * rate

    def moment_norm(self) -> float:
        """Return the largest L2 norm of the change of a site's moments; infinite without clipping."""
        clip = self._federation.clip_updates
        if not clip:
            return math.inf
        return self._longest if math.isnan(self._moments) else min(self._longest, clip * self._moments)

    def relative(self, site: str, reported: int, norm: float) -> float:
        """Return an update's norm per sqrt(steps) and rate, for comparison between sites and rounds."""
        steps, rate = self._steps(site, reported)
        return norm / (math.sqrt(steps) * rate)

    def _steps(self, site: str, reported: int) -> tuple[int, float]:
        """Return how many steps a site took in this round, and their highest learning rate; 1, 1 for gradients."""
        if self._federation.sends == "gradients":
            return 1, 1.0
        _, steps = batches.round_of(self._config, self.counted(site, reported), self._round)
        stretch = batches.stretch_of_round(steps, self._round, self._federation.rounds)
        places = range(0, len(steps), -(-len(steps) // _RATES))
        rates = [self._schedule.at(stretch.progress(step))[0] for step in places]
        # A schedule may end at a rate of 0, and a round of one step is at the end of its stretch.
        return len(steps), max(*rates, self._schedule.lr * 1e-6)


def usual_of_moments(norms: Iterable[float]) -> float:
    """Return the upper quartile of the norms of a round's changes of moments: no quarter of the sites sets it."""
    ordered = sorted(norms)
    return ordered[3 * (len(ordered) - 1) // 4]


def capped(counts: dict[str, int], cap: float) -> dict[str, int]:
    """Return counts of images by site, each at most `cap` times their median; 0: unchanged."""
    if not (cap and counts):
        return counts
    most = _cap(cap, counts.values(), max(counts.values()))
    return {site: min(count, most) for site, count in counts.items()}


def clip(update: dict[str, Tensor], norm: float, most: float) -> float:
    """Scale an update of this norm down to at most `most`, in place, and return its new norm."""
    if norm <= most:
        return norm
    for tensor in update.values():
        tensor.mul_(most / norm)
    return most


def _cap(cap: float, counts: Iterable[int], most: int) -> int:
    return max(1, min(most, math.floor(cap * median_low(counts))))
