"""One display of a simulation: rounds, sites, steps; plain lines where there is no terminal."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from client.app import display
from server.app import Hooks
from server.rounds import Listener
from sscxr.config import Config
from sscxr.runs import SiteRow
from sscxr.training import stages
from sscxr.training.pretrain import steps_of_round


class Show:
    """Shows a run while it is open."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = config, console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._round = 0
        self._rounds = self.progress.add_task("rounds", total=config.federation.rounds, note="")
        self._sites = self.progress.add_task("sites", total=None, note="")
        self._steps = self.progress.add_task("steps", total=None, note="")

    def __enter__(self) -> "Show":
        Hooks.listener = Listener(self._started, self._heard, self._committed)
        display.on_step = self._stepped
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        Hooks.listener, display.on_step = None, None

    def _started(self, round_number: int, attempt: int, sites: list[str]) -> None:
        self._round = round_number
        self.progress.update(self._rounds, completed=round_number)
        self.progress.reset(self._sites, total=len(sites), note="")

    def _stepped(self, site: str, images: int, step: int, seen: int, loss: float) -> None:
        if step == 1:
            size, epochs = stages.batch_size(self.config), self.config.federation.local_epochs
            self.progress.reset(self._steps, total=len(steps_of_round(images, size, epochs, self._round)))
        self.progress.update(
            self._steps, completed=step, note=f"{site}  loss {loss:.4f}" if loss == loss else site
        )

    def _heard(self, row: SiteRow) -> None:
        self.progress.advance(self._sites)
        if row.outcome != "folded":
            self.console.print(f"round {row.round}: {row.site} {row.outcome}: {row.reason}", markup=False)

    def _committed(self, record: Mapping[str, Any]) -> None:
        done, total = record["round"], self.config.federation.rounds
        self.progress.update(self._rounds, completed=done)
        held_out = record["held_out_loss"]
        measured = "" if held_out is None else f", held-out loss {held_out:.4f}"
        line = f"round {done}/{total}: {record['sites']} sites, loss {record['loss']:.4f}{measured}"
        self.console.print(f"{line}, {record['seconds']:.1f} s", markup=False, highlight=False)
