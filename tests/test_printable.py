"""Others' text drives no terminal, breaks no line of a log and runs in no spreadsheet; numbers stay numbers."""

import io
import json
import logging
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer

from sscxr import printable
from sscxr.commands import command_line
from sscxr.data.cache import tables
from sscxr.data.cache.cache import INDEX_COLUMNS, read_index
from sscxr.data.cache.tables import Tables
from sscxr.display import Board, Line, PlainConsole

ESCAPES = "\x1b]0;owned\x07\x1b[31mPWN\x1b[2J\x9b1m\r\u202egnp\u2028"
FORMULAS = (
    '=HYPERLINK("http://x")',
    "@SUM(1)",
    "+1+2",
    "+3",
    "-2+3+cmd|' /C calc'!A0",
    "\t=1",
    "-a",
    "'=1",
    "''@a",
)
NUMBERS = (
    "-1",
    "-1.5e-3",
    "-inf",
    "0",
    "1e5",
    "-",
    "=",
    "@",
    "a=b",
    "it's",
    "Fr@u",
    "Östergötland",
    "",
)


def is_plain(text: str) -> bool:
    return not any(c in text for c in "\x1b\x07\x9b\r\u202e\u2028")


@pytest.mark.parametrize("text", [*FORMULAS, *NUMBERS])
def test_a_cell_is_read_back_as_it_was(text: str) -> None:
    written = printable.cell(text)
    assert printable.plain(written) == text
    assert (written != text) == (text in FORMULAS)
    assert written[:1] not in "=@\t" or len(text) < 2


def test_numbers_are_written_as_numbers() -> None:
    assert [printable.cell(value) for value in (-1.5, -2, float("-inf"), None, True)] == [
        "-1.5",
        "-2",
        "-inf",
        "",
        "True",
    ]
    table = pd.DataFrame(
        {"=a": ["=b", "-3", None], "n": [-1.5, 2.0, 3.0], "k": [-1, 0, 1]}, index=["@x", "y", "z"]
    )
    lines = printable.frame(table).splitlines()
    assert lines == [",'=a,n,k", "'@x,'=b,-1.5,-1", "y,-3,2.0,0", "z,,3.0,1"]
    assert list(table.columns) == ["=a", "n", "k"], "the table itself stays as it was"


def test_no_table_of_a_cache_has_a_formula_or_an_escape(tmp_path: Path) -> None:
    row = dict.fromkeys(INDEX_COLUMNS, "") | {
        "source": FORMULAS[0],
        "hospital": FORMULAS[1],
        "licence": ESCAPES,
    }
    label = "label:=cmd|' /C calc'!A0" + ESCAPES
    written = Tables(rows=[row | {label: "1"}], quarantine={"=a.dcm": f"@no: {ESCAPES}", "b\x1b.dcm": "no"})
    (tmp_path / "summary.json").write_text(json.dumps({"sources": [FORMULAS[0]]}))
    tables.save(tmp_path, written, 64)
    for name in ("index.csv", "quarantine.csv"):
        text = (tmp_path / name).read_text()
        assert is_plain(text)
        assert not any(start in text for start in (",=", ",@", "\n=", "\n@", ',"=', ',"@'))
    again = tables.load(tmp_path)
    assert (again.rows[0]["source"], again.rows[0]["hospital"]) == FORMULAS[:2]
    assert read_index(tmp_path)["source"][0] == FORMULAS[0]
    assert read_index(tmp_path)["hospital"][0] == FORMULAS[1]


def test_what_a_command_prints_has_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def work() -> None:
        typer.echo(f"a{ESCAPES}\nb\tc")
        print(ESCAPES, file=sys.stderr)
        PlainConsole().print(f"[red]{ESCAPES}[/red]")
        board = Board()
        board.say(ESCAPES)
        board.console.print(Line(ESCAPES, 1, 2, [ESCAPES]))
        raise ValueError(ESCAPES)

    monkeypatch.setattr(sys, "argv", ["program"])
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal, where click leaves escape codes in
    streams = sys.stdout, sys.stderr
    with pytest.raises(SystemExit):
        command_line.main(app, "program", lambda words: "go on")
    assert (sys.stdout, sys.stderr) == streams
    out, err = capsys.readouterr()
    for text in (out, err):
        assert text.count("PWN") >= 2
        assert is_plain(re.sub(r"\x1b\[[0-9;]*m", "", text)), "but for the colours of a bar"
        assert text.count("[31mPWN") == text.count("?[31mPWN")
    assert "b\tc" in out
    assert "[red]" in out


def test_a_progress_bar_in_a_terminal_is_still_drawn() -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=80, color_system="standard")
    console.print(Line(f"a{ESCAPES}", 1, 2, ["note"]))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "━" in drawn
    assert "\x1b[" in drawn, "rich's own colours"
    assert "\x1b]0" not in drawn
    assert "\x1b[2J" not in drawn


def test_a_log_s_message_is_one_line_without_control_characters() -> None:
    try:
        raise ValueError(ESCAPES)
    except ValueError:
        record = logging.LogRecord("a", 30, "", 1, f"one\ntwo{ESCAPES}", (), sys.exc_info())
    text = printable.Formatter("%(levelname)s %(message)s").format(record)
    assert text.splitlines()[0].startswith("WARNING one two?")
    assert "Traceback" in text
    assert is_plain(text)
