"""Checks of differential privacy: what the site's budget has left, and what the recipe would take of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from client import budget
from client.doctor.checks import Check, failed, ok, warning
from client.settings import SiteError, SiteSettings
from client.site import Site
from sscxr.config import Config
from sscxr.federation.accounting import epsilon

_FAR = 1.25  # times the patients that site.yaml states, or fewer by as much


def privacy(settings: SiteSettings, config: Config) -> Iterator[Check]:
    """Check the budget against the recipe; nothing where neither asks for differential privacy."""
    own = settings.privacy
    if not config.privacy.noise:
        if own.epsilon:
            value = f"site.yaml has privacy.epsilon={own.epsilon:g}, the recipe trains without noise"
            yield failed("privacy", value, "ask the coordinator for privacy.noise, or set epsilon: 0")
        return
    try:
        terms = budget.terms(settings, config)
        assert terms is not None, "the recipe has noise"
        spent = [one.charge for one in budget.read(Path(settings.state))]
    except SiteError as error:
        yield failed("privacy", str(error), "see privacy in site.yaml, and docs/privacy.md")
        return
    run = budget.charge_of(terms, config, *range(config.federation.rounds))
    before, after = epsilon(spent, own.delta), epsilon([*spent, *run], own.delta)
    allowed = f" of {own.epsilon:g}" if own.epsilon else ""
    value = (
        f"epsilon {before:.3g}{allowed} spent at delta {own.delta:g}; {after:.3g} after a run of this recipe"
    )
    if own.epsilon and after > own.epsilon:
        yield warning("privacy", value, "the site does not begin such a run: it would spend more than it has")
    else:
        yield ok("privacy", value)
    yield from _stated(settings, config)


def _stated(settings: SiteSettings, config: Config) -> Iterator[Check]:
    site, stated = Site(settings), settings.privacy.patients
    rows = site.usable_rows(config)
    trained = rows[~site.cache.held_out(config.data.test_share)[rows]]
    patients = len(np.unique(site.cache.column("group")[trained]))
    if not stated / _FAR <= patients <= stated * _FAR:
        yield Check(
            "patients",
            "warning",
            f"privacy.patients={stated} is far from the number that this recipe trains on",
            "set it to about that number: batches, rounds and this site's weight follow it",
            (f"{patients} patients",),
        )
