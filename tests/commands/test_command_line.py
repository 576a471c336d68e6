"""What all command lines have in common: exit codes, one line on stderr, `--debug`, `--version`, examples."""

import errno
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from marks import slow
from simulations import ROOT, environment
from typer.main import get_command

from sim import run as simulation
from sscxr.commands import cli, command_line
from sscxr.errors import SscxrError

HEAVY = ("torch", "pandas", "flwr", "timm", "sklearn", "ray")


def sscxr(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sscxr.commands.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=240
    )


def ended(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    does: BaseException | None,
    *arguments: str,
) -> tuple[int, str]:
    """The exit code and stderr of a command that raises what is given."""
    app = typer.Typer()

    @app.command()
    def work() -> None:
        if does is not None:
            raise does

    @app.command()
    def rest() -> None: ...

    monkeypatch.setattr(sys, "argv", ["program", "work", *arguments])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as exit_:
            command_line.main(app, "program", lambda words: f"go on: program {shlex.join(words)}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return int(exit_.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("does", "code", "line"),
    [
        (None, 0, ""),
        (typer.Exit(3), 3, ""),
        (SscxrError("no such\n thing"), 1, "error: no such thing\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.csv"), 1, "error: a.csv: No such file\n"),
        (click.UsageError("say what"), 2, "error: say what (program work --help)\n"),
        (ZeroDivisionError("by 0"), 70, "error: ZeroDivisionError: by 0; this is a bug: "),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1,
            "error: no space left on the disk of /x/y: make room; go on: program work\n",
        ),
        (MemoryError(), 1, "error: not enough memory: free some, or ask for less at a time; go on: program work\n"),
        (RuntimeError("Could not determine home directory."), 1, "error: this account has no home folder: "),
        (KeyError("getpwuid(): uid not found: 12345"), 1, "error: this account has no home folder: set HOME"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "error: no space left on the disk:"),
    ],
)  # fmt: skip
def test_exit_codes(
    does: BaseException | None,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, said = ended(capsys, monkeypatch, does)
    assert found == code
    assert said.startswith(line)
    assert said.count("\n") == bool(line)
    if isinstance(does, SscxrError | ZeroDivisionError):
        found, said = ended(capsys, monkeypatch, does, "--debug")
        assert found == code
        assert "Traceback" in said
        assert line.strip() in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys, os, signal, typer\nfrom sscxr.commands import command_line\napp = typer.Typer()\n"
        f"@app.command()\ndef work(name: str) -> None:\n    os.kill(os.getpid(), {int(number)})\n"
        "command_line.main(app, 'program', lambda words: 'again: ' + command_line.typed('program', words))"
    )
    command = [sys.executable, "-c", code, "a b"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + number
    assert done.stderr == "stopped; again: program 'a b'\n"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("sscxr.commands.cli", HEAVY), ("sim.run", HEAVY), slow("sim.plan", ("torch", "flwr", "timm"))],
)
def test_help_imports_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    code = f"""
import sys, runpy, atexit
atexit.register(lambda: print([name for name in {heavy} if name in sys.modules], file=sys.stderr))
sys.argv = ["x", "--help"]
runpy.run_module({module!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    assert "Examples:" in done.stdout


@pytest.mark.parametrize("group", [(), ("cache",), ("encoder",), ("finetune",), ("site",)])
def test_what_a_list_of_commands_says_is_not_cut_off(group: tuple[str, ...]) -> None:
    listed = sscxr(*group, "--help", COLUMNS="80").stdout.partition("Commands:")[2]
    assert listed
    assert "..." not in listed


def test_version_completion_and_the_nearest_name() -> None:
    done = sscxr("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"sscxr \d+\.\d+\.\d+\n", done.stdout)
    done = sscxr(_SSCXR_COMPLETE="complete_bash", COMP_WORDS="sscxr pre", COMP_CWORD="1")
    assert "prepare" in done.stdout + done.stderr
    done = sscxr("docto")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: No such command 'docto'. Did you mean 'doctor'? (sscxr --help)\n"
    done = sscxr("prepare", "x", "--outt", "y")
    assert done.returncode == 2
    assert "Did you mean '--out'? (sscxr prepare --help)" in done.stderr


def test_a_reader_that_went_and_a_full_disk_leave_no_traceback(tmp_path: Path) -> None:
    gone, there = os.pipe()
    os.close(gone)
    command = [sys.executable, "-m", "sscxr.commands.cli", "--help"]
    for stdout, code in ((there, 1), (os.open("/dev/full", os.O_WRONLY), 1)):
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        os.close(stdout)
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert done.stderr.count("\n") <= 1


def _leaves() -> list[tuple[str, click.Command]]:
    cli._add_commands()
    found = command_line.commands(get_command(cli.app))
    named = [("sscxr " + words, one) for words, one in found.items() if not isinstance(one, click.Group)]
    return [*named, (simulation.PROGRAM, get_command(simulation.app))]


def test_every_command_has_examples_that_can_be_typed() -> None:
    for program, command in _leaves():
        assert command.epilog, f"{program} has no examples"
        lines = command.epilog.split("Examples:\n")[1].replace("\\\n", " ").splitlines()
        for line in lines:
            assert line.strip().startswith(program), line
            arguments = shlex.split(line.strip().removeprefix(program))
            command.make_context(program, arguments)  # a usage error would be raised


def test_every_command_explains_its_arguments() -> None:
    for program, command in _leaves():
        command_line._restore_help(command)
        for one in command.params:
            assert getattr(one, "help", None), f"{program}: {one.name}"
