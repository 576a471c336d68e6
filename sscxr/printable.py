"""Makes foreign text safe to show: no control characters in a terminal or log, no formulas in a table.

Names from manifests, headers, files, releases and join files may contain anything.
"""

import csv
import io
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

# Runs' and sites' names become file names and table cells.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Control characters except newline and tab, and characters that change the writing direction or break lines.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_EASY = re.compile("(?:[A-Za-z0-9_.][A-Za-z0-9_.:/ -]*)?")  # most cells, which need no check
_FORMULA = "=+-@\t\r"  # spreadsheets treat a text that begins so as a formula


def printable(text: str) -> str:
    """Return the text with "?" for each control character; newlines and tabs stay."""
    return _CONTROL.sub("?", text)


def line(text: str) -> str:
    """Return the printable text on one line."""
    return printable(text.replace("\r", " ").replace("\n", " "))


class Stream:
    """A text stream without control characters; rich, which filters itself, writes to the underlying stream."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # rich looks for this name

    def write(self, text: str) -> int:
        """Write the printable text."""
        if not isinstance(text, str):
            raise TypeError("this stream takes text")
        return self.rich_proxied_file.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class Formatter(logging.Formatter):
    """A logging formatter without control characters: a message is always one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line without the traceback."""
        return printable(super().formatMessage(record)).replace("\n", " ")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it."""
        return printable(super().format(record))


def cell(value: object) -> str:
    """Return a value's text for a CSV file; a text that a spreadsheet would run is preceded by "'"."""
    if value is None:
        return ""
    if isinstance(value, str) and _EASY.fullmatch(value):
        return value
    text = line(str(value))
    return f"'{text}" if _is_formula(text.lstrip("'")) and isinstance(value, str) else text


def plain(text: str) -> str:
    """Return the text that was passed to `cell`."""
    return text[1:] if text[:1] == "'" and _is_formula(text.lstrip("'")) else text


def _is_formula(text: str) -> bool:
    if len(text) < 2 or text[0] not in _FORMULA:
        return False
    if text[0] != "-":
        return True
    try:
        float(text)
    except ValueError:
        return True
    return False  # a number below zero


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(name) for name in columns])
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def frame(data: "pd.DataFrame", **options: Any) -> str:
    """Return a CSV text as pandas writes it, texts and names as `cell` does."""
    safe = data.copy(deep=False)
    for name in safe.columns:
        if safe[name].dtype.kind not in "biuf":
            safe[name] = safe[name].map(_cell_of)
    safe = safe.rename(columns=_cell_of, index=_cell_of)
    return str(safe.to_csv(lineterminator="\n", **options))


def _cell_of(name: Any) -> Any:
    return cell(name) if isinstance(name, str) else name
