"""The round loop: ask the roster, check each reply, fold it, drop it; step; commit; go on.

Replies are pulled and folded one at a time, so the server holds a few models, whatever the number of sites. A
round ends when every site of the roster was heard, or at the deadline with at least the quorum. Nothing waits
for ever, and no reply, however malformed, stops a round.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import monotonic, sleep
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.aggregate import ServerOptimiser
from server.fold import Fold, SiteFailedError, fields_of, record_bytes, to_arrays
from server.ledger import Ledger, SiteRow, State
from sscxr import codecs, wire
from sscxr import config as configs
from sscxr.config import Config
from sscxr.errors import SscxrError
from sscxr.wire import ARRAYS, RECORD, WireError

_POLL = 0.5  # seconds between looks for replies that have not come yet
_ASK_AGAIN = 10.0  # seconds between questions to a node that could not join
_HELLO_TIME = 60.0  # seconds a site has to say who it is


class RunStopped(SscxrError):  # noqa: N818  (no defect: the state is saved and the run can go on)
    """The run cannot go on now; its state is saved. One line that says why and how to go on."""


@dataclass(frozen=True)
class Listener:
    """Whom the loop tells what happens, for a display; by default nobody."""

    started: Callable[[int, int, list[str]], None] = lambda round_number, attempt, sites: None
    heard: Callable[[SiteRow], None] = lambda row: None
    committed: Callable[[Mapping[str, Any]], None] = lambda record: None


class Federation:
    """A run at the server: its settings, the Grid to its sites, its ledger and its state."""

    def __init__(
        self,
        grid: Grid,
        config: Config,
        ledger: Ledger,
        state: State,
        optimiser: ServerOptimiser,
        listener: Listener | None = None,
    ) -> None:
        self.grid, self.config, self.ledger = grid, config, ledger
        self.state, self.optimiser = state, optimiser
        self.listener = listener or Listener()
        self.fingerprint = wire.fingerprint(configs.recipe_hash(config))
        self._settings_text = configs.dumps(config)
        self._nodes: dict[str, int] = {}  # site -> node
        self._known: dict[int, str] = {}  # node -> site, empty where it is of no use now
        self._failed: dict[str, str] = {}  # site -> why it did not join
        self._bytes_down = 0  # sent to sites in this attempt

    def run(self) -> State:
        """Run the rounds that are left.

        Raises:
            RunStopped: too few sites at the start, or a round without quorum after its retries.
        """
        settings = self.config.federation
        if self.state.round < settings.rounds:
            self._gather()
        while self.state.round < settings.rounds:
            self._round()
        return self.state

    # ---- who is there

    def _gather(self) -> None:
        """Wait for the roster; without one, take the sites that are there."""
        settings = self.config.federation
        until = monotonic() + settings.start_timeout
        expected = self._expected()
        again = monotonic() + _ASK_AGAIN
        while True:
            self._meet()
            present = sorted(self._nodes)
            if expected and set(expected) <= set(present):
                break
            if not expected and present and len(self._known) == len(list(self.grid.get_node_ids())):
                expected = present
                break
            if monotonic() > until:
                break
            if monotonic() > again:
                self._forget_useless()
                again = monotonic() + _ASK_AGAIN
            sleep(_POLL)
        if len(set(expected) & set(present)) < self._quorum(expected or ["?"]):
            missing = sorted(set(expected) - set(present))
            told = [f"{site} ({self._failed[site]})" if site in self._failed else site for site in missing]
            who = f"missing: {', '.join(told[:10])}" if missing else "no site answered"
            raise RunStopped(
                f"{len(present)} of {len(expected)} sites came within federation.start_timeout="
                f"{settings.start_timeout:g} s ({who}); start them and resume"
            )
        self.state.roster = sorted(expected)

    def _meet(self) -> None:
        """Ask nodes that are not known yet who they are."""
        nodes = set(self.grid.get_node_ids())
        for node in self._known.keys() - nodes:
            site = self._known.pop(node)
            if self._nodes.get(site) == node:
                del self._nodes[site]
        new = sorted(nodes - self._known.keys())
        for node, reply in self._ask(dict.fromkeys(new), "query", self._task(0, _HELLO_TIME), _HELLO_TIME):
            try:
                hello = wire.from_record(wire.Hello, fields_of(reply))
                site = wire.check_name(hello.site, "site")
            except (WireError, SiteFailedError) as error:
                self._known[node] = ""
                if isinstance(error, SiteFailedError) and error.site in self._expected():
                    self._failed[error.site] = str(error)
                continue
            if site in self._nodes:
                self._known[node] = ""  # a second node under a name that is taken is not listened to
                continue
            self._known[node] = site
            self._nodes[site] = node
            self._failed.pop(site, None)

    def _forget_useless(self) -> None:
        """Whoever was no use before may be by now: a mended cache, a node whose predecessor has gone."""
        self._known = {node: site for node, site in self._known.items() if site}

    def _expected(self) -> list[str]:
        return list(self.config.federation.sites) or self.state.roster

    def _quorum(self, roster: list[str]) -> int:
        return max(1, math.ceil(self.config.federation.quorum * len(roster) - 1e-9))

    # ---- one round

    def _round(self) -> None:
        settings = self.config.federation
        began = monotonic()
        for _ in range(settings.retries + 1):
            attempt = self.ledger.next_attempt(self.state.round)
            fold = self._attempt(attempt)
            if len(fold.folded) >= self._quorum(self.state.roster):
                break
            # Their updates are dropped with the attempt: the rows say so, and the sites discard their state.
            self.ledger.log_sites(
                [
                    replace(row, outcome="dropped", reason=f"attempt {attempt} had no quorum")
                    if row.outcome == "folded"
                    else row
                    for row in _by_site(fold.rows)
                ]
            )
        else:
            raise RunStopped(
                f"round {self.state.round + 1}: {len(fold.folded)} of {len(self.state.roster)} sites replied in "
                f"{settings.retries + 1} attempts, the quorum is {self._quorum(self.state.roster)}; sites.csv says "
                "why; resume when they are back"
            )
        mean = fold.total.mean()
        self.state.encoder = self.optimiser.step(self.state.encoder, mean)
        self.state.optimiser = self.optimiser.state()
        self.state.bases = {**self.state.bases, **fold.folded}
        self.state.images |= {site: images for site, (_, images) in fold.losses.items()}
        held_out = self._evaluate(attempt) if self._evaluates() else {}
        self._commit(fold, held_out, codecs.norm(mean), monotonic() - began)

    def _evaluates(self) -> bool:
        every, rounds = self.config.federation.evaluate_every, self.config.federation.rounds
        done = self.state.round + 1
        return every > 0 and (done % every == 0 or done == rounds)

    def _attempt(self, attempt: int) -> Fold:
        """Ask every site of the roster once, fold what may be folded."""
        settings = self.config.federation
        self._forget_useless()
        self._meet()
        self._bytes_down = 0
        fold = Fold(settings, self.state.encoder, self.fingerprint, self.state.round, attempt)
        present = {self._nodes[site]: site for site in self.state.roster if site in self._nodes}
        self.listener.started(self.state.round, attempt, sorted(present.values()))
        arrays = to_arrays(codecs.encode(self.state.encoder, settings.downlink))
        task = self._task(attempt, settings.deadline)
        waiting = dict(present)
        for node, reply in self._ask(dict.fromkeys(present, arrays), "train", task, settings.deadline):
            self.listener.heard(fold.add(waiting.pop(node), reply))
        for site in waiting.values():
            self.listener.heard(fold.miss(site, "late", f"no reply in {settings.deadline:g} s"))
        for site in sorted(set(self.state.roster) - set(present.values())):
            outcome = "failed" if site in self._failed else "absent"
            self.listener.heard(fold.miss(site, outcome, self._failed.get(site, "not connected")))
        return fold

    def _evaluate(self, attempt: int) -> dict[str, tuple[float, int]]:
        """Held-out loss and aggregates of every site that is there; what fails is left out."""
        settings = self.config.federation
        present = {self._nodes[site]: site for site in self.state.roster if site in self._nodes}
        arrays = to_arrays(codecs.encode(self.state.encoder, settings.downlink))
        task = self._task(attempt, settings.deadline)
        found = {}
        for node, reply in self._ask(dict.fromkeys(present, arrays), "evaluate", task, settings.deadline):
            try:
                said = wire.from_record(wire.EvaluateReply, fields_of(reply))
                if (said.site, said.round) != (present[node], self.state.round):
                    continue
                if not (0 <= said.images <= wire.MAX_COUNT and 0 <= said.loss <= wire.MAX_LOSS):
                    continue
                self.state.counts[said.site] = wire.counts_from_json(said.counts)
                if said.images:
                    found[said.site] = (said.loss, said.images)
            except (WireError, SiteFailedError):
                continue
        return found

    def _commit(
        self, fold: Fold, held_out: Mapping[str, tuple[float, int]], mean_norm: float, seconds: float
    ) -> None:
        record = {
            "round": self.state.round + 1,
            "sites": len(fold.folded),
            "roster": len(self.state.roster),
            "images": fold.total.weight,
            "loss": _weighted(fold.losses),
            "held_out_loss": _weighted(held_out),
            "held_out_images": sum(images for _, images in held_out.values()),
            "held_out": {site: loss for site, (loss, _) in sorted(held_out.items())},
            "mean_update_norm": mean_norm,
            "bytes_up": sum(row.bytes or 0 for row in fold.rows),
            "bytes_down": self._bytes_down,
            "seconds": round(seconds, 3),
        }
        self.ledger.log_sites(_by_site(fold.rows))
        self.ledger.log_round(record)
        self.state.round += 1
        self.ledger.commit(self.state, keep=self.config.federation.keep_checkpoints)
        self.listener.committed(record)

    # ---- messages

    def _task(self, attempt: int, budget: float) -> wire.Task:
        return wire.Task(
            run=self.config.run.name,
            round=self.state.round,
            attempt=attempt,
            base="",
            config=self._settings_text,
            fingerprint=self.fingerprint,
            budget=float(budget),
        )

    def _ask(
        self, nodes: Mapping[int, ArrayRecord | None], kind: str, task: wire.Task, deadline: float
    ) -> Iterator[tuple[int, Message]]:
        """Send a task to nodes and yield their replies as they come, one at a time, until the deadline."""
        waiting: dict[str, int] = {}
        until = monotonic() + deadline
        for node, arrays in nodes.items():
            base = self.state.bases.get(self._known.get(node, ""), "")
            record = RecordDict({RECORD: ConfigRecord({**wire.to_record(task), "base": base})})
            if arrays is not None:
                record[ARRAYS] = arrays
            message = Message(record, node, kind, ttl=deadline, group_id=str(task.round))
            for identifier in self.grid.push_messages([message]):
                if identifier:
                    waiting[identifier] = node
                    self._bytes_down += 0 if arrays is None else record_bytes(arrays)
        while waiting and monotonic() < until:
            heard = False
            for identifier in list(waiting):
                for reply in self.grid.pull_messages([identifier]):
                    heard = True
                    yield waiting.pop(identifier), reply
            if waiting and not heard:
                sleep(_POLL)


def _weighted(losses: Mapping[str, tuple[float, int]]) -> float | None:
    images = sum(count for _, count in losses.values())
    if not images:
        return None
    # Summed in the sites' order by name: the same figure whatever the order of the replies.
    return math.fsum(loss * count for _, (loss, count) in sorted(losses.items())) / images


def _by_site(rows: Iterable[SiteRow]) -> list[SiteRow]:
    return sorted(rows, key=lambda row: row.site)
