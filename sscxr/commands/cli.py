"""`sscxr ...`: one thin command per task. `command_line.py` has what all of them have in common.

No command imports torch, pandas or Flower before it runs: `--help` and a mistyped option are answered
immediately.
"""

from collections.abc import Sequence
from importlib.metadata import entry_points

import typer

from sscxr.commands import cache, command_line, encoder, finetune, model, report
from sscxr.commands.command_line import examples

app = typer.Typer(
    name="sscxr",
    help="Federated self-supervised learning on chest X-rays. Simulations: python -m sim.run --help.",
    epilog=examples(
        "sscxr prepare EXPORT --out CACHE",
        "sscxr doctor site.yaml",
        "sscxr watch runs/mine",
        "sscxr --install-completion",
    )
    + "\n\n\b\nExit codes: 0 done, 1 could not be done, 2 mistyped, 70 a bug, 130 Ctrl-C; all: docs/cli.md",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,  # click does
)
cache.add(app)
encoder.add(app)
finetune.add(app)
model.add(app)
report.add(app)

# What is kept after Ctrl-C, or on a full disk, by the command's first words.
_KEPT = {
    "prepare": "prepared files are kept. To continue: {}",
    "encoder pull": "downloaded files are kept. To continue: {}",
    "finetune": "nothing was written. To start again: {}",
    "predict": "written files are kept, without a table yet. To start again: {} --force",
    "watch": "the run continues. To watch again: {}",
}


def _add_commands() -> None:
    """Add the commands of the layers above, which this one does not import, by their entry points."""
    for entry in sorted(entry_points(group="sscxr.commands")):
        entry.load()(app)


def _going_on(arguments: Sequence[str]) -> str:
    words = " ".join(arguments)
    kept = next((text for name, text in _KEPT.items() if f"{words} ".startswith(f"{name} ")), "again: {}")
    return kept.format(command_line.typed("sscxr", arguments))


def main() -> None:
    """Run `sscxr`; its entry point."""
    _add_commands()
    command_line.main(app, "sscxr", _going_on)


if __name__ == "__main__":
    main()
