"""The report of a comparison: one page that opens from disk and loads nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from server.ledger import differing
from sim.compare import tables
from sim.compare.figures import Figure
from sim.compare.file import Cell, Plan
from sim.compare.measure import ALL_SITES, HELD_OUT, TRAINING
from sscxr import config as configs
from sscxr.evaluation.metrics import Interval
from sscxr.report import charts, svg
from sscxr.report.charts import Chart, Estimate
from sscxr.report.compare import short
from sscxr.report.page import template

# Settings that differ because others do, or that name a run.
_FOLLOW = {"run.name", "federation.evaluate_every"}


def render(plan: Plan, rows: pd.DataFrame, figures: Sequence[Figure], command: str) -> str:
    """Return the page as HTML; the same arguments give the same bytes.

    Args:
        command: what a person types to get the same comparison.
    """
    return template("cells.html").render(
        title=plan.title,
        answers=[("Which is best?", tables.verdicts(figures))],
        notes=tables.warnings(plan, rows),
        losses=_curves(plan, rows),
        figures=_intervals(plan, figures),
        sheets=tables.sheets(plan, rows, figures),
        explained=tables.notes(plan),
        by_site=tables.by_site(rows),
        settings=_settings(plan.cells),
        command=command,
    )


def _curves(plan: Plan, rows: pd.DataFrame) -> list[Chart]:
    names = [cell.name for cell in plan.cells]
    held_out, training = (_lines(names, rows, name) for name in (HELD_OUT, TRAINING))
    several = "; the band spans the seeds" if len(plan.seeds) > 1 else ""
    note = (
        f"Means{several}. Each site's images are corrupted by its own: cells of other sites, or of one place, are "
        f"compared by the {ALL_SITES} alone."
    )
    found = []
    for heading, lines in (("Held-out loss", held_out), ("Training loss", training)):
        if lines:
            views = {name: (x / 1e3, y) for name, (x, _, y) in lines.items()}
            found.append(Chart(heading, _draw(names, views, heading, "thousand image views"), note))
    sent = {name: (sent / 1e6, y) for name, (_, sent, y) in held_out.items() if sent.all()}
    if sent:
        silent = [name for name in held_out if name not in sent]
        note = f"Nothing is sent in {', '.join(silent)}." if silent else ""
        heading = "Held-out loss by traffic"
        drawn = _draw(names, sent, heading, "MB to and from all sites", log=True)
        found.insert(1, Chart(heading, drawn, note))
    return found


Floats = npt.NDArray[np.float64]


def _lines(names: Sequence[str], rows: pd.DataFrame, figure: str) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Return cell -> views [P] and bytes [P], means over seeds; values [S, P]."""
    found: dict[str, tuple[Floats, Floats, Floats]] = {}
    for name in names:
        seeds = rows[(rows["cell"] == name) & (rows["figure"] == figure) & (rows["site"] == "")].groupby(
            "seed"
        )
        if not len(seeds):
            continue
        points = seeds.size().min()
        views, sent, values = (
            np.stack([line[axis].to_numpy(float)[:points] for _, line in seeds])
            for axis in ("views", "bytes", "value")
        )
        found[name] = views.mean(axis=0), sent.mean(axis=0), values
    return found


def _draw(
    names: Sequence[str],
    lines: Mapping[str, tuple[Floats, Floats]],
    heading: str,
    x_label: str,
    *,
    log: bool = False,
) -> str:
    """Draw each cell's mean over seeds, and a band from the least to the largest seed."""

    def paint(figure: Any, axes: Any) -> dict[str, str]:
        texts = {}
        for number, name in enumerate(names):  # a cell has the same look in all charts
            if name not in lines:
                continue
            x, values = lines[name]
            look = svg.style(number) | {"label": svg.shorten(name), "linewidth": 1.4, "markersize": 4}
            (drawn,) = axes.plot(x, values.mean(axis=0), **look)
            texts[svg.hover(drawn, number)] = name
            if len(values) > 1:
                ends = values.min(axis=0), values.max(axis=0)
                axes.fill_between(x, *ends, color=look["color"], alpha=0.15, linewidth=0)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x_label)
        axes.set_ylabel("loss")
        axes.grid(axis="y", color=svg.SOFT, alpha=0.3, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return texts

    ends = [f"{name} to {values[:, -1].mean():.3g}" for name, (_, values) in lines.items()]
    alt = f"{heading}, by {x_label}: {'; '.join(ends)}"
    return svg.draw(paint, alt=alt, height=2.8 + 0.21 * -(-len(lines) // 2))


def _intervals(plan: Plan, figures: Sequence[Figure]) -> list[Chart]:
    """Return a chart of each figure's differences to the reference; of its values without a reference."""
    found = []
    for figure in figures:
        zero: float | None = 0.0
        shown, axis, note = figure.differences, "difference", f"Differences to {plan.reference}."
        if not shown:
            shown, zero, axis, note = figure.cells, None, figure.name, ""
        estimates = [Estimate(name, {"mean over seeds": _triple(one)}) for name, one in shown.items()]
        better = "more is better" if figure.rising else "less is better"
        heading = figure.title
        found.append(Chart(heading, charts.intervals(estimates, heading, f"{axis} ({better})", zero), note))
    return found


def _triple(found: Interval) -> tuple[float, float, float]:
    if not np.isfinite(found.low):
        return found.value, found.value, found.value
    return found.value, found.low, found.high


def _settings(cells: Sequence[Cell]) -> tables.Sheet:
    """Return a table of what differs between the cells."""
    trees = [configs.as_dict(cell.config) | {"clients": cell.clients, "kind": cell.kind} for cell in cells]
    keys = {key for tree in trees[1:] for key in differing(trees[0], tree)} - _FOLLOW
    rows = [[key, *(short(_value(tree, key)) for tree in trees)] for key in sorted(keys)]
    return tables.Sheet("Settings that differ", ["setting", *(cell.name for cell in cells)], rows)


def _value(tree: Mapping[str, Any], key: str) -> Any:
    found: Any = tree
    for name in key.split("."):
        found = found.get(name, tables.NONE)
    return found
