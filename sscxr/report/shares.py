"""Charts of each site's images, as reported: bars of shares by view, age and sex, and grey levels.

A site does not report counts below the minimum cell, nor counts that would reveal one. So its total is often
unknown too, and a share can only be bounded, by the largest number of images that is known for the site.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sscxr.federation.wire import COUNT_TABLES, GREY, GREY_CELLS
from sscxr.report import svg
from sscxr.report.charts import Chart, Line, curves
from sscxr.report.record import Record
from sscxr.runs import natural

AT_MOST = "≤ "  # before the name of a site whose total is unknown

_TABLES = {"view": "Views", "age": "Ages", "sex": "Sexes"}


def charts(record: Record) -> list[Chart]:
    """Return a chart for each table that any site reported, and one of grey levels."""
    reported = {
        site: tables
        for site, tables in sorted(record.counts.items(), key=lambda item: natural(item[0]))
        if set(tables) - {GREY}
    }
    found = [
        _bars({site: tables.get(table, {}) for site, tables in reported.items()}, table, heading, record)
        for table, heading in _TABLES.items()
        if any(tables.get(table) for tables in reported.values())
    ]
    return [*found, *_grey_levels(record)]


def total(record: Record, site: str) -> tuple[int, bool]:
    """Return a site's number of images, and whether it is exact; else the largest known number, at least 1."""
    tables = {name: cells for name, cells in record.counts[site].items() if name != GREY}
    whole = tables.get("images", {})
    if set(whole) == set(COUNT_TABLES["images"]):
        return sum(whole.values()), True
    trained = record.folded.loc[record.folded["site"] == site, "images"].max()
    known = [sum(cells.values()) for cells in tables.values()]
    return max([1, *known, *([int(trained)] if np.isfinite(trained) else [])]), False


def _bars(reported: Mapping[str, Mapping[str, int]], table: str, heading: str, record: Record) -> Chart:
    """Return stacked bars, one per site: the cells' shares of its images."""
    cells = [cell for cell in COUNT_TABLES[table] if any(cell in counts for counts in reported.values())]
    sites = list(reported)
    totals = {site: total(record, site) for site in sites}
    bounded = {site for site in sites if reported[site] and not totals[site][1]}
    names = [(AT_MOST if site in bounded else "") + svg.shorten(site, 22) for site in sites]

    def paint(figure: Any, axes: Any) -> None:
        left = np.zeros(len(sites))
        for number, cell in enumerate(cells):
            width = np.array([100 * reported[site].get(cell, 0) / totals[site][0] for site in sites])
            axes.barh(
                range(len(sites)), width, left=left, label=cell, color=svg.COLOURS[number % len(svg.COLOURS)],
                hatch=svg.HATCHES[number % len(svg.HATCHES)], edgecolor=svg.PAGE, linewidth=0.6, height=0.74,
            )  # fmt: skip
            left += width
        axes.set_yticks(range(len(sites)), names, fontsize=8)
        axes.set_ylim(len(sites) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the images (%)")
        axes.set_ylabel("site")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)

    legend_rows = -(-len(cells) // 3)
    alt = f"{heading}: shares of each of {len(sites)} sites' images; the table of counts has the figures"
    drawn = svg.draw(paint, alt=alt, height=1.0 + 0.17 * max(3, len(sites)) + 0.21 * legend_rows)
    note = f"Blank: not reported, since a count is below {record.min_cell} or would reveal one."
    if bounded:
        note += f" {AT_MOST.strip()}: the site's total is not reported either; its shares are at most these."
    return Chart(heading, drawn, note)


def _grey_levels(record: Record) -> list[Chart]:
    middles = [sum(map(int, name.split("-"))) / 2 for name in GREY_CELLS]
    lines = [
        # A bin that the site did not report is a gap.
        Line(site, middles, [float(tables[GREY].get(name, np.nan)) for name in GREY_CELLS])
        for site, tables in sorted(record.counts.items(), key=lambda item: natural(item[0]))
        if tables.get(GREY)
    ]
    if not lines:
        return []
    heading = "Grey levels"
    label = "grey level (0 black to 255 white)"
    drawn = curves(lines, heading, "share of the pixels (%)", x_label=label, whole=False)
    note = "Of the images as they are in the cache, in steps of 16 levels and whole per cent; a gap: not reported."
    return [Chart(heading, drawn, note)]
