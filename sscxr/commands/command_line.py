"""Common to all command lines: exit codes, `--debug`, `--version`, examples in `--help`.

Exit codes are in docs/cli.md. An error is one line on stderr.
"""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, TextIO, cast

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
SIGNALLED = 128  # plus the signal's number, as in a shell
GoingOn = Callable[[Sequence[str]], str]  # arguments as typed -> what is kept, and how to continue

# Options of several commands.
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object and nothing else.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
PublicKey = Annotated[
    Path | None, typer.Option(help="An Ed25519 public key: the release must be signed with it.")
]


class Stopped(KeyboardInterrupt):
    """Raised by Ctrl-C or SIGTERM; has the signal's number."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


def examples(*lines: str) -> str:
    """Return the end of a command's `--help`: lines that can be typed."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def typed(program: str, arguments: Sequence[str]) -> str:
    """Return a command as it can be typed again."""
    return f"{program} {shlex.join(arguments)}"


def main(app: typer.Typer, program: str, going_on: GoingOn) -> NoReturn:
    """Run the typed command line, and exit with the codes of docs/cli.md.

    Args:
        program: the words before the arguments.
        going_on: returns the line after Ctrl-C or on a full disk.
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
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process as usual
        stopped.append(Stopped(number))
        raise stopped[0]

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    arguments = sys.argv[1:]
    debug: list[bool] = []
    try:
        code = _command(app, debug)(arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
        if stopped:  # click turned it into an exit code
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
    except BrokenPipeError:  # the reader of the output has closed the pipe, as `head` does
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
    """Return the line about an error, and the exit code."""
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
    return f"{kind}: {error}; this is a bug: --debug shows where, please report it", DEFECT


def _is_homeless(error: Exception) -> bool:
    """Return whether a library looked for the home folder, or the name, of an account without one."""
    return (isinstance(error, RuntimeError) and "home directory" in str(error)) or (
        isinstance(error, KeyError) and "getpwuid" in str(error)
    )


def _command(app: typer.Typer, debug: list[bool]) -> click.Command:
    """Return the click command of an app; `--debug` after any of its commands fills `debug`."""

    def set_debug(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            debug.append(True)

    def show_version(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            typer.echo(f"sscxr {sscxr.__version__}")
            context.exit()

    # Plain help is legible in a narrow window and in a pipe, and appears immediately.
    typer.core.HAS_RICH = False
    command = get_command(app)
    flag = partial(click.Option, is_flag=True, expose_value=False)
    for one in commands(command).values():
        one.params.append(flag(["--debug"], callback=set_debug, help="Show a traceback on an error."))
        _restore_help(one)
    version = flag(["--version"], is_eager=True, callback=show_version, help="Print the version and exit.")
    command.params.append(version)
    return command


def commands(command: click.Command, words: str = "") -> dict[str, click.Command]:
    """Return a command and all below it, by the words that call them."""
    found = {words: command}
    for name, one in command.commands.items() if isinstance(command, click.Group) else ():
        found |= commands(one, f"{words} {name}".strip())
    return found


def _restore_help(command: click.Command) -> None:
    """Restore the help of arguments: typer 0.20, which Flower requires, loses it with click 8.5."""
    function = getattr(command.callback, "__wrapped__", None)
    known = {one.name: one for one in command.params}
    for name, parameter in get_params_from_function(function).items() if function else ():
        if isinstance(parameter.default, ArgumentInfo):
            known[name].help = parameter.default.help
    command.format_arguments = lambda ctx, formatter: None  # type: ignore[method-assign]  # typer has its own


def _say(line: str) -> None:
    try:
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    except OSError:
        _silence()  # nobody reads it


def _fail(line: str, code: int) -> NoReturn:
    _say(f"error: {line}")
    if code != MISTYPED:
        _flush()
    sys.exit(code)


def _flush() -> None:
    """Flush the output, so that it does not fail again as Python ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _silence()


def _silence() -> None:
    """Discard further output, about which Python would complain as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
