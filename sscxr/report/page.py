"""One run on one page: `OUT/report.html`, for a run in any state."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from sscxr.files import write_atomically
from sscxr.report import charts, pictures, shares, summary, tables
from sscxr.report.record import Record, read

NAME = "report.html"


def write(out: str | Path, *, page: Path | None = None, **known: Any) -> Path:
    """Write the report of the run in a folder, as it stands; the page appears whole or not at all.

    Args:
        out: the run's folder.
        page: the file; None: `report.html` in the run's folder.
        known: fields of `Record` that are known before they are on disk: probes, few, scores, status.

    Raises:
        RunError: no run has started there, or one of its files cannot be read.
        OSError: the page cannot be written.
    """
    out = Path(out)
    page = page or out / NAME
    write_atomically(page, render(read(out, **known)).encode())
    return page


def render(record: Record) -> str:
    """Return the page as HTML; the same record gives the same bytes."""
    troubles = tables.troubles(record)
    columns, counts = tables.aggregates(record)
    return template("report.html").render(
        title=record.title,
        state=record.status.state,
        kind=record.words.kind,
        updated=summary.moment(record.status.updated),
        ended=summary.ended(record),
        tiles=summary.tiles(record),
        answers=summary.answers(record),
        notes=list(record.notes),
        meaning=record.words.meaning,
        score=record.words.score,
        losses=charts.losses(record),
        probes=tables.probes(record),
        probe_charts=charts.probes(record),
        few=tables.few(record),
        scores=tables.scores(record),
        score_charts=charts.scores(record),
        sites=tables.sites(record),
        private=bool(record.costs),
        rounds=tables.rounds(record),
        troubles=troubles[: tables.LISTED],
        more_troubles=max(0, len(troubles) - tables.LISTED),
        shares=shares.charts(record),
        count_columns=columns,
        counts=counts,
        holdings=record.holdings and pictures.address(record.holdings),
        strips=record.strips,
        pictured=record.words.pictures,
        maps=charts.embedding(record),
        min_cell=record.min_cell,
    )


@cache
def template(name: str) -> jinja2.Template:
    """Return a page's template, which escapes every text."""
    folder = resources.files("sscxr.report") / "templates"
    loader = jinja2.FunctionLoader(lambda file: (folder / file).read_text(encoding="utf-8"))
    found = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return found.get_template(name)
