"""What all command lines here have in common: how they end, `--debug`, `--version`, examples under `--help`.

Exit codes are in docs/cli.md. What goes wrong is one line on stderr.
"""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn, TextIO, cast

import click
import typer
import typer.core
from typer.main import get_command
from typer.models import ArgumentInfo
from typer.utils import get_params_from_function

import sscxr
from sscxr import printable
from sscxr.errors import SscxrError
from sscxr.files import is_full_disk

FAILED, MISTYPED, DEFECT = 1, 2, 70  # 70 is EX_SOFTWARE of sysexits.h
SIGNALLED = 128  # and the signal's number: as a shell has it

GoingOn = Callable[[Sequence[str]], str]  # arguments as typed -> what is kept, and how to go on


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, and which of them."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


def examples(*lines: str) -> str:
    """The end of a command's `--help`: lines that can be typed."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def typed(program: str, arguments: Sequence[str]) -> str:
    """A command as it can be typed again."""
    return f"{program} {shlex.join(arguments)}"


def main(app: typer.Typer, program: str, going_on: GoingOn) -> NoReturn:
    """Run the command line that was typed, and exit as docs/cli.md says.

    Args:
        program: what is typed before the arguments.
        going_on: what to say after Ctrl-C or on a full disk.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, printable.Stream(stream)) for stream in streams)
    try:
        _run(app, program, going_on)
    finally:
        sys.stdout, sys.stderr = streams


def _run(app: typer.Typer, program: str, going_on: GoingOn) -> NoReturn:
    stopped: list[Stopped] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process as it would any other
        stopped.append(Stopped(number))
        raise stopped[0]

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    arguments = sys.argv[1:]
    debug: list[bool] = []
    try:
        code = _command(app, debug)(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        if stopped:  # click made an exit code of it
            raise stopped[0]
        sys.exit(code)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        sys.exit(MISTYPED)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else program
        _fail(f"{error.format_message()} ({asked} --help)", MISTYPED)
    except Stopped as one:
        _say(f"stopped; {going_on(arguments)}")
        sys.exit(SIGNALLED + one.signal_number)
    except BrokenPipeError:  # whoever read what is printed has gone, as `head` does
        _silence()
        sys.exit(FAILED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(*_explained(error, going_on(arguments)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explained(error: Exception, going_on: str) -> tuple[str, int]:
    """The line that says what went wrong, and the exit code."""
    if is_full_disk(error):
        place = getattr(error, "filename", None)
        return f"no space left on the disk{f' of {place}' if place else ''}: make room; {going_on}", FAILED
    if isinstance(error, MemoryError):
        return f"not enough memory: free some, or ask for less at a time; {going_on}", FAILED
    if isinstance(error, SscxrError):
        return str(error), FAILED
    if _is_homeless(error):
        return "this account has no home folder: set HOME to a folder that it may write to", FAILED
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED
    kind = type(error).__name__
    return f"{kind}: {error}; this is a defect: --debug shows where, please report it", DEFECT


def _is_homeless(error: Exception) -> bool:
    """Whether a library looked for the home folder, or the name, of an account that has none."""
    return (isinstance(error, RuntimeError) and "home directory" in str(error)) or (
        isinstance(error, KeyError) and "getpwuid" in str(error)
    )


def _command(app: typer.Typer, debug: list[bool]) -> click.Command:
    """The click command of an app; `debug` is filled where `--debug` is typed, after any of its commands."""

    def set_debug(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            debug.append(True)

    def show_version(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            typer.echo(f"sscxr {sscxr.__version__}")
            context.exit()

    typer.core.HAS_RICH = False  # plain help is read in a narrow window and in a pipe, and comes at once
    command = get_command(app)
    for one in commands(command).values():
        words = "Show a traceback where it goes wrong."
        one.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, callback=set_debug, help=words)
        )
        _restore_help(one)
    version = click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show_version,
        help="Say the version and exit.",
    )
    command.params.append(version)
    return command


def commands(command: click.Command, words: str = "") -> dict[str, click.Command]:
    """A command and all below it, by the words that call them."""
    found = {words: command}
    for name, one in command.commands.items() if isinstance(command, click.Group) else ():
        found |= commands(one, f"{words} {name}".strip())
    return found


def _restore_help(command: click.Command) -> None:
    """Put back what is said of arguments: typer 0.20, which Flower wants, loses it beside click 8.5."""
    function = getattr(command.callback, "__wrapped__", None)
    known = {one.name: one for one in command.params}
    for name, told in get_params_from_function(function).items() if function else ():
        if isinstance(told.default, ArgumentInfo):
            known[name].help = told.default.help
    command.format_arguments = lambda ctx, formatter: None  # type: ignore[method-assign]  # typer has its own


def _say(line: str) -> None:
    try:
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    except OSError:
        _silence()  # nobody is there to read it


def _fail(line: str, code: int) -> NoReturn:
    _say(f"error: {line}")
    if code != MISTYPED:
        _flush()
    sys.exit(code)


def _flush() -> None:
    """Let what is left to print not fail again as Python ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _silence()


def _silence() -> None:
    """Send what is still to be printed to nowhere: Python would complain as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
