"""The coordinator's commands of `sscxr`. Thin: torch and Flower are imported when a command runs, not before."""

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from sscxr.commands.command_line import AsJson, Force, examples

if TYPE_CHECKING:
    from sscxr.federation.join import Join


RunName = Annotated[str, typer.Argument(metavar="RUN", help="Its folder, or its name.")]


def join(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe by name, or a YAML file.")],
    name: Annotated[str, typer.Option(help="The federation's name.")],
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address that SuperNodes connect to.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The settings that the run will have."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="The CA's certificate; none: the server's is publicly trusted.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("join.yaml"),
    force: Force = False,
) -> None:
    """Write the join file to send to every hospital. It contains no secret."""
    from sscxr import files

    files.refuse_existing(out, force=force)
    describe(recipe, overrides or [], name=name, superlink=superlink, ca=ca).write(out)
    typer.echo(out)


def describe(
    recipe: str | Path, overrides: list[str], *, name: str, superlink: str, ca: Path | None
) -> "Join":
    """Return what a site has to know of a federation that runs a recipe.

    Raises:
        ConfigError: invalid settings.
        OSError: the CA's file cannot be read.
    """
    from sscxr import config as configs
    from sscxr import stages
    from sscxr.config import ConfigError, yaml_text
    from sscxr.federation import approval, codecs, floors, lattice, wire
    from sscxr.federation.join import PROBE, Join, Payload, installed
    from sscxr.stages import memory

    config = stages.load_config(recipe, overrides)
    problem = floors.problem(config)
    if problem:
        raise ConfigError(problem)
    parts = stages.of(config).parts()
    shared = stages.of(config).shared(parts)
    federation = config.federation
    return Join(
        federation=name,
        superlink=superlink,
        ca=ca.read_text("utf-8", "replace") if ca else "",  # `Join.write` refuses what is not PEM
        versions=installed(),
        fingerprint=wire.fingerprint(configs.recipe_hash(config)),
        recipe=yaml_text.dump(approval.terms(config)),
        payload=Payload(
            up_mb=round(lattice.payload_bytes(config, shared) / 1e6, 3),
            down_mb=round(codecs.payload_bytes(federation.downlink, shared) / 1e6, 3),
        ),
        deadline_s=federation.deadline,
        # On a device that computes in fp32 unless the recipe says bf16.
        memory_gb=round(memory.of_round(config, parts, bf16=config.pretrain.amp == "bf16") / 1e9, 1),
        probe=PROBE,
        issued=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def run_status(
    run: RunName,
    as_json: AsJson = False,
) -> None:
    """Print the state of a run. Exit code: 0 finished, 3 running, 1 anything else."""
    from server import status
    from sscxr import runs

    out = runs.find(run)
    found = runs.read_status(out)
    typer.echo(json.dumps(asdict(found)) if as_json else f"{found.line()} ({found.updated})")
    for site, cosine in runs.against(runs.read_rounds(out / runs.ROUNDS)).items():
        typer.echo(f"warning: {runs.against_in_words(site, cosine)}", err=True)
    raise typer.Exit(status.EXIT_CODES.get(found.state, 1))


def watch(
    run: RunName,
    once: Annotated[bool, typer.Option("--once", help="Show its present state, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else: an object at each change.")
    ] = False,
) -> None:
    """Watch a run until it ends, from its folder alone. The exit code is that of run-status."""
    from server.watch import watch as watch_run
    from sscxr import runs

    raise typer.Exit(watch_run(runs.find(run), once=once, as_json=as_json))


def track(
    run: RunName,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write RUN/tensorboard.")] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Write RUN/mlflow; needs the extra `mlflow`.")
    ] = False,
) -> None:
    """Write a run's curves, by site, from its committed rounds. They replace earlier ones."""
    from functools import partial

    from server.tracking import Tracking, kinds_of
    from server.watch import committed
    from sscxr import runs

    if not (tensorboard or mlflow):
        raise click.UsageError("give --tensorboard, --mlflow or both")
    out = runs.find(run)
    runs.read_status(out)  # raises if the folder is not a run
    kinds = kinds_of(",".join(["tensorboard"] * tensorboard + ["mlflow"] * mlflow))
    if not committed(out)[0]:
        raise runs.RunError(f"{out}: no round is finished yet, so it has no curves")
    tracks = Tracking(kinds, out, out.resolve().name, partial(committed, out), strict=True)
    tracks.close()
    for kind in kinds:
        typer.echo(out / kind)


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    app.command(
        "join",
        epilog=examples(
            "sscxr join sscxr --name lungs --superlink fl.example.org:443 --ca ca.crt federation.deadline=3600"
        ),
    )(join)
    app.command("run-status", epilog=examples("sscxr run-status runs/mine", "sscxr run-status lungs --json"))(
        run_status
    )
    app.command(
        "watch",
        epilog=examples("sscxr watch runs/mine", "sscxr watch lungs", "sscxr watch lungs --once --json"),
    )(watch)
    app.command(
        "track", epilog=examples("sscxr track runs/mine --tensorboard", "sscxr track lungs --mlflow")
    )(track)
