"""`sscxr watch`: a run from its folder alone, half-written lines and resumed ledgers included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from server import commands, status
from server.watch import Screen, look, watch

HEAD = "round,site,images,loss,update_norm,seconds,bytes,outcome,reason\n"


def row(number: int, site: str, outcome: str = "folded", reason: str = "") -> str:
    figures = "100,0.5,1.0,12.5,2000000" if outcome == "folded" else ",,,,"
    return f"{number},{site},{figures},{outcome},{reason}\n"


def record(number: int) -> str:
    said = {
        "round": number,
        "sites": 2,
        "roster": 3,
        "loss": 1 / number,
        "held_out_loss": 0.75,
        "seconds": 20.0,
    }
    return json.dumps(said | {"held_out": {"a": 0.625}}) + "\n"


def write(out: Path, rounds: int, state: str = "running", reason: str = "") -> None:
    """A run of sites a, b and c; c is late in every round."""
    out.mkdir(exist_ok=True)
    lines = [row(n, "a") + row(n, "b") + row(n, "c", "late", "no reply in 9 s") for n in range(1, rounds + 1)]
    (out / "sites.csv").write_text(HEAD + "".join(lines))
    (out / "rounds.jsonl").write_text("".join(record(n) for n in range(1, rounds + 1)))
    status.write(out, state, done=rounds, rounds=4, reason=reason)


def shown(out: Path, width: int) -> str:
    console = Console(width=width, record=True, markup=False, highlight=False)
    console.print(Screen(out, look(out), 24))
    return console.export_text()


def run(out: Path, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    commands.add(app)
    ended = CliRunner().invoke(app, ["watch", str(out), *arguments])
    return ended.exit_code, ended.output


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [("finished", 0, "finished"), ("stopped", 1, "too few"), ("running", 1, "died")],
)
def test_it_ends_as_run_status_does(tmp_path: Path, state: str, code: int, words: str) -> None:
    out = tmp_path / "run"
    write(out, 4, state, "too few sites" if state == "stopped" else "")
    for arguments in ((), ("--once",)):
        ended, said = run(out, *arguments)
        assert ended == code
        assert words in said


def test_one_that_runs_is_3_and_says_whom_it_waits_for(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write(out, 2)
    with status.held(out):
        opened = status.Open(out, done=2, rounds=4, sites=["a", "b", "c"])
        opened.heard("b")
        code, said = run(out, "--once", "--json")
        page = shown(out, 100)
    found = json.loads(said)
    assert code == 3
    assert found["status"]["waiting"] == ["a", "c"]
    assert found["round"]["round"] == 2
    assert [site["site"] for site in found["sites"]] == ["c", "a", "b"]  # what went wrong comes first
    assert "1 of 3 sites replied" in page
    assert "waiting for a, c" in page
    assert "0:40 left" in page or "0:39 left" in page


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_page_fits_the_window_and_a_late_site_stands_out(tmp_path: Path, width: int) -> None:
    out = tmp_path / "run"
    write(out, 3, "finished")
    page = shown(out, width)
    assert max(map(len, page.splitlines())) <= width
    assert "! late in 3" in page
    assert "round 3 of 4" in page


def test_names_are_shown_whole_and_in_their_order(tmp_path: Path) -> None:
    """The column of reasons gives way, not the names that a coordinator telephones."""
    out = tmp_path / "run"
    names = [f"childrens-hospital-of-the-city-{number}" for number in (10, 9, 2, 1)]
    write(out, 1, "finished")
    lines = [row(1, name, "refused", "its code or recipe differs: " + "x" * 80) for name in names]
    (out / "sites.csv").write_text(HEAD + "".join(lines))
    page = shown(out, 80)
    places = [page.index(f"{name} ") for name in reversed(names)]
    assert places == sorted(places)
    assert max(map(len, page.splitlines())) <= 80
    folded = "".join(line[:20].strip() for line in shown(out, 40).splitlines())
    assert all(name in folded for name in names)


def test_what_is_half_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write(out, 2)
    for name, whole in (("rounds.jsonl", record(3)), ("sites.csv", row(3, "c") + row(3, "a"))):
        file = out / name
        text = file.read_bytes()
        for cut in range(len(whole)):
            file.write_bytes(text + whole[:cut].encode())
            seen = look(out)
            assert len(seen.rounds) == 2
            assert len(seen.rows) == 6 + whole[:cut].count("\n")
        file.write_bytes(text)


def test_it_follows_a_run_over_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    write(out, 1)
    steps = iter(
        [(2, "running"), (3, "running"), (2, "running"), (3, "running"), (4, "running"), (4, "finished")]
    )
    # Round 3 was not committed the first time; between two looks comes one step of these.
    monkeypatch.setattr("server.watch.time.sleep", lambda seconds: write(out, *next(steps)))
    with status.held(out):
        code = watch(out, once=False, as_json=False)
    said = capsys.readouterr().out.splitlines()
    assert code == 0
    rounds = [line.split(":")[0] for line in said if " sites, loss" in line]
    assert rounds == [f"round {number} of 4" for number in (1, 2, 3, 3, 4)]
    assert any("from round 2" in line for line in said)
    assert said.count("round 2: c late: no reply in 9 s") == 1
    assert said[-1] == "finished after round 4 of 4"


def test_no_run_is_said_and_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    commands.add(app)
    for command in (["watch"], ["run-status"], ["track", "--tensorboard"]):
        ended = CliRunner().invoke(app, [*command, "nix"])
        assert str(tmp_path / "nix") in str(ended.exception)
        assert str(tmp_path / "home" / ".sscxr" / "runs" / "nix") in str(ended.exception)


def test_it_begins_without_what_takes_seconds_to_import(tmp_path: Path) -> None:
    out = tmp_path / "run"
    write(out, 4, "finished")
    code = (
        "import sys; from sscxr.commands import cli\n"
        f"sys.argv = ['sscxr', 'watch', {str(out)!r}, '--once']\n"
        "try: cli.main()\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'flwr', 'omegaconf'} & sys.modules.keys()\n"
        "assert 'server.watch' in sys.modules and not heavy, heavy\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "round 4 of 4" in ended.stdout
