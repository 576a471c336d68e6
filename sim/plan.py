"""`python -m sim.plan nih:/data/nih --clients 64 --out PLAN`: what each site would hold, without opening images.

Corpora are listed from their tables and divided into virtual sites as in a simulation; pass `PLAN/partition.csv`
to `python -m sim.run --partition`. Patients in two corpora whose identity only the pixels show are not joined
yet: they go whole to one site when the file is read.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from sim.typed import sorted_out
from sscxr import config as configs
from sscxr import files
from sscxr.commands import command_line
from sscxr.config import Config, ConfigError
from sscxr.data import corpora
from sscxr.data.cache.cache import LATERAL_VIEWS
from sscxr.data.corpora import Found
from sscxr.data.prepare import groups
from sscxr.display import PlainConsole

PROGRAM = "python -m sim.plan"


def index(found: Sequence[Found], *, train_on_test: bool = False) -> pd.DataFrame:
    """Return the index that a cache of these corpora would have, as far as their tables show.

    Args:
        found: the corpora, in the order they were listed.
        train_on_test: as in `prepare`.
    """
    parts = []
    for one in found:
        table = one.table
        part = table[["view", "sex", "age_band", "licence", "hospital", *one.labels]].copy()
        part["source"], part["public_id"], part["image"] = one.corpus.name, table["image"], table["image"]
        part["published"], part["to_test"] = table["split"], table["held_out"] & (not train_on_test)
        own = f"{one.corpus.name}/" + table["image"]
        part["group"] = table["patient_id"].where(table["patient_id"] != "", own)
        parts.append(part)
    whole = pd.concat(parts, ignore_index=True)
    codes, names = pd.factorize(whole["group"])
    places = np.array([float(groups.place(name)) for name in names])
    tested = np.zeros(len(names), dtype=bool)
    tested[codes[whole.pop("to_test").to_numpy(dtype=bool)]] = True
    whole["split"] = np.where(tested, places - 1, places)[codes]
    return whole


def plan(config: Config, data: Sequence[Path], clients: int, out: Path, *, absent: bool) -> list[str]:
    """Write `out/partition.csv`, `holdings.csv`, `holdings.png`, `notes.json`, and return lines to print.

    Raises:
        CorpusError, PartitionError: one line states what is wrong.
    """
    found = []
    for given in data:
        of_corpus = corpora.named(given)
        if of_corpus is None:
            raise ConfigError(f"{given}: a plan needs corpora (NAME:FOLDER); `sscxr corpora` lists them")
        found.append(corpora.find(*of_corpus, uncertain=config.sim.uncertain, absent=absent))
    from sim import sites  # imports torch, which `--help` and a mistyped corpus should not wait for
    from sim.partition import gathered, partition

    lines = [line for one in found for line in one.warnings]
    table = index(found, train_on_test=config.sim.train_on_test)
    if not config.data.laterals:
        table = table[~table["view"].isin(LATERAL_VIEWS)].reset_index(drop=True)
    held_out = table["split"].to_numpy() < config.data.test_share
    settings = config.sim
    cut = gathered(table, ~held_out, [one.corpus.name for one in found], by=settings.by, label=settings.label)
    parts = partition(
        cut,
        settings.partition,
        clients,
        alpha=settings.alpha,
        minimum=config.privacy.min_cell,
        seed=config.run.seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    lines += sites.describe(table, held_out, out, parts, [])
    count = f"{len(table):,} images of {len(cut.names):,} patients at {len(parts)} sites"
    return [*lines, f"{count}: {out / 'partition.csv'}, {out / 'holdings.png'}"]


def main(
    data: Annotated[list[str], typer.Argument(metavar="NAME:FOLDER... [KEY=VALUE]...")],
    clients: Annotated[int, typer.Option(help="Virtual sites.", min=1)] = 8,
    partition_name: Annotated[str | None, typer.Option("--partition", help="As in sim.run.")] = None,
    seed: Annotated[int | None, typer.Option(help="run.seed")] = None,
    out: Annotated[Path, typer.Option(help="The plan's folder.")] = Path("runs/plan"),
    absent: Annotated[
        bool, typer.Option("--absent", help="Deal images that are not downloaded yet, too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing plan.")] = False,
) -> None:
    """Divide public corpora into virtual sites from their tables alone, and show what each would hold."""
    files.refuse_file(out)
    if (out / "partition.csv").exists() and not force:
        raise ConfigError(f"{out} already has a plan; give --force to replace it, or another --out")
    overrides, paths = sorted_out(data)
    overrides += [configs.setting("sim.partition", partition_name)] if partition_name else []
    overrides += [f"run.seed={seed}"] if seed is not None else []
    config = configs.load("default", overrides)
    console = PlainConsole(width=None if sys.stdout.isatty() else 120)
    for line in plan(config, paths, clients, out, absent=absent):
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(
        epilog=command_line.examples(
            f"{PROGRAM} nih:/data/nih chexpert:/data/chexpert --clients 64 --partition natural-dirichlet",
            f"{PROGRAM} padchest:/data/padchest --absent --partition natural sim.by=hospital",
        )
    )(main)
    command_line.main(
        app, PROGRAM, lambda arguments: f"to start again: {command_line.typed(PROGRAM, arguments)}"
    )
