"""Displays a simulation: rounds, sites, steps; plain lines without a terminal."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from client.work import display
from server import status
from server.app import Hooks
from server.rounds import Listener
from sscxr import runs
from sscxr.config import Config
from sscxr.display import Board, Clock, Line
from sscxr.runs import SiteRow
from sscxr.training.batches import round_of

_SHOWN = 8  # sites that have a line each


class Show:
    """Shows a run while it is open."""

    def __init__(self, config: Config, at_once: int = 1) -> None:
        """Args: how many sites work at a time."""
        self.config, self.board, self._at_once = config, Board(), at_once
        self._clock = Clock()
        self._round, self._sites, self._heard = 0, 1, 0
        self._shares: dict[str, float] = {}  # share of steps done, for sites that have not replied yet
        self._clocks: dict[str, Clock] = {}
        self._at_work: dict[str, Line] = {}  # the sites that train, in the order of their last steps

    def __enter__(self) -> "Show":
        Hooks.listener = Listener(self._started, self._replied, self._committed)
        display.on_step = self._stepped
        self.board.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.board.__exit__(*error)
        Hooks.listener, display.on_step = None, None

    def _started(self, round_number: int, attempt: int, sites: list[str]) -> None:
        self._round, self._sites, self._heard = round_number, max(1, len(sites)), 0
        self._shares, self._clocks, self._at_work = {}, {}, {}
        self._show()

    def _stepped(self, site: str, images: int, step: int, seen: int, loss: float) -> None:
        steps = len(round_of(self.config, images, self._round)[1])
        self._shares[site] = step / steps
        speed = self._clocks.setdefault(site, Clock()).rate(seen)
        notes = [
            f"{step} of {steps} steps",
            "" if speed is None else f"{speed:.0f} images/s",
            "" if math.isnan(loss) else f"loss {loss:.4f}",
        ]
        title = site if self._at_once > 1 else f"{site}, {min(self._heard + 1, self._sites)} of {self._sites}"
        self._at_work.pop(site, None)
        self._at_work[site] = Line(title, step, steps, notes)
        self._show()

    def _replied(self, row: SiteRow) -> None:
        self._heard += 1
        self._shares.pop(row.site, None)
        if self._at_once > 1:  # in turn, the next site's line takes its place
            self._at_work.pop(row.site, None)
        if row.outcome != "folded":
            self.board.say(status.of_site(asdict(row)), style="bold red")
        self._show()

    def _committed(self, record: Mapping[str, Any]) -> None:
        done, total = record["round"], self.config.federation.rounds
        self._round, self._heard, self._shares, self._at_work = done, 0, {}, {}
        self.board.say(status.of_round(record, total, self._left() if done < total else ""))
        self._show()

    def _left(self) -> str:
        """Return the time left, from finished rounds and the share of this one; evaluation counts as its end."""
        share = min(1.0, (self._heard + sum(self._shares.values())) / self._sites)
        return self._clock.left(self._round + share, self.config.federation.rounds)

    def _show(self) -> None:
        rounds, left = self.config.federation.rounds, self._left()
        title = f"round {min(self._round + 1, rounds)} of {rounds}"
        replied = f"{self._heard} of {self._sites} sites replied"
        whole = Line(title, self._round, rounds, [left, replied])
        latest = list(self._at_work)[-min(self._at_once, _SHOWN) :]
        self.board.lines = [whole, *(self._at_work[site] for site in sorted(latest, key=runs.natural))]
