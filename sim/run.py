"""`python -m sim.run --clients 8`: virtual sites on one machine, through the apps that hospitals run."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sim import engine
from sim.outcome import finish
from sim.progress import Show
from sim.sites import gather, write_config, write_sites
from sscxr import config as configs
from sscxr.config import ConfigError

_ENGINES = ("inline", "ray")


def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any setting; further paths after --data."),
    ] = None,
    clients: Annotated[int, typer.Option(help="Virtual sites.", min=1)] = 8,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH ...", help="Caches, manifests or folders; none: phantoms."),
    ] = None,
    config: Annotated[str, typer.Option(help="A shipped recipe by name, or a YAML file.")] = "demo",
    rounds: Annotated[int | None, typer.Option(help="federation.rounds")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="federation.local_epochs")] = None,
    partition: Annotated[str | None, typer.Option(help="natural, iid, dirichlet or quantity")] = None,
    engine_name: Annotated[
        str, typer.Option("--engine", help="inline, or ray: Flower's own engine")
    ] = "inline",
    seed: Annotated[int | None, typer.Option(help="run.seed")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/sim"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Federated GMML pretraining over virtual sites, from X-ray files to a released encoder."""
    short = {
        "federation.rounds": rounds,
        "federation.local_epochs": local_epochs,
        "sim.partition": partition,
        "run.seed": seed,
    }
    given = [f"{key}={value}" for key, value in short.items() if value is not None]
    if engine_name not in _ENGINES:
        raise ConfigError(f"--engine {engine_name!r} is not known; there are: {', '.join(_ENGINES)}")
    overrides, paths = _sorted_out(arguments or [], data or [])
    simulate(configs.load(config, [*overrides, *given]), clients, paths, out, engine_name, resume)


def _sorted_out(arguments: list[str], data: list[Path]) -> tuple[list[str], list[Path]]:
    """Settings and paths: a shell spreads `--data FOLDER/*` over several arguments, the option takes the first."""
    paths = [*data, *(Path(item) for item in arguments if data and "=" not in item)]
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--data {path}: no such cache, manifest or folder")
    overrides = [item for item in arguments if "=" in item or not data]
    return overrides, paths


def simulate(
    config: configs.Config, clients: int, data: list[Path], out: Path, engine_name: str, resume: bool
) -> None:
    """Prepare the data, cut it into sites, run the federation, probe and report."""
    # Imported here, not above: `--help` and a mistyped setting should not wait for torch and Flower.
    from client.app import app as client_app
    from server.app import app as server_app

    console = Console(stderr=True)
    if (out / "config.yaml").exists() and not resume:
        raise ConfigError(f"{out} holds a run already; give --resume to go on with it, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    cache = gather(data, out, config, clients)
    if not data and not config.probe.cohorts:
        # Each phantom hospital alone has too few cases to probe.
        config.probe.cohorts = {"phantoms": list(cache.summary["sources"])}
    config.federation.sites = write_sites(cache, out, config, clients)
    run_config = {
        "config": str(write_config(config, out).resolve()),
        "out": str(out.resolve()),
        "resume": resume,
    }
    with Show(config, console):
        if engine_name == "inline":
            files = sorted((out / "sites").glob("*/site.yaml"))
            engine.run_inline(server_app, client_app, files, run_config)
        else:
            engine.run_ray(server_app, client_app, out / "sites", clients, run_config, config.run.threads)
    finish(cache, config, out, Console())


def main() -> None:
    """The command line: one line on stderr and exit code 1 for what can go wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from sscxr.errors import SscxrError

    command = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    command.command()(run)
    try:
        command(standalone_mode=False)
    except SscxrError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
