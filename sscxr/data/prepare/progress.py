"""Shows the progress of a long preparation: a bar in a terminal, an occasional line in a log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sscxr.display import Board, Clock, Line

log = logging.getLogger(__name__)


class Display:
    """Shows progress and warnings on stderr; with `shown=False`, only warnings, in the log."""

    def __init__(self, shown: bool) -> None:
        self._board = Board() if shown else None

    def warn(self, line: str) -> None:
        if self._board is not None:
            self._board.say(f"warning: {line}", style="yellow")
        else:
            log.warning(line)

    @contextmanager
    def counting(
        self, done: int, total: int, title: str = "preparing", what: str = "files"
    ) -> Iterator["Counter"]:
        """Return a counter of files, or of other items."""
        counter = Counter(done, total, self._board, title, what)
        if self._board is None or not total:
            yield counter
            return
        if done:
            self._board.say(f"continuing: {done} of {total} {what} are done already")
        with self._board:
            yield counter


class Counter:
    """Counts files, and shows the count if it has a board."""

    def __init__(self, done: int, total: int, board: Board | None, title: str, what: str) -> None:
        self.done, self.total, self.refused = done, total, 0
        self._board, self._clock = board, Clock()
        self._title, self._what = title, what
        self._show()

    def step(self, refused: bool = False) -> None:
        """Count one more file."""
        self.done += 1
        self.refused += refused
        self._show()

    def _show(self) -> None:
        if self._board is None:
            return
        left, rate = self._clock.left(self.done, self.total), self._clock.rate(self.done)
        notes = [
            f"{self.done} of {self.total} {self._what}",
            f"{self.refused} refused" if self.refused else "",
            left,
            "" if rate is None else f"{rate:.1f} {self._what}/s",
        ]
        self._board.show(Line(self._title, self.done, self.total, notes))
