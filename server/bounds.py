"""Limits how far one site may move the average: its weight, its images and its update, relative to other sites.

A site reports its own number of images, and may send anything. So its images are at most those that it joined
with, those that count at most `federation.weight_cap` times the roster's median, and an update longer than
`federation.clip_updates` times the usual is scaled down to that (norm bounding, arXiv 1911.07963).
`federation.weights` makes a weight of the images that count: their number, its square root, or the same for all.

The usual norm is the median over the sites (in a secure sum their mean, the only one that is known), and then the
median over the last rounds. Norms are compared per step and learning rate (`federation.limits`), since otherwise a
run's warm-up and its sites' sizes would look like attacks.

Averaged moments have a bound of their own. They are as noisy as a site's last few batches, so that honest ones
differ tenfold within a round: their usual norm is the sites' upper quartile, the largest of the last rounds.
"""

import math
from collections.abc import Iterable
from statistics import median_low

from server.ledger import State
from sscxr.config import Config
from sscxr.federation.limits import Pace, weight_of
from sscxr.training.parts import apart

_MEMORY = 10  # committed rounds that the usual norm is computed from
_MOMENT_MEMORY = 3  # of moments, which grow tenfold within a few rounds where the loss leaves a plateau


class Bounds:
    """The bounds of one round, fixed before its first reply, so that they do not depend on the order of replies.

    Attributes:
        most: the most images of a site that count.
        usual: the usual norm of an update, as `Pace.relative` has it; 0: none yet.
    """

    def __init__(self, config: Config, state: State) -> None:
        federation = config.federation
        self._config, self._federation, self._round = config, federation, state.round
        self._joined = dict(state.joined)
        weights, moments = apart(state.encoder)
        self._values = sum(tensor.numel() for tensor in weights.values())
        self.usual = median_low(state.norms[-_MEMORY:]) if state.norms else 0.0
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
        return weight_of(self._federation.weights, self.counted(site, reported))

    def norm(self, site: str, reported: int) -> float:
        """Return the largest L2 norm of an update that is not clipped; infinite without clipping."""
        return self._pace(site, reported).most(self._federation.clip_updates, self.usual, self._values)

    def moment_norm(self) -> float:
        """Return the largest L2 norm of the change of a site's moments; infinite without clipping."""
        clip = self._federation.clip_updates
        if not clip:
            return math.inf
        return self._longest if math.isnan(self._moments) else min(self._longest, clip * self._moments)

    def relative(self, site: str, reported: int, norm: float) -> float:
        """Return an update's norm per sqrt(steps) and rate, for comparison between sites and rounds."""
        return self._pace(site, reported).relative(norm)

    def _pace(self, site: str, reported: int) -> Pace:
        return Pace.of(self._config, self.counted(site, reported), self._round)


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


def _cap(cap: float, counts: Iterable[int], most: int) -> int:
    return max(1, min(most, math.floor(cap * median_low(counts))))
