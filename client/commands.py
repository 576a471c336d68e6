"""A hospital's commands: `sscxr doctor`, and `sscxr site` with init, approve, approved, serve, log, alone."""

import logging
from pathlib import Path
from typing import Annotated

import click
import typer

from sscxr.commands.command_line import examples


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    site = typer.Typer(help="Set a hospital up.", no_args_is_help=True)
    site.command("init", epilog=examples("sscxr site init /srv/sscxr --name st-mary --join join.yaml"))(
        site_init
    )
    site.command(
        "approve",
        epilog=examples(
            "sscxr site approve /srv/sscxr/join.yaml", "sscxr site approve join.yaml --site site.yaml"
        ),
    )(site_approve)
    site.command("approved", epilog=examples("sscxr site approved /srv/sscxr/site.yaml"))(site_approved)
    site.command("serve", epilog=examples("sscxr site serve /etc/sscxr-site/site.yaml --group sscxr-app"))(
        site_serve
    )
    site.command("log", epilog=examples("sscxr site log /etc/sscxr-site/site.yaml"))(site_log)
    site.command(
        "alone", epilog=examples("sscxr site alone site.yaml", "sscxr site alone site.yaml --out own")
    )(site_alone)
    app.add_typer(site, name="site")
    app.command(
        "doctor",
        epilog=examples(
            "sscxr doctor /srv/sscxr/site.yaml --files EXPORT",
            "sscxr doctor --join join.yaml --out /srv/runs --json",
        ),
    )(doctor)


def site_init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder; made if absent.")],
    name: Annotated[str, typer.Option(help="The site's name, as the coordinator registers it.")],
    join: Annotated[Path | None, typer.Option(help="The coordinator's join file.")] = None,
    cache: Annotated[str, typer.Option(help="The prepared cache; relative to DIR.")] = "cache",
) -> None:
    """Write a commented site.yaml, a node key and an identity key. Send the coordinator their public parts."""
    from client import identity
    from client.settings import init

    if cache != "cache":  # relative to the current directory, which need not be DIR
        cache = str(Path(cache).absolute())
    file = init(folder, name=name, cache=cache, join=join)
    own = identity.made(folder)
    typer.echo(
        f"{file} written; send the coordinator {file.parent / 'node-key.pub'} and {own.name}.pub, and keep "
        f"node-key and {own.name} to yourself"
    )
    given = file.parent / "join.yaml" if join else "join.yaml"
    typer.echo(
        f"nothing may run here yet. Review and approve what the federation asks for: "
        f"sscxr site approve {given}"
    )


def site_approve(
    join: Annotated[Path, typer.Argument(metavar="JOIN.yaml", help="The coordinator's join file.")],
    site: Annotated[
        Path | None, typer.Option(help="The site's settings; default: site.yaml beside the join file.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
) -> None:
    """Show a federation's recipe in words, and approve it.

    This writes its hash to site.yaml.
    """
    from client.policy import approve
    from sscxr import stages
    from sscxr.federation import approval
    from sscxr.federation.join import Join

    file = site or join.parent / "site.yaml"
    invitation = Join.read(join)
    config = approval.settings_of(invitation.recipe)
    learns = stages.of(config).learns  # refuses a method's own settings, too
    typer.echo(f"{invitation.federation}, issued {invitation.issued}. At each site the run")
    marks = 0
    for word in approval.words(config, learns):
        typer.echo(f"  {word.what:15} {word.value}")
        if word.mark:
            marks += 1
            typer.echo(f"  {'':13} ! {word.mark}")
    typer.echo(f"{marks} of these are unusual: ask the coordinator why" if marks else "nothing is unusual")
    typer.echo(f"hash {approval.digest(config)}")
    if not yes and not typer.confirm(f"approve it in {file}?"):
        typer.echo("not approved; nothing was changed")
        raise typer.Exit(1)
    approve(file, join)
    typer.echo(f"approved in {file}; to withdraw it, delete its line below approved:")


def site_approved(
    site: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The site's settings.")],
) -> None:
    """List the hashes of the recipes that may run here."""
    from client.settings import read_settings

    found = read_settings(site).approved or []
    for digest in found:
        typer.echo(digest)
    if not found:
        typer.echo("nothing may run here; `sscxr site approve join.yaml`", err=True)


def site_serve(
    site: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The site's settings.")],
    socket: Annotated[
        Path | None, typer.Option(help="Where to listen; default: the socket that SITE.yaml names.")
    ] = None,
    group: Annotated[
        str, typer.Option(help="The group of the account that runs the coordinator's app.")
    ] = "",
) -> None:
    """Train here for the federation, until SIGTERM or Ctrl-C.

    No other process of a federation reads this site's images.
    """
    from client import service
    from client.settings import read_settings
    from sscxr import printable

    place = socket or Path(read_settings(site).socket)
    if not place.name:
        raise click.UsageError("give a --socket, or name one in SITE.yaml")
    log = logging.getLogger("sscxr")
    handler = logging.StreamHandler()
    handler.setFormatter(printable.Formatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    service.serve(site, place, group)


def site_log(
    site: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The site's settings.")],
) -> None:
    """List what left through the site service.

    Each line has the time, the run, what left, and how many bytes. Below is what training with differential privacy
    has cost.
    """
    from client import budget, sent
    from client.settings import read_settings

    settings = read_settings(site)
    lines = sent.read(Path(settings.state))
    for line in lines:
        typer.echo(line.words)
    if not lines:
        typer.echo("nothing has left through the site service", err=True)
    for words in budget.lines(settings):
        typer.echo(words)


def site_alone(
    site: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The site's settings.")],
    join: Annotated[
        Path | None, typer.Option(help="The join file; default: the one that SITE.yaml names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The encoder's folder; default: _alone/encoder in the site's state.")
    ] = None,
) -> None:
    """Pretrain on this site's images alone. By the federation's recipe, to compare with its encoder.

    Nothing leaves the site. Run again, it continues where it stopped.
    """
    from client import alone
    from sscxr.display import Board, Clock, Line

    clock = Clock()
    with Board() as board:

        def on_round(done: int, rounds: int, loss: float) -> None:
            notes = [f"round {done} of {rounds}", clock.left(done, rounds), f"loss {loss:.4f}"]
            board.show(Line("alone", done, rounds, notes))

        folder = alone.at_home(site, join, out, on_round=on_round)
    typer.echo(folder)


def doctor(
    site: Annotated[
        Path | None,
        typer.Argument(metavar="[SITE.yaml]", help="The site's settings; none: the coordinator's machine."),
    ] = None,
    join: Annotated[
        Path | None, typer.Option(help="The join file; default: the one that SITE.yaml names.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The coordinator's folder of runs, whose disk is checked.")
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
