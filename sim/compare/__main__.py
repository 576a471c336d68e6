"""`python -m sim.compare attribution`: simulations of several settings side by side, and which of them differ."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.typed import Data, check_there, sorted_out
from sscxr.commands import command_line
from sscxr.commands.command_line import examples
from sscxr.config import ConfigError
from sscxr.display import PlainConsole
from sscxr.errors import SscxrError

if TYPE_CHECKING:
    from sim.compare.file import Plan

PROGRAM = "python -m sim.compare"
_WIDTH = 140  # columns of the tables without a terminal


def run(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE.yaml", help="A shipped comparison, or a file.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Any setting, for every cell, or an entry of the file; further paths after --data.",
        ),
    ] = None,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="The comparison's folder; default: runs/compare/NAME.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time; default: cores / run.threads.", min=1)
    ] = None,
) -> None:
    """Run the cells of a comparison that are not finished, then write its table and report."""
    from sim.compare import file

    overrides, paths = sorted_out(arguments or [])
    if paths and not data:
        raise ConfigError(f"{paths[0]}: neither KEY=VALUE nor, without --data, a path of images")
    plan = file.read(name, overrides)
    out = out or Path("runs/compare") / plan.name
    sources = [*(data or []), *paths]
    check_there(sources, begun=(out / "data").exists())
    command = command_line.typed(PROGRAM, sys.argv[1:])
    failed = compare(plan, sources, out, jobs, command)
    if failed:
        raise SscxrError(
            f"{len(failed)} runs failed: {'; '.join(failed)}; the log.txt of each has the reason"
        )


def compare(plan: "Plan", data: list[Path], out: Path, workers: int | None, command: str) -> list[str]:
    """Run a comparison and write its results; return the titles of the runs that failed."""
    # Imported here: `--help` and a mistyped setting should not wait for torch.
    from sim import asked, pool
    from sim.compare import figures, jobs, measure, page, tables, worker
    from sim.compare.data import images_of
    from sim.compare.file import VALIDATION
    from sscxr import printable
    from sscxr.files import write_atomically

    with asked.locked(out):
        threads = plan.base.run.threads
        if not (out / "data").exists():
            pool.start_forking(worker.IMPORTS, threads)
        validation = plan.patients == VALIDATION
        cache = images_of(data, out, plan.base, plan.clients, validation=validation)
        if not data:  # each phantom hospital alone has too few cases to probe
            plan = plan.with_cohorts({"phantoms": list(cache.summary["sources"])})
        listed = jobs.listed(plan, cache, out)
        cores = len(os.sched_getaffinity(0))
        failed = jobs.run(listed, workers or max(1, cores // threads), threads)
        rows = measure.of(listed, cache)
        write_atomically(out / "compare.csv", printable.frame(rows, index=False).encode())
        found = figures.of(plan, listed, rows)
        write_atomically(out / "table.md", tables.markdown(plan, rows, found).encode())
        write_atomically(out / "report.html", page.render(plan, rows, found, command).encode())
    console = PlainConsole(width=None if sys.stdout.isatty() else _WIDTH)
    tables.show(plan, rows, found, console)
    for place in ("compare.csv", "table.md", "report.html"):
        console.print(str(out / place), soft_wrap=True)
    return list(failed)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command(
    epilog=examples(
        f"{PROGRAM} attribution --data cache",
        f"{PROGRAM} mine.yaml --data a/manifest.csv b/manifest.csv --out runs/mine --jobs 4",
        f"{PROGRAM} attribution --data cache epochs=2 seeds=[0] pretrain.lr=2e-3",
    )
)(run)


def _going_on(arguments: Sequence[str]) -> str:
    return f"finished work is saved. To continue: {command_line.typed(PROGRAM, arguments)}"


def main() -> None:
    """Run the command line."""
    command_line.main(app, PROGRAM, _going_on)


if __name__ == "__main__":
    main()
