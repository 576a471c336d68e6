"""`python -m sim.run --clients 8`: virtual sites on one machine, through the apps that hospitals run."""

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.tracking import kinds_of
from sim.typed import Data, check_there, sorted_out
from sscxr import config as configs
from sscxr import printable
from sscxr.commands import command_line
from sscxr.commands.command_line import examples
from sscxr.config import ConfigError
from sscxr.runs import CONFIG

if TYPE_CHECKING:
    from sim.choice import Choice
    from sscxr.data.cache.cache import Cache

PROGRAM = "python -m sim.run"
ENGINES = ("auto", "pool", "inline", "ray")
ALONE = ("auto", "all", "some", "none")
_MANY = 10**5  # images, until it is known how many of the given files can be used
_WIDTH = 120  # columns of the tables without a terminal
Measure = Callable[["Cache", configs.Config, Path], None]


def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any setting; further paths after --data."),
    ] = None,
    clients: Annotated[int, typer.Option(help="Virtual sites.", min=1)] = 8,
    data: Data = None,
    config: Annotated[str, typer.Option(help="A shipped recipe by name, or a YAML file.")] = "demo",
    rounds: Annotated[int | None, typer.Option(help="federation.rounds")] = None,
    local_epochs: Annotated[float | None, typer.Option(help="federation.local_epochs")] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.csv",
            help="natural, iid, dirichlet, quantity, natural-dirichlet, or the partition.csv of an earlier run.",
        ),
    ] = None,
    engine_name: Annotated[
        str,
        typer.Option(
            "--engine",
            help="auto: all cores or GPUs where it pays; pool: processes; inline: this one; ray: Flower's own.",
        ),
    ] = "auto",
    alone: Annotated[
        str,
        typer.Option(
            metavar="auto|all|some|none",
            help="Sites to train alone too, to compare; auto: three of a short pretraining, all in fine-tuning.",
        ),
    ] = "auto",
    stage: Annotated[str | None, typer.Option(help="run.stage: pretrain, classify or segment")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="URL|DIR", help="A released encoder to start from, or a run's `encoder` folder."
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME...]", help="classify.labels: the labels to learn.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="run.seed")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/sim"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves to OUT/tensorboard too.")
    ] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="Write curves to OUT/mlflow too; needs the extra `mlflow`.")
    ] = False,
) -> None:
    """Federated pretraining over virtual sites, from X-ray files to a released encoder; or its fine-tuning."""
    file = partition if partition and partition.endswith(".csv") else None
    short = {
        "federation.rounds": rounds,
        "federation.local_epochs": local_epochs,
        "sim.partition": "file" if file else partition,
        "sim.file": file and str(Path(file).resolve()),
        "run.seed": seed,
        "run.stage": stage,
        "encoder.start": encoder and _located(encoder),
        "classify.labels": label and [name.strip() for name in label.split(",")],
    }
    given = [configs.setting(key, value) for key, value in short.items() if value is not None]
    if engine_name not in ENGINES:
        raise ConfigError(f"--engine {engine_name!r} is not known; choose one of: {', '.join(ENGINES)}")
    if alone not in ALONE:
        raise ConfigError(f"--alone {alone!r} is not known; choose one of: {', '.join(ALONE)}")
    overrides, paths = _sorted_out(arguments or [], data or [], begun=resume and (out / CONFIG).exists())
    settings = _settings(config, [*overrides, *given])
    if label and "classify" not in settings.recipe_sections:
        raise ConfigError(f"--label {label}: the stage is {settings.run.stage}; use --stage classify")
    kinds = ["tensorboard"] * tensorboard + ["mlflow"] * mlflow
    tracking = ",".join(kinds_of(",".join(kinds)))
    simulate(settings, clients, paths, out, engine_name, resume, tracking, alone_too=alone)


def _located(encoder: str) -> Path:
    from sscxr.release import fetch

    return fetch.located(encoder).resolve()


def _settings(config: str, overrides: list[str]) -> configs.Config:
    settings = configs.load(config, overrides)
    if settings.pretrains:
        return settings
    from sscxr import stages  # torch takes seconds to import; mistyped settings are reported before

    return stages.load_config(config, overrides)


def _sorted_out(arguments: list[str], data: list[Path], *, begun: bool) -> tuple[list[str], list[Path]]:
    """Separate settings and paths; those of a run that has `begun`, with its own copy, may be missing."""
    if not data:
        return arguments, []
    overrides, more = sorted_out(arguments)
    paths = [*data, *more]
    check_there(paths, begun=begun)
    return overrides, paths


def simulate(
    config: configs.Config,
    clients: int,
    data: list[Path],
    out: Path,
    engine_name: str,
    resume: bool,
    tracking: str = "",
    measure: Measure | None = None,
    alone_too: str = "none",
) -> None:
    """Prepare the data, divide it into sites, run the federation, train sites alone, probe and report.

    Args:
        alone_too: see `alone.chosen`.
        measure: called with the data, the settings and `out` in place of pictures, probes, release and report.
    """
    # Imported here and below, not above: `--help` and a mistyped setting should not wait for torch and Flower.
    from sim import asked

    if asked.is_started(out) and not resume:
        raise ConfigError(f"{out} already has a run; give --resume to continue it, or another --out")
    with asked.locked(out):
        asked.agree(out, config, clients, data)
        if asked.is_finished(out):
            typer.echo(f"the run in {out} is finished; nothing to do", err=True)
            return
        _simulate(config, clients, data, out, engine_name, resume, tracking, measure, alone_too)


def _simulate(
    config: configs.Config,
    clients: int,
    data: list[Path],
    out: Path,
    engine_name: str,
    resume: bool,
    tracking: str,
    measure: Measure | None,
    alone_too: str,
) -> None:
    from server.ledger import may_change
    from sim import findings, pictures
    from sim.data import gather, size
    from sim.outcome import finish
    from sim.progress import Show
    from sim.sites import check_labelled, write_config, write_sites
    from sscxr.display import PlainConsole

    images = size(data, out, config)
    engine = _engine(engine_name, config, clients, images, out)
    cache = gather(data, out, config, clients)
    if images is None:
        engine = _engine(engine_name, config, clients, len(cache), out)
    for line in findings.printed(cache):
        typer.echo(line, err=True)
    check_labelled(cache, config)
    if not data and not config.probe.cohorts:
        # Each phantom hospital alone has too few cases to probe.
        config.probe.cohorts = {"phantoms": list(cache.summary["sources"])}
    config.federation.sites = write_sites(cache, out, config, clients, pictured=measure is None)
    files = [out / "sites" / name / "site.yaml" for name in config.federation.sites]
    run_config = {
        "config": str(write_config(config, out).resolve()),
        "overrides": shlex.join(may_change(config)),
        "out": str(out.resolve()),
        "resume": str(out.resolve()) if resume else "",
        "tracking": tracking,
        "releases": False,  # `finish` does, once, when it has measured the encoder
    }
    if engine.line:
        typer.echo(engine.line, err=True)
    with Show(config, engine.at_once):
        if measure is None:
            pictures.follow(cache, config, out)
        _run_rounds(engine, config, files, run_config)
    if measure is not None:
        measure(cache, config, out)
        return
    names = _train_alone(alone_too, engine, cache, config, out)
    width = None if sys.stdout.isatty() else _WIDTH
    finish(cache, config, out, names, PlainConsole(width=width, highlight=True))


def _engine(name: str, config: configs.Config, clients: int, images: int | None, out: Path) -> "Choice":
    """Choose the engine, and start what a pool's processes are forked from: their imports take seconds.

    Args:
        images: None: not known yet.
    """
    from sim import alone, choice, engine, pool
    from sscxr import runs

    done = runs.read_status(out).round if (out / runs.STATUS).is_file() else 0
    chosen = choice.choose(name, config, clients, _MANY if images is None else images, done)
    if chosen.name == choice.POOL:
        pool.start_forking([*engine.IMPORTS, *alone.IMPORTS], config.run.threads)
    return chosen


def _run_rounds(
    chosen: "Choice", config: configs.Config, files: list[Path], run_config: dict[str, Any]
) -> None:
    import client.app
    from server.app import app as server_app
    from sim import choice, engine

    threads = config.run.threads
    if chosen.name == choice.INLINE:
        engine.run_inline(server_app, client.app.app, files, run_config)
    elif chosen.name == choice.POOL:
        engine.run_pool(server_app, files, run_config, processes=chosen.at_once, threads=threads)
    else:
        from sim import rays

        here, gpus = str(client.app.__file__), choice.gpus_of(config)
        rays.run_ray(server_app, here, files, run_config, threads=threads, gpus=gpus)


def _train_alone(
    which: str, engine: "Choice", cache: "Cache", config: configs.Config, out: Path
) -> list[str]:
    """Train sites alone, too, and return which."""
    from sim import alone

    names, line = alone.chosen(which, config, cache, out, config.federation.sites)
    if line:
        typer.echo(line, err=True)
    alone.train(out, config, names, engine)
    return names


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(
    epilog=examples(
        f"{PROGRAM} --clients 8",
        f"{PROGRAM} --clients 8 --data cache --config demo --out runs/mine",
        f"{PROGRAM} --data a/manifest.csv b/manifest.csv --partition natural --rounds 20 pretrain.lr=5e-4",
        f"{PROGRAM} --clients 8 --data cache --alone all --out runs/mine",
        f"{PROGRAM} --clients 8 --out runs/mine --resume --tensorboard",
        f"{PROGRAM} --stage classify --label pneumonia --encoder runs/mine/encoder --data cache",
    )
)(run)


def _going_on(arguments: Sequence[str]) -> str:
    more = [] if "--resume" in arguments else ["--resume"]
    return f"finished work is saved. To continue: {command_line.typed(PROGRAM, [*arguments, *more])}"


class _Handler(logging.Handler):
    """Writes to the present stderr, which a display may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def main() -> None:
    """Run the command line."""
    handler = _Handler()
    handler.setFormatter(printable.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("sscxr.server").setLevel(
        logging.CRITICAL
    )  # the outcome of a run is printed here anyway
    command_line.main(app, PROGRAM, _going_on)


if __name__ == "__main__":
    main()
