"""Writes the run's report after a round, at the end, and when the run fails. Its errors do not stop a run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from sscxr import report

_SHARE = 0.01  # of a run's time, at most, goes into reports between its rounds
_FIRST = 0.1  # seconds, an estimate for the first report

log = logging.getLogger("sscxr.server")


class Reporter:
    """Writes the report of the run in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._began, self._spent, self._last = monotonic(), 0.0, _FIRST

    def committed(self, record: Mapping[str, Any]) -> None:
        """Write the report after a round, unless rounds are so short that this would slow the run down."""
        if self._spent + self._last <= _SHARE * (monotonic() - self._began):
            self.write()

    def write(self, **known: Any) -> None:
        """Write the report now; `known` as in `report.write`."""
        began = monotonic()
        try:
            report.write(self.out, **known)
        except Exception as error:  # a full disk, a font, a bug: the rounds matter more
            log.exception(
                "the report was not written (%s); `sscxr report` writes it again", type(error).__name__
            )
        self._last = monotonic() - began
        self._spent += self._last
