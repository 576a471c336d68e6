"""The tables of a comparison, as rows of text: for the terminal, for Markdown and for the report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from sim.compare import measure
from sim.compare.figures import Figure, last
from sim.compare.file import Plan
from sscxr.evaluation.metrics import Interval

NONE = "–"
_NEAR = 0.02  # share by which image views may differ without a note


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: above it.
        headings: of the columns; the first column names the rows.
        rows: their cells.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def sheets(plan: Plan, rows: pd.DataFrame, figures: Sequence[Figure]) -> list[Sheet]:
    """Return the cells' figures, and their differences to the reference."""
    names = [cell.name for cell in plan.cells if (rows["cell"] == cell.name).any()]
    columns = [figure.title for figure in figures]
    spent = [_spent(rows, name) for name in names]
    found = [
        [name, *cost, *(_shown(figure, name, plain=True) for figure in figures)]
        for name, cost in zip(names, spent, strict=True)
    ]
    first = Sheet(
        f"{plan.title}: {_seeds(plan)} [95 % interval]",
        ["cell", "views", "MB", *columns],
        found,
    )
    others = [name for name in names if name != plan.reference]
    gaps = [[name, *(_shown(figure, name, plain=False) for figure in figures)] for name in others]
    second = Sheet(f"Differences to {plan.reference} [95 % interval, paired]", ["cell", *columns], gaps)
    return [first, second] if gaps and any(figure.differences for figure in figures) else [first]


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """Return a sentence for each figure: the best cell, and those that are not told apart from it."""
    lines = []
    for figure in figures:
        if len(figure.cells) < 2:
            continue
        line = f"{figure.title}: the best is {figure.best}"
        if all(math.isnan(found.low) for found in figure.cells.values()):
            line += ", of one seed and so without an interval"
        elif len(figure.alike) + 1 == len(figure.cells):
            line += "; no other cell is told apart from it"
        elif figure.alike:
            line += f"; not told apart from it: {', '.join(figure.alike)}"
        else:
            line += ", beyond the interval of every other cell's difference"
        lines.append(f"{line}.")
    return lines


def notes(plan: Plan) -> list[str]:
    """Return sentences on how the figures were made."""
    several = len(plan.seeds) > 1
    return [
        f"Figures are of {plan.patients} patients, who were never trained on. AUROCs: percentiles of "
        f"{plan.resamples:,} resamples of patients{' and seeds' if several else ''}, the same ones for both cells "
        "of a difference.",
        "Losses: means over images; "
        + (
            "Student's t interval over seeds, paired by seed in a difference."
            if several
            else "with one seed there is no interval."
        ),
        f"The {measure.ALL_SITES} is of the same images under the same corruption for all cells. The sites' own "
        "held-out losses are given for cells with the same sites: each site's images are corrupted by its own.",
        "Each interval is of one comparison; among many, some exclude 0 by chance.",
    ]


def warnings(plan: Plan, rows: pd.DataFrame) -> list[str]:
    """Return sentences on cells that saw other numbers of images than the budget has, and on missing runs."""
    lines = []
    for cell in plan.cells:
        missing = sorted(set(plan.seeds) - set(_whole(rows, cell.name)["seed"]))
        if missing:
            lines.append(
                f"{cell.name}: without seed {', '.join(map(str, missing))}, which failed or is not finished."
            )
    views = {cell.name: _views(rows, cell.name) for cell in plan.cells if cell.epochs == plan.epochs}
    least = min((count for count in views.values() if count), default=0)
    for name, count in views.items():
        if count > (1 + _NEAR) * least:
            lines.append(
                f"{name} has {count:,.0f} image views, others {least:,.0f}, at the same epochs: a site has at "
                "least one step in a round, which may be more than federation.local_epochs of its images."
            )
    return lines


def by_site(rows: pd.DataFrame) -> Sheet:
    """Return the last figures of each site, means over seeds."""
    mine = rows[(rows["site"] != "") & ~rows["figure"].isin([measure.UP, measure.DOWN])]
    names = [
        ", ".join(filter(None, parts))
        for parts in zip(mine["figure"], mine["label"], mine["cohort"], strict=True)
    ]
    ends = mine.assign(name=names).drop_duplicates(["cell", "site", "name", "seed"], keep="last")
    means = ends.pivot_table("value", ["cell", "site"], "name", sort=False)
    columns = [str(name) for name in means.columns]
    body = [
        [
            f"{cell}: {site}",
            *(
                NONE if math.isnan(one) else f"{one:{_digits(name)}}"
                for name, one in zip(columns, found, strict=True)
            ),
        ]
        for (cell, site), found in zip(means.index.tolist(), means.to_numpy(dtype=np.float64), strict=True)
    ]
    return Sheet("Figures of each site, means over seeds", ["cell and site", *columns], body)


def _digits(name: str) -> str:
    return ".4f" if "loss" in name else ".3f"


def markdown(plan: Plan, rows: pd.DataFrame, figures: Sequence[Figure]) -> str:
    """Return the tables and sentences as Markdown."""
    parts = []
    for sheet in sheets(plan, rows, figures):
        lines = [[_escaped(cell) for cell in row] for row in (sheet.headings, *sheet.rows)]
        rule = "|---" * len(sheet.headings) + "|"
        body = [f"| {' | '.join(line)} |" for line in lines]
        parts.append("\n".join([f"{_escaped(sheet.title)}", "", body[0], rule, *body[1:]]))
    parts += [*verdicts(figures), *warnings(plan, rows), *notes(plan)]
    return "\n\n".join(parts) + "\n"


def show(plan: Plan, rows: pd.DataFrame, figures: Sequence[Figure], console: Console) -> None:
    """Print every figure of every cell in a row of its own, which fits any window, and the sentences."""
    table = Table(title=f"{plan.title}: {_seeds(plan)} [95 % interval]")
    words = ("figure", "cell", "")
    for heading in ("figure", "cell", "value", f"difference to {plan.reference}", ""):
        table.add_column(heading, justify="left" if heading in words else "right", overflow="fold")
    for figure in figures:
        for number, cell in enumerate(figure.cells):
            title = "" if number else figure.title
            gap = "" if cell == plan.reference else _shown(figure, cell, plain=False)
            table.add_row(title, cell, _shown(figure, cell, plain=True), gap, figure.verdict(cell))
        table.add_section()
    console.print(table)
    for line in (*verdicts(figures), *warnings(plan, rows), *notes(plan)):
        console.print(line)


def interval(found: Interval, form: str) -> str:
    """Return a value with its interval, if it has one."""
    if not math.isfinite(found.value):
        return NONE
    ends = f" [{found.low:{form}}, {found.high:{form}}]" if math.isfinite(found.low) else ""
    return f"{found.value:{form}}{ends}"


def _shown(figure: Figure, cell: str, *, plain: bool) -> str:
    found = (figure.cells if plain else figure.differences).get(cell)
    digits = _digits(figure.name)
    return NONE if found is None else interval(found, digits if plain else f"+{digits}")


def _spent(rows: pd.DataFrame, cell: str) -> list[str]:
    """Return the views and the megabytes of a cell's run, means over seeds."""
    up, down = (last(rows, name).get(cell, {}) for name in (measure.UP, measure.DOWN))
    sent = (sum(up.values()) + sum(down.values())) / max(1, len(up))
    return [f"{_views(rows, cell):,.0f}", f"{sent / 1e6:,.1f}"]


def _views(rows: pd.DataFrame, cell: str) -> float:
    """Return the image views of a cell's run, the mean over seeds."""
    ends = _whole(rows, cell).groupby("seed")["views"].max()
    return float(ends.mean()) if len(ends) else 0.0


def _whole(rows: pd.DataFrame, cell: str) -> pd.DataFrame:
    """Return a cell's figures over all sites."""
    return rows[(rows["cell"] == cell) & (rows["site"] == "")]


def _seeds(plan: Plan) -> str:
    return f"means over {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else f"seed {plan.seeds[0]}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
