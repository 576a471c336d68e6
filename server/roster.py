"""Maps connected nodes to sites, and records why a node was refused.

A coordinator registers a site's key under the site's name; Flower passes on both, and a node registered under one
name cannot act as another. Without registered names, as in a simulation, the first node to claim a name keeps it
while it is connected.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

from server.fold import SiteFailedError, fields_of
from server.ledger import State
from server.mail import Mail, RunStopped
from sscxr.config import FederationConfig
from sscxr.federation import floors, wire
from sscxr.federation.wire import WireError

_LOOK = 0.5  # seconds between checks for new nodes
_ASK_AGAIN = 10.0  # seconds between queries to a node that could not join
_HELLO_TIME = 120.0  # seconds for a site to answer a query; a busy machine takes a minute to start its client

log = logging.getLogger("sscxr.server")


class Roster:
    """The sites of a run, and their nodes.

    Attributes:
        intruders: (site, why) of nodes that claimed a site's name and were refused; the reader empties it.
    """

    def __init__(
        self,
        settings: FederationConfig,
        state: State,
        mail: Mail,
        fingerprint: str,
        task: Callable[[float], wire.Task],
    ) -> None:
        """Args: task: makes the query for a node, from the seconds it has to answer."""
        self._settings, self._state, self._mail, self._task = settings, state, mail, task
        self._fingerprint = fingerprint
        self._nodes: dict[str, int] = {}  # site -> node
        self._known: dict[int, str] = {}  # node -> site; empty if the node cannot be used now
        self._failed: dict[str, tuple[str, str]] = {}  # site -> outcome, and the reason that it did not join
        self.intruders: list[tuple[str, str]] = []

    def quorum(self) -> int:
        """Return how many sites must reply for a round to count."""
        least = floors.threshold(self._settings) if self._settings.secure else 1
        return max(least, math.ceil(self._settings.quorum * len(self._expected() or ["?"]) - 1e-9))

    def present(self) -> dict[int, str]:
        """Return the connected sites of the roster, by node."""
        return {self._nodes[site]: site for site in self._state.roster if site in self._nodes}

    def absent(self) -> dict[str, tuple[str, str]]:
        """Return the roster's missing sites, with outcome and reason."""
        missing = sorted(set(self._state.roster) - set(self.present().values()))
        return {site: self._failed.get(site, ("absent", "not connected")) for site in missing}

    def gather(self) -> None:
        """Wait for the roster; without one, take the connected sites.

        Sites that report too few images are not waited for if the others are a quorum.

        Raises:
            RunStopped: too few sites connected.
        """
        until = monotonic() + self._settings.start_timeout
        expected = self._expected()
        again = monotonic() + _ASK_AGAIN
        while True:
            self._meet()
            present = sorted(self._nodes)
            if expected and set(expected) <= set(present) | self._too_few():
                break
            if not expected and present and len(self._known) == len(self._mail.nodes()):
                expected = present
                break
            if monotonic() > until:
                break
            if monotonic() > again:
                self._forget_useless()
                again = monotonic() + _ASK_AGAIN
            sleep(_LOOK)
        came = len(set(expected) & set(present))
        if came < self.quorum():
            missing = sorted(set(expected) - set(present))
            names = [
                f"{site} ({self._failed[site][1]})" if site in self._failed else site for site in missing
            ]
            who = f"missing: {', '.join(names[:10])}" if missing else "no site answered"
            raise RunStopped(
                f"{came} of {len(expected)} sites joined within federation.start_timeout="
                f"{self._settings.start_timeout:g} s ({who}); start them and resume"
            )
        self._state.roster = sorted(expected)

    def meet(self) -> None:
        """Update which nodes are connected, and query again those that could not join."""
        self._forget_useless()
        self._meet()

    def _meet(self) -> None:
        nodes = self._mail.nodes()
        for node in self._known.keys() - nodes.keys():
            site = self._known.pop(node)
            if self._nodes.get(site) == node:
                del self._nodes[site]
        new = sorted(nodes.keys() - self._known.keys())
        question = self._task(_HELLO_TIME)
        named = {node: replace(question, registered=str(nodes[node].name or "")) for node in new}
        for node, reply in self._mail.ask(named, "query", _HELLO_TIME):
            self._known[node] = self._heard(node, reply, nodes)

    def _heard(self, node: int, reply: Any, nodes: Mapping[int, Any]) -> str:
        """Check a node's answer and return the site that it acts for; empty if it is refused."""
        registered = str(nodes[node].name or "")
        try:
            hello = wire.from_record(wire.Hello, fields_of(reply))
            site = wire.check_name(hello.site, "site")
        except (WireError, SiteFailedError) as error:
            claimed = str(getattr(error, "site", ""))
            if claimed in self._expected() and (problem := self._not_its_name(claimed, node, nodes)):
                self.intruders.append((claimed, problem))
            site = registered or claimed
            if site in self._expected() and not self._not_its_name(site, node, nodes):
                if self._failed.get(site) != ("failed", str(error)):  # queried repeatedly, reported once
                    log.warning("%s does not join yet: %s", site, error)
                self._failed[site] = ("failed", str(error))
            return ""
        problem = self._not_its_name(site, node, nodes)
        if problem:
            if site in self._expected():
                self.intruders.append((site, problem))
            return ""
        problem = self._other_code(hello.fingerprint)
        if problem:
            self._failed[site] = ("refused", problem)
            return ""
        if not (self._settings.secure or 1 <= hello.images <= wire.MAX_COUNT):
            self._failed[site] = ("failed", f"it reports {hello.images} images to train on")
            return ""
        if registered:
            self._state.keys[site] = hashlib.sha256(nodes[node].public_key).hexdigest()
        if not self._settings.secure:
            self._state.joined.setdefault(site, hello.images)
        self._nodes[site] = node
        self._failed.pop(site, None)
        return site

    def _not_its_name(self, site: str, node: int, nodes: Mapping[int, Any]) -> str:
        registered = str(nodes[node].name or "")
        if registered and registered != site:
            return "another site's node claimed this name; refused"
        if not registered and (self._state.keys or any(info.name for info in nodes.values())):
            return "a node registered without a name claimed this one; refused (register it with --name)"
        if site in self._nodes:
            return "a second node claimed this name; refused"
        return ""

    def _other_code(self, fingerprint: str) -> str:
        try:
            theirs = wire.read_fingerprint(fingerprint)
        except WireError as error:
            return str(error)
        if theirs == self._fingerprint:
            return ""
        return f"its code or recipe differs: {theirs}, the run's is {self._fingerprint}"

    def _forget_useless(self) -> None:
        # A repaired cache, a node whose predecessor has gone.
        self._known = {node: site for node, site in self._known.items() if site}

    def _too_few(self) -> set[str]:
        """Return the sites with too few images, which waiting does not change, if the others are a quorum."""
        few = {site for site, why in self._failed.items() if why == ("failed", wire.FAILURES["few images"])}
        return few if len(set(self._expected()) - few) >= self.quorum() else set()

    def _expected(self) -> list[str]:
        return list(self._settings.sites) or self._state.roster
