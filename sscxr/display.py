"""Progress as a person sees it: in a terminal lines that renew themselves, elsewhere a plain line now and then.

A display is never a reason for the work to fail: where nobody reads it any more, it is silent.

The bar is rich's. Its columns are not used: they know no time left where a step takes more than 30 s, as a round
does; with a longer window they forget all but the last 1000 steps; and they fold a row that is too long, where ours
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
    """A bar and what is said beside it.

    Attributes:
        title: stands before the bar.
        done, total: how far it is; no total: it is not known.
        notes: stand behind it, the most important first; those that find no room are left out.
    """

    title: str
    done: float
    total: float | None
    notes: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One row: the bar and the first note come before the other notes; narrow windows have no bar."""
        width, notes = options.max_width, list(self.notes)
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
    """Lines at the foot of a terminal while it is open; elsewhere only what is said.

    Attributes:
        lines: what is shown; may be set at any time.
        in_terminal: whether there is one.
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
        """A line that stays."""
        self.console.print(text, style=style or None, soft_wrap=True)
        self._said = time.monotonic()

    def say_now_and_then(self, text: str) -> None:
        """A line where there is no terminal, and none was said for a while."""
        if not self.in_terminal and time.monotonic() - self._said > EVERY:
            self.say(text)


class Clock:
    """How long something still takes, from how far it came since it was looked at first."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, done: float, total: float) -> str:
        """Such as "2:10 left"; empty where nothing can be said yet."""
        now = time.monotonic()
        began, at = self._first = self._first or (now, done)
        if done <= at:
            return ""
        return f"{duration((now - began) * (total - done) / (done - at))} left"


class Rate:
    """How many a second, from the first look on."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def of(self, done: float) -> float | None:
        """So many a second; None before there is anything to go by."""
        now = time.monotonic()
        began, at = self._first = self._first or (now, done)
        return (done - at) / (now - began) if done > at and now > began else None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainConsole(Console):
    """A console that takes text as text: no markup, no control characters, whoever wrote it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments; what rich itself wants of the terminal is not in their text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Be silent: whoever read this has gone, the work has not."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
