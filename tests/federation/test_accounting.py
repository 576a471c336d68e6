"""The accountant's figures against the library's own, and against what is known without it."""

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from scipy import optimize, stats

from sscxr.federation.accounting import Charge, epsilon, noise_for

RUNS = [
    [Charge(1.3, 250 / 60_000, 3600)],
    [Charge(1.0, 0.02, 2000), Charge(2.5, 0.1, 40), Charge(1.0, 0.02, 7)],
    [Charge(4.0, 1.0, 30)],
]


def event(charge: Charge) -> dp_accounting.DpEvent:
    sampled = dp_accounting.PoissonSampledDpEvent(charge.rate, dp_accounting.GaussianDpEvent(charge.noise))
    return dp_accounting.SelfComposedDpEvent(sampled, charge.steps)


@pytest.mark.parametrize("charges", RUNS)
def test_it_is_the_librarys_figure(charges: list[Charge]) -> None:
    accountant = rdp.RdpAccountant()
    for charge in charges:
        accountant.compose(event(charge))
    assert epsilon(charges, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)


def test_it_is_an_upper_bound_and_not_far_above() -> None:
    (one,) = RUNS[0]
    tight = pld.PLDAccountant()
    tight.compose(event(one))
    assert tight.get_epsilon(1e-5) < epsilon([one], 1e-5) < 1.2 * tight.get_epsilon(1e-5)
    # Without sampling the exact figure is known (Balle and Wang, arXiv 1805.06530, theorem 8).
    (full,) = RUNS[2]
    shift = math.sqrt(full.steps) / full.noise

    def delta(eps: float) -> float:
        low, high = (stats.norm.cdf(sign * shift / 2 - eps / shift) for sign in (1, -1))
        return float(low - math.exp(eps) * high)

    exact = optimize.brentq(lambda eps: delta(eps) - 1e-5, 0.1, 100)
    assert exact < epsilon([full], 1e-5) < 1.2 * exact


def test_steps_add_up_and_noise_lowers_it() -> None:
    halves = [Charge(1.0, 0.02, 500), Charge(1.0, 0.02, 500)]
    assert epsilon(halves, 1e-5) == epsilon([Charge(1.0, 0.02, 1000)], 1e-5)
    assert epsilon([], 1e-5) == 0
    assert epsilon([Charge(0.0, 0.02, 1)], 1e-5) == math.inf
    found = [epsilon([Charge(noise, 0.02, 100)], 1e-5) for noise in (0.5, 1.0, 2.0)]
    assert found == sorted(found, reverse=True)


def test_the_noise_for_an_epsilon_is_the_least_that_keeps_it() -> None:
    noise = noise_for(8.0, 1e-5, rate=0.1, steps=300)
    assert epsilon([Charge(noise, 0.1, 300)], 1e-5) <= 8 < epsilon([Charge(noise - 0.01, 0.1, 300)], 1e-5)
