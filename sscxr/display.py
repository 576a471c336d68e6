"""Progress on the screen: lines that are updated in a terminal, elsewhere a plain line now and then.

A display never makes the work fail: if its reader has gone, it is silent.

The bar is rich's. Its columns are not used: they show no time left if a step takes more than 30 s, as a round does;
with a longer window they forget all but the last 1000 steps; and they wrap a row that is too long, where ours
leaves out the last notes.
"""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sscxr.printable import printable

EVERY = 30.0  # seconds between plain lines
_BAR = (8, 40)  # columns, at least and at most
_GAP = "  "


@dataclass(frozen=True)
class Line:
    """A bar with a title and notes.

    Attributes:
        title: the text before the bar.
        done, total: the progress; total is None if it is unknown.
        notes: the texts after the bar, the most important first; those that are empty or do not fit are left out.
    """

    title: str
    done: float
    total: float | None
    notes: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one row: the bar and the first note come before the other notes; narrow windows have no bar."""
        width, notes = options.max_width, [note for note in self.notes if note]
        least = len(_GAP) + _BAR[0]
        while len(notes) > 1 and len(_GAP.join([self.title, *notes])) + least > width:
            notes.pop()
        while notes and len(_GAP.join([self.title, *notes])) > width:
            notes.pop()
        words = _GAP.join([self.title, *notes])
        room = width - len(words) - len(_GAP)
        if self.total is None or room < _BAR[0]:
            yield Text(words, no_wrap=True, overflow="ellipsis")
            return
        bar = ProgressBar(total=max(self.total, 1e-9), completed=self.done, width=min(room, _BAR[1]))
        row = Table.grid(padding=(0, len(_GAP), 0, 0))
        row.add_row(Text(self.title, no_wrap=True), bar, Text(_GAP.join(notes), no_wrap=True))
        yield row


class Board:
    """Lines at the foot of a terminal while the board is open; elsewhere only the lines of `say`.

    Attributes:
        lines: the lines shown; may be set at any time.
        in_terminal: whether the output is a terminal.
    """

    def __init__(self) -> None:
        self.console = PlainConsole(stderr=True)
        self.in_terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.lines: Sequence[Line] = ()
        self._live = Live(
            get_renderable=lambda: Group(*self.lines),
            console=self.console,
            refresh_per_second=8,
            transient=True,
        )
        self._said = time.monotonic()

    def __enter__(self) -> "Board":
        if self.in_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def say(self, text: str, style: str = "") -> None:
        """Print a line that stays."""
        self.console.print(text, style=style or None, soft_wrap=True)
        self._said = time.monotonic()

    def show(self, line: Line) -> None:
        """Show one line; print it if there is no terminal and the last line is `EVERY` seconds old."""
        self.lines = [line]
        if not self.in_terminal and time.monotonic() - self._said > EVERY:
            self.say(f"{line.title}: {', '.join(note for note in line.notes if note)}")


class Clock:
    """Measures the rate since the first call, and estimates the time left from it."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def rate(self, done: float) -> float | None:
        """Return the rate per second; None if it cannot be estimated yet."""
        now = time.monotonic()
        began, at = self._first = self._first or (now, done)
        return (done - at) / (now - began) if done > at and now > began else None

    def left(self, done: float, total: float) -> str:
        """Return the time left, such as "2:10 left"; empty if it cannot be estimated yet."""
        rate = self.rate(done)
        return f"{duration((total - done) / rate)} left" if rate else ""


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainConsole(Console):
    """A console that prints plain text: no markup, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments with printable text; rich's own control codes are not in their text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Be silent: the reader has gone, but the work continues."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
