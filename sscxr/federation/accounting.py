"""What training with differential privacy costs: epsilon at a delta, for one patient more or fewer.

By Rényi differential privacy of the Poisson-sampled Gaussian mechanism (Mironov et al., arXiv 1908.10530), of
Google's dp-accounting. A privacy loss distribution would give a tenth less, but does not cover what happens here:
each run's noise and rounds are chosen when earlier ones are known, and only a sum of Rényi divergences may be held
against a budget then (Feldman and Zrnic, arXiv 2008.11193).
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Charge:
    """Steps of training.

    Attributes:
        noise: standard deviation of the noise in units of the clipped norm.
        rate: the probability with which each patient is drawn for a step.
        steps: their number.
    """

    noise: float
    rate: float
    steps: int


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Return the epsilon of all these steps together; 0 without any, infinite without noise."""
    steps: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        steps[charge.noise, charge.rate] += charge.steps
    return _epsilon(tuple(Charge(*kind, number) for kind, number in sorted(steps.items()) if number), delta)


def noise_for(target: float, delta: float, *, rate: float, steps: int) -> float:
    """Return the least noise, to 0.01 upward, with which so many steps cost at most `target`."""
    low, high = 0, 1
    while epsilon([Charge(high / 100, rate, steps)], delta) > target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = epsilon([Charge(middle / 100, rate, steps)], delta) <= target
        low, high = (low, middle) if fits else (middle, high)
    return high / 100


@functools.lru_cache(maxsize=256)
def _epsilon(charges: tuple[Charge, ...], delta: float) -> float:
    if not charges:
        return 0.0
    if any(charge.noise <= 0 for charge in charges):
        return math.inf
    # Imported here: only a site that trains so needs it. It logs the orders that it leaves out.
    import dp_accounting
    from dp_accounting import rdp

    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for charge in charges:
        event = dp_accounting.PoissonSampledDpEvent(charge.rate, dp_accounting.GaussianDpEvent(charge.noise))
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, charge.steps))
    return float(accountant.get_epsilon(delta))
