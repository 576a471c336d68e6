"""What a person sees of a long preparation: a bar in a terminal, a line now and then in a log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # seconds between lines where there is no terminal

log = logging.getLogger(__name__)


class Display:
    """Progress and warnings on stderr; with `shown=False`, warnings in the log alone."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._console = Console(stderr=True)

    def warn(self, line: str) -> None:
        if self._shown:
            self._console.print(
                f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True
            )
        else:
            log.warning(line)

    @contextmanager
    def counting(self, done: int, total: int) -> Iterator["Counter"]:
        """A counter of files over the preparation."""
        if not (self._shown and self._console.is_terminal):
            yield Counter(done, total, self._console if self._shown else None)
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[refused]} refused"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as bar:
            yield _Bar(done, total, bar)


class Counter:
    """Counts files; prints a line now and then where there is a console."""

    def __init__(self, done: int, total: int, console: Console | None) -> None:
        self.done, self.total, self.refused = done, total, 0
        self._console, self._said = console, time.monotonic()

    def step(self, refused: bool) -> None:
        """One more file is through."""
        self.done += 1
        self.refused += refused
        self.show()

    def show(self) -> None:
        if self._console is not None and time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            self._console.print(f"{self.done} of {self.total} files, {self.refused} refused", highlight=False)


class _Bar(Counter):
    def __init__(self, done: int, total: int, bar: Progress) -> None:
        super().__init__(done, total, None)
        self._bar = bar
        self._task = bar.add_task("preparing", total=total, completed=done, refused=0)

    def show(self) -> None:
        self._bar.update(self._task, completed=self.done, refused=self.refused)
