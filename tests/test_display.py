"""A line of progress fits its window: its bar and first note before its other notes."""

import io
import os
import pty
import select
import subprocess
import sys
from time import monotonic

import pytest
from rich.console import Console

from sscxr.display import Board, Line

NOTES = ["at most 0:31 left", "loss 1.0730, validation AUROC 0.4667"]


def shown(width: int, notes: list[str]) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, no_color=True)
    console.print(Line("epoch 4 of at most 10", 4, 10, notes))
    return file.getvalue().removesuffix("\n")


def test_it_is_one_row_of_its_window() -> None:
    for width in range(10, 140):
        row = shown(width, NOTES)
        assert "\n" not in row
        assert min(width, 21) - 1 <= len(row.rstrip()) <= width


def test_a_bar_and_the_first_note_come_before_the_others() -> None:
    assert "━" in shown(120, NOTES)
    assert NOTES[1] in shown(120, NOTES)
    assert "━" in shown(80, NOTES)
    assert NOTES[0] in shown(80, NOTES)
    assert NOTES[1] not in shown(80, NOTES)
    narrow = shown(42, NOTES)
    assert "━" not in narrow
    assert NOTES[0] in narrow
    assert "━" not in shown(80, ["x" * 55])
    assert "x" * 55 in shown(80, ["x" * 55])


CODE = """
import time
from sscxr.display import Board, Line
with Board() as board:
    for done in range(1, 6):
        board.lines = [Line("files", done, 5, [f"{done} of 5", "0:01 left", "a note that finds no room " * 3])]
        if done == 3:
            board.say("broken.dcm: not an image")
        time.sleep(0.3)
"""


def test_in_a_terminal_of_80_columns_nothing_wraps_and_nothing_is_left_over() -> None:
    """Through a pseudo-terminal: each row is as long as the window at most, the bar is gone in the end."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stderr=theirs, stdout=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    said, until = b"", monotonic() + 60
    while monotonic() < until and select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        said += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0
    rows = screen(said.decode())
    assert rows == ["broken.dcm: not an image"]


def screen(text: str, width: int = 80) -> list[str]:
    """What stands on a terminal after it was sent this: of its controls those that rich uses."""
    rows, row, column, place = [""], 0, 0, 0
    widest = 0
    while place < len(text):
        if text.startswith("\x1b[", place):
            end = place + 2
            while not text[end].isalpha():
                end += 1
            number, kind = text[place + 2 : end], text[end]
            if kind == "A":
                row -= int(number or 1)
            elif kind == "K":
                rows[row] = "" if number == "2" else rows[row][:column]
            place = end + 1
            continue
        letter = text[place]
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        else:
            rows[row] = rows[row][:column].ljust(column) + letter + rows[row][column + 1 :]
            column += 1
            widest = max(widest, column)
        place += 1
    assert 40 < widest <= width
    return [one for one in rows if one.strip()]


def test_where_there_is_no_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Board() as board:
        board.lines = [Line("files", 1, 5, ["1 of 5"])]
        board.say("broken.dcm: not an image")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "broken.dcm: not an image\n"
