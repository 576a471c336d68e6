"""`sscxr watch`: shows a run from its folder, in any terminal of the server, while it runs and afterwards.

It reads only `status.json`, `rounds.jsonl` and `sites.csv`, and writes nothing. An incomplete line is left for
the next read; after a resume, which cuts off what was not committed, the files are simply shorter.
"""

import csv
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server import status
from sscxr import runs
from sscxr.display import Line, PlainConsole, duration
from sscxr.runs import RunError, Status

LOOK_EVERY = 1.0  # seconds
_RECENT = 5  # rounds that the time left is estimated from, and that a log begins with
_FEWEST = 5  # rows of sites that are shown in any window


@dataclass(frozen=True)
class Snapshot:
    """The content of the folder at one moment.

    Attributes:
        status: None before the run has started.
        rounds: the records of `rounds.jsonl`.
        rows: those of `sites.csv`, as text.
    """

    status: Status | None
    rounds: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, str]]

    def latest(self) -> list[Mapping[str, str]]:
        """Return the last row of each site: those that were not folded first, then by name."""
        last = {row["site"]: row for row in self.rows}
        return sorted(last.values(), key=lambda row: (row["outcome"] == "folded", runs.natural(row["site"])))

    def left(self) -> str:
        """Return the time left, estimated from the last rounds, such as "2:10 left"; empty if unknown."""
        if self.status is None or self.status.state != "running" or not self.rounds:
            return ""
        each = statistics.median(float(record["seconds"]) for record in self.rounds[-_RECENT:])
        to_do = self.status.rounds - self.status.round
        return f"{duration(max(0.0, each * to_do - min(each, self.status.age())))} left"

    def as_dict(self) -> dict[str, Any]:
        """Return the snapshot for `--json`."""
        return {
            "status": asdict(self.status) if self.status else None,
            "round": self.rounds[-1] if self.rounds else None,
            "sites": self.latest(),
        }


def look(out: Path) -> Snapshot:
    """Read a run's folder.

    Raises:
        RunError: a file is repeatedly unreadable.
    """
    try:
        now = runs.read_status(out)
    except RunError:
        if not (out / runs.STATUS).exists():
            return Snapshot(None, [], [])
        time.sleep(0.1)  # just being written, on a file system where a rename is not atomic
        now = runs.read_status(out)
    return Snapshot(now, *committed(out))


def committed(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return the records of rounds, and the rows of sites as text."""
    names = list(runs.SITE_COLUMNS)
    cells = csv.reader(runs.whole_lines(out / runs.SITES).splitlines())
    rows = [dict(zip(names, row, strict=True)) for row in cells if len(row) == len(names) and row != names]
    return runs.read_rounds(out / runs.ROUNDS), rows


def changes(out: Path) -> Iterator[Snapshot]:
    """Yield a snapshot at each change until the run ends."""
    before: tuple[Any, ...] | None = None
    while True:
        seen = look(out)
        if (key := (seen.status, len(seen.rounds), len(seen.rows))) != before:
            before = key
            yield seen
        if seen.status is not None and seen.status.state != "running":
            return
        time.sleep(LOOK_EVERY)


def watch(out: Path, *, once: bool, as_json: bool) -> int:
    """Show a run until it ends, or its present state; return the exit code of `run-status`.

    Raises:
        RunError: the folder is not a run.
    """
    if once or not out.is_dir():
        runs.read_status(out)  # raises if the folder is not a run
    console = PlainConsole()
    if once:
        seen = look(out)
        typer.echo(json.dumps(seen.as_dict(), indent=1)) if as_json else console.print(
            Screen(out, seen, 1000)
        )
    elif as_json:
        for seen in changes(out):
            typer.echo(json.dumps(seen.as_dict()))
    elif console.is_terminal and not console.is_dumb_terminal:
        seen = _watch_screen(out, console)
    else:
        seen = _watch_lines(out)
    return status.EXIT_CODES.get(seen.status.state if seen.status else "", 1)


def _watch_screen(out: Path, console: Console) -> Snapshot:
    seen = look(out)
    with Live(Screen(out, seen, console.height), console=console, auto_refresh=False, transient=True) as live:
        while seen.status is None or seen.status.state == "running":
            time.sleep(LOOK_EVERY)
            seen = look(out)
            live.update(Screen(out, seen, console.height), refresh=True)
    console.print(Screen(out, seen, 1000))
    return seen


def _watch_lines(out: Path) -> Snapshot:
    """Print what is new, line by line, for a log."""
    rounds, rows = 0, 0
    state = None
    for seen in changes(out):
        if state is None and seen.status is not None:
            rounds, rows = max(0, len(seen.rounds) - _RECENT), len(seen.rows)
        if len(seen.rounds) < rounds or len(seen.rows) < rows:
            typer.echo(f"resumed from round {len(seen.rounds)}: later rounds were not committed")
            rounds, rows = min(rounds, len(seen.rounds)), min(rows, len(seen.rows))
        for row in seen.rows[rows:]:
            if row["outcome"] != "folded":
                typer.echo(status.of_site(row))
        for record in seen.rounds[rounds:]:
            last = record is seen.rounds[-1]
            rounds_of = seen.status.rounds if seen.status else 0
            typer.echo(status.of_round(record, rounds_of, seen.left() if last else ""))
        rounds, rows = len(seen.rounds), len(seen.rows)
        now = seen.status.state if seen.status else "not started yet"
        if now != state and now != "running":
            typer.echo(seen.status.line() if seen.status else now)
        state = now
    return seen


class Screen:
    """A snapshot as a page that fits the window."""

    def __init__(self, out: Path, seen: Snapshot, height: int) -> None:
        self.out, self.seen, self.height = out, seen, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the page's parts."""
        seen, now = self.seen, self.seen.status
        if now is None:
            yield Text(f"{self.out}: the run has not started yet", overflow="ellipsis", no_wrap=True)
            return
        running = now.state == "running"
        replied = f"{now.expected - len(now.waiting)} of {now.expected} sites replied" if now.expected else ""
        notes = [now.state, seen.left(), replied if running else "", str(self.out)]
        yield Line(f"round {now.round} of {now.rounds}", now.round, now.rounds, notes)
        lines = [status.of_round(seen.rounds[-1], now.rounds)] if seen.rounds else []
        if running and now.waiting:
            lines.append(f"waiting for {', '.join(now.waiting)}")
        yield Group(*(Text(line, overflow="ellipsis", no_wrap=True) for line in lines))
        if now.reason:
            yield Text(now.line(), style="bold red")
        yield self._table(options.max_width, max(_FEWEST, self.height - len(lines) - 6))

    def _table(self, width: int, most: int) -> Table:
        rows = self.seen.latest()
        folded: dict[str, int] = {}
        for row in self.seen.rows:
            folded[row["site"]] = folded.get(row["site"], 0) + (row["outcome"] == "folded")
        held_out = (self.seen.rounds[-1].get("held_out") or {}) if self.seen.rounds else {}
        wide, wider = width >= 60, width >= 78
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        # A coordinator acts on names: they are shown whole, on several lines if necessary.
        longest = min(width // 2, max((len(row["site"]) for row in rows[:most]), default=0))
        table.add_column("site", overflow="fold", min_width=longest, max_width=max(8, width // 2))
        names = ["images"] * wide + ["rounds"] * wide + ["loss"] + ["held-out"] * wider + ["s", "MB"] * wider
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("last")  # the only column that shrinks
        for row in rows[:most]:
            cells = {
                "images": row["images"],
                "rounds": str(folded[row["site"]]),
                "loss": _rounded(row["loss"], 4),
                "held-out": _rounded(held_out.get(row["site"]), 4),
                "s": _rounded(row["seconds"], 1),
                "MB": _rounded(row["bytes"], 1, 1e-6),
            }
            good = row["outcome"] == "folded"
            last = (
                f"round {row['round']}" if good else f"! {row['outcome']} in {row['round']}: {row['reason']}"
            )
            table.add_row(
                row["site"],
                *(cells[name] for name in names),
                Text(last, overflow="ellipsis", no_wrap=True),
                style="" if good else "bold red",
            )
        if len(rows) > most:
            table.add_row(f"{len(rows) - most} more")
        return table


def _rounded(value: object, digits: int, scale: float = 1.0) -> str:
    try:
        return f"{float(str(value)) * scale:.{digits}f}"
    except ValueError:
        return ""
