"""The round loop: ask the roster, check each reply, fold it, drop it; step; commit; repeat.

Replies are pulled and folded one at a time, so the server holds a few models, whatever the number of sites. A
round ends when every site of the roster has replied, or at the deadline with at least the quorum. Nothing waits
for ever, and no reply, however malformed, stops a round.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from flwr.serverapp import Grid
from torch import Tensor

from server import status
from server.bounds import Bounds, capped
from server.fold import Fold, SiteFailedError, fields_of, to_arrays, weighted
from server.ledger import Ledger, State
from server.mail import Mail, RunStopped
from server.optimisers import ServerOptimiser
from server.roster import Roster
from server.secure import SecureFold
from sscxr import config as configs
from sscxr import runs
from sscxr.config import Config
from sscxr.federation import codecs, lattice, wire
from sscxr.federation.wire import WireError
from sscxr.runs import SiteRow
from sscxr.training.parts import apart

log = logging.getLogger("sscxr.server")


@dataclass(frozen=True)
class Listener:
    """Callbacks of the loop, for a display; they do nothing by default."""

    started: Callable[[int, int, list[str]], None] = lambda round_number, attempt, sites: None
    heard: Callable[[SiteRow], None] = lambda row: None
    committed: Callable[[Mapping[str, Any]], None] = lambda record: None

    def also(self, other: "Listener") -> "Listener":
        """Return a listener that calls both, this one first."""

        def both(name: str) -> Callable[..., None]:
            first, second = getattr(self, name), getattr(other, name)

            def call(*given: Any) -> None:
                first(*given)
                second(*given)

            return call

        return Listener(both("started"), both("heard"), both("committed"))


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
        self.config, self.ledger = config, ledger
        self.state, self.optimiser = state, optimiser
        self.listener = listener or Listener()
        self.fingerprint = wire.fingerprint(configs.recipe_hash(config))
        self._settings_text = configs.dumps(config)
        self.mail = Mail(grid, lattice.payload_bytes(config, state.encoder))
        self.roster = Roster(
            config.federation, state, self.mail, self.fingerprint, lambda budget: self._task(0, budget)
        )

    def run(self) -> State:
        """Run the remaining rounds.

        Raises:
            RunStopped: too few sites at the start, a round without quorum after its retries, or no SuperLink.
        """
        settings = self.config.federation
        if self.state.round < settings.rounds:
            self.roster.gather()
        while self.state.round < settings.rounds:
            self._round()
        return self.state

    def _round(self) -> None:
        settings = self.config.federation
        began = monotonic()
        for _ in range(settings.retries + 1):
            attempt = self.ledger.next_attempt(self.state.round)
            fold = self._attempt(attempt)
            if len(fold.folded) >= self.roster.quorum():
                break
            # Their updates are dropped with the attempt: the rows record it, and the sites discard their
            # state.
            self.ledger.log_sites(
                [
                    replace(row, outcome="dropped", reason=f"attempt {attempt} had no quorum")
                    if row.outcome == "folded"
                    else row
                    for row in _by_site(fold.rows)
                ]
            )
        else:
            did = "are in a sum" if settings.secure else "replied"
            raise RunStopped(
                f"round {self.state.round + 1}: {len(fold.folded)} of {len(self.state.roster)} sites {did} in "
                f"{settings.retries + 1} attempts, the quorum is {self.roster.quorum()}; sites.csv has "
                "the reasons; resume when they are back"
            )
        self.mail.settle()  # the commit names the sites' states
        mean = fold.mean()
        self._step(mean)
        self.state.optimiser = self.optimiser.state()
        self.state.bases = {**self.state.bases, **fold.folded}
        self.state.images |= fold.images
        self.state.costs |= {site: list(cost) for site, cost in fold.costs.items()}
        self.state.norms = [*self.state.norms, fold.norm()]
        self.state.moment_norms = [*self.state.moment_norms, *fold.moment_norm()]
        held_out = self._evaluate(attempt) if self._evaluates() else {}
        self._commit(fold, held_out, codecs.norm(mean), monotonic() - began)

    def _step(self, mean: Mapping[str, Tensor]) -> None:
        """Apply the server's rule to the weights; add the change of averaged moments as it is."""
        (weights, moments), (update, changes) = apart(self.state.encoder), apart(mean)
        progress = (self.state.round + 1) / self.config.federation.rounds
        moved = {name: tensor + changes[name] for name, tensor in moments.items()}
        self.state.encoder = self.optimiser.step(weights, update, progress) | moved

    def _evaluates(self) -> bool:
        every, rounds = self.config.federation.evaluate_every, self.config.federation.rounds
        done = self.state.round + 1
        return every > 0 and (done % every == 0 or done == rounds)

    def _attempt(self, attempt: int) -> Fold | SecureFold:
        """Ask every site of the roster once, and fold the valid replies."""
        settings = self.config.federation
        self.roster.meet()
        present = self.roster.present()
        self.mail.bytes_sent = 0
        self.listener.started(self.state.round, attempt, sorted(present.values()))
        open_round = status.Open(
            self.ledger.out, done=self.state.round, rounds=settings.rounds, sites=present.values()
        )
        bounds = Bounds(self.config, self.state)
        fold: Fold | SecureFold
        if settings.secure:
            fold = self._secure_fold(attempt, bounds)
            heard = fold.run(present)
        else:
            fold = Fold(
                settings,
                self.state.encoder,
                self.fingerprint,
                bounds,
                self.state.round,
                attempt,
                self.ledger.out,
            )
            heard = self._replies(fold, attempt, present)
        for row in heard:
            open_round.heard(row.site)
            self.listener.heard(row)
        for site, (outcome, reason) in self.roster.absent().items():
            self.listener.heard(fold.miss(site, outcome, reason))
        while self.roster.intruders:
            site, reason = self.roster.intruders.pop(0)
            self.listener.heard(fold.miss(site, "refused", reason))
        return fold

    def _replies(self, fold: Fold, attempt: int, present: Mapping[int, str]) -> Iterator[SiteRow]:
        """Fold each site's reply, and yield its row."""
        waiting, deadline = dict(present), self.config.federation.deadline
        encoded = to_arrays(self._encoded())
        for node, reply in self.mail.ask(self._tasks(attempt, present), "train", deadline, encoded):
            yield fold.add(waiting.pop(node), reply)
        for site in waiting.values():
            yield fold.miss(site, "late", f"no reply in {deadline:g} s")

    def _secure_fold(self, attempt: int, bounds: Bounds) -> SecureFold:
        moments = bounds.moment_norm()

        def task(site: str) -> wire.Task:
            return replace(
                self._task(attempt, self.config.federation.deadline, site),
                norm=bounds.usual,
                moment_norm=moments if math.isfinite(moments) else 0.0,
            )

        state, least = self.state, self.roster.quorum()
        return SecureFold(self.config, state.encoder, self._encoded(), task, self.mail, least)

    def _encoded(self) -> bytes:
        return codecs.encode(self.state.encoder, self.config.federation.downlink)

    def _evaluate(self, attempt: int) -> dict[str, wire.EvaluateReply]:
        """Return the held-out figures of every connected site, and record its counts; failures are left out."""
        present = self.roster.present()
        found = {}
        for node, reply in self.mail.ask(
            self._tasks(attempt, present),
            "evaluate",
            self.config.federation.deadline,
            to_arrays(self._encoded()),
        ):
            try:
                answer = wire.from_record(wire.EvaluateReply, fields_of(reply))
                if (answer.site, answer.round) != (present[node], self.state.round):
                    continue
                if not (0 <= answer.images <= wire.MAX_COUNT and 0 <= answer.loss <= wire.MAX_LOSS):
                    continue
                if answer.score != wire.NO_SCORE and not 0 <= answer.score <= 1:
                    continue
                self.state.counts[answer.site] = wire.counts_from_json(answer.counts)
                if answer.images:
                    found[answer.site] = answer
            except (WireError, SiteFailedError):
                continue
        return found

    def _commit(
        self,
        fold: Fold | SecureFold,
        held_out: Mapping[str, wire.EvaluateReply],
        mean_norm: float,
        seconds: float,
    ) -> None:
        weights = capped(
            {site: answer.images for site, answer in sorted(held_out.items())},
            self.config.federation.weight_cap,
        )
        losses = {site: (held_out[site].loss, weight) for site, weight in weights.items()}
        scores = {
            site: (held_out[site].score, weight)
            for site, weight in weights.items()
            if held_out[site].score != wire.NO_SCORE
        }
        images, loss = fold.trained()
        record = {
            "round": self.state.round + 1,
            "sites": len(fold.folded),
            "roster": len(self.state.roster),
            "images": images,
            "loss": loss,
            "held_out_loss": weighted(losses),
            "held_out_images": sum(answer.images for answer in held_out.values()),
            "held_out": {site: loss for site, (loss, _) in losses.items()},
            "held_out_score": weighted(scores),
            "scores": {site: score for site, (score, _) in scores.items()},
            "privacy": {site: list(cost) for site, cost in sorted(fold.costs.items())},
            "mean_update_norm": mean_norm,
            "agreement": fold.cosines(),
            "bytes_up": sum(row.bytes or 0 for row in fold.rows),
            "bytes_down": self.mail.bytes_sent,
            "seconds": round(seconds, 3),
        }
        odd = runs.against([*runs.read_rounds(self.ledger.rounds_file), record])
        for site, cosine in odd.items():
            log.warning("%s", runs.against_in_words(site, cosine))
        self.ledger.log_sites(_by_site(_noted(row, odd) for row in fold.rows))
        self.ledger.log_round(record)
        done = replace(self.state, round=self.state.round + 1)
        self.ledger.commit(done, keep=self.config.federation.keep_checkpoints)
        self.state.round = done.round  # only now that it is on disk
        status.write(self.ledger.out, "running", done=self.state.round, rounds=self.config.federation.rounds)
        self.listener.committed(record)

    def _task(self, attempt: int, budget: float, site: str = "") -> wire.Task:
        return wire.Task(
            run=self.config.run.name,
            round=self.state.round,
            attempt=attempt,
            base=self.state.bases.get(site, ""),
            config=self._settings_text,
            fingerprint=self.fingerprint,
            budget=float(budget),
        )

    def _tasks(self, attempt: int, nodes: Mapping[int, str]) -> dict[int, wire.Task]:
        deadline = self.config.federation.deadline
        return {node: self._task(attempt, deadline, site) for node, site in nodes.items()}


def _noted(row: SiteRow, odd: Mapping[str, float]) -> SiteRow:
    """Return a site's row, with a note if its updates point against the others'."""
    if row.outcome != "folded" or row.site not in odd:
        return row
    note = f"its updates point against the others' (mean cosine {odd[row.site]:g})"
    return replace(row, reason="; ".join(filter(None, [row.reason, note])))


def _by_site(rows: Iterable[SiteRow]) -> list[SiteRow]:
    return sorted(rows, key=lambda row: row.site)
