"""A hospital's commands: `sscxr doctor` and `sscxr site init`."""

from pathlib import Path
from typing import Annotated

import click
import typer

from sscxr.command_line import examples


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    site = typer.Typer(help="Set a hospital up.", no_args_is_help=True)
    site.command("init", epilog=examples("sscxr site init /srv/sscxr --name st-mary --join join.yaml"))(
        site_init
    )
    app.add_typer(site, name="site")
    app.command(
        "doctor",
        epilog=examples(
            "sscxr doctor /srv/sscxr/site.yaml --files EXPORT",
            "sscxr doctor --join join.yaml --out /srv/runs --json",
        ),
    )(doctor)


def site_init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The site's folder; made where it is absent.")
    ],
    name: Annotated[str, typer.Option(help="The site's name, as the coordinator registers it.")],
    join: Annotated[Path | None, typer.Option(help="The coordinator's join file.")] = None,
    cache: Annotated[str, typer.Option(help="The prepared cache; relative to DIR.")] = "cache",
) -> None:
    """Write a commented site.yaml and a node key. Send the coordinator node-key.pub."""
    from client.settings import init

    if cache != "cache":  # as typed at this prompt, which need not be in DIR
        cache = str(Path(cache).absolute())
    file = init(folder, name=name, cache=cache, join=join)
    typer.echo(
        f"{file} written; send the coordinator {file.parent / 'node-key.pub'}, and keep node-key to yourself"
    )


def doctor(
    site: Annotated[
        Path | None,
        typer.Argument(metavar="[SITE.yaml]", help="The site's settings; none: the coordinator's machine."),
    ] = None,
    join: Annotated[
        Path | None, typer.Option(help="The join file; default: the one that SITE.yaml names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The coordinator's folder of runs: its disk is looked at.")
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="A folder of the site's own files: up to 20 of them are decoded.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list and nothing else.")] = False,
) -> None:
    """Find what would keep this machine from taking part. 0: all well, 1: warnings, 2: a failure."""
    from client.doctor.checks import exit_code, to_json
    from client.doctor.examination import Asked, examine

    if site is None and join is None:
        raise click.UsageError("give a SITE.yaml, or the coordinator's --join FILE")
    checks = []
    for check in examine(Asked(site, join, out, files)):
        checks.append(check)
        if not as_json:
            typer.echo("\n".join(check.lines()))
    if as_json:
        typer.echo(to_json(checks))
    raise typer.Exit(exit_code(checks))
