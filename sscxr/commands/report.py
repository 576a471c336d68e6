"""`sscxr report`. Thin: pandas, matplotlib and torch are imported when it runs, not before."""

from pathlib import Path
from typing import Annotated

import typer

from sscxr.commands.command_line import examples

_COMPARISON = Path("comparison.html")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A run's folder, or its name; several are compared."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The page; default: RUN/report.html, for several {_COMPARISON}.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page at --out.")] = False,
) -> None:
    """Write a run's report from its folder, at any time. For several runs, write a page that compares them."""
    from sscxr import report as pages
    from sscxr.files import refuse_existing
    from sscxr.runs import find

    page = out or (_COMPARISON if len(runs) > 1 else None)
    if page:
        refuse_existing(page, force=force)
    folders = [find(run) for run in runs]
    if len(folders) > 1:
        assert page is not None
        written = pages.write_comparison(folders, page)
    else:
        written = pages.write(folders[0], page=page)
    typer.echo(written)


def add(app: typer.Typer) -> None:
    """Add the command to `sscxr`."""
    app.command(epilog=examples("sscxr report runs/demo", "sscxr report runs/one runs/two --out both.html"))(
        report
    )
