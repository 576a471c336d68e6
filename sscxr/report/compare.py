"""Several runs on one page: which settings differ, and how the results differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sscxr.files import write_atomically
from sscxr.release import card
from sscxr.report import charts
from sscxr.report.charts import Chart, Estimate, Line
from sscxr.report.page import template
from sscxr.report.record import FOLDED, Record, read
from sscxr.report.summary import held_out, many, mean_loss, total_images

# Settings that name a run and do not change what it does.
_UNLIKE = ("run.name",)
# Losses of pretraining are not comparable if these settings differ, or the section of the method.
_MEASURE = ("data.", "encoder.img_size", "pretrain.objective")
_PROBED = "AUROC of classifiers on frozen features of patients that were set aside; 0.5 is chance."
_SCORED = (
    "Each run's model on patients that each site set aside. AUROC: 0.5 is chance. Dice: 1 is the drawn mask."
)
_APART = "Two intervals that overlap may still differ: each run was measured separately."
_LONGEST = 60  # letters of a setting's value


def write(folders: Sequence[str | Path], page: str | Path) -> Path:
    """Compare the runs in some folders on one page, which appears whole or not at all.

    Raises:
        RunError: no run has started in a folder, or one of its files cannot be read.
        OSError: the page cannot be written.
    """
    records = [read(Path(folder)) for folder in folders]
    page = Path(page)
    write_atomically(page, render(records, _names(records, folders)).encode())
    return page


def render(records: Sequence[Record], names: Sequence[str]) -> str:
    """Return the page as HTML; `names` are those of the runs."""
    stages = {record.stage for record in records}
    words = records[0].words
    estimates = _estimates(records, names)
    settings = _settings(records)
    pretraining = stages == {"pretrain"}
    return template("comparison.html").render(
        title=f"{many(len(records), 'run')} compared",
        answers=_answers(records, names),
        notes=_notes(records, settings),
        names=names,
        runs=[_row(record, name) for record, name in zip(records, names, strict=True)],
        meaning=words.meaning,
        losses=_losses(records, names, words.axis) if len(stages) == 1 else [],
        figures=[{"label": row.label, "cells": [_shown(row, name) for name in names]} for row in estimates],
        figures_heading="Probes" if pretraining else "Each site's held-out patients",
        figures_meaning=f"{_PROBED if pretraining else _SCORED} {_APART}",
        figure_charts=_figure_charts(estimates, pretraining),
        settings=settings,
    )


def _names(records: Sequence[Record], folders: Sequence[str | Path]) -> list[str]:
    """Return the runs' names; if two are alike, the names of their folders."""
    titles = [record.title for record in records]
    if len(set(titles)) == len(titles):
        return titles
    ends = [Path(folder).resolve().name for folder in folders]
    return ends if len(set(ends)) == len(ends) else [str(folder) for folder in folders]


def _answers(records: Sequence[Record], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    lines = []
    for record, name in zip(records, names, strict=True):
        losses = held_out(record.rounds)
        kind = "held-out images"
        if losses.empty:
            losses, kind = mean_loss(record.folded), "the sites' own images"
        folded = record.folded
        who = f"{name}: {many(folded['site'].nunique(), 'site')}, {many(folded['round'].nunique(), 'round')}"
        if len(losses):
            who += f", {record.words.loss} on {kind} {losses.iloc[0]:.3f} → {losses.iloc[-1]:.3f}"
        if record.probes:
            better = sum(pair.better for pair in record.probes)
            who += f", better than untrained in {better} of {many(len(record.probes), 'probe')}"
        measured = [score for score in record.by_site if score.gap and score.gap["low"] is not None]
        if measured:
            better = sum(score.better for score in measured)
            who += f", better than a site alone at {better} of {many(len(measured), 'site')}"
        lines.append(f"{who} ({record.status.state}).")
    return [("What did each achieve?", lines)]


def _notes(records: Sequence[Record], settings: Sequence[dict[str, Any]]) -> list[str]:
    stages = {record.stage for record in records}
    if len(stages) > 1:
        return [
            f"The runs belong to different stages ({', '.join(sorted(stages))}): their losses are not comparable."
        ]
    methods = {f"{record.settings.get('pretrain.objective')}." for record in records}
    changed = [row["key"] for row in settings if row["key"].startswith((*_MEASURE, *methods))]
    if changed:
        return [f"Losses are not comparable where these settings differ: {', '.join(changed)}."]
    return []


def _row(record: Record, name: str) -> dict[str, str]:
    folded, measured, mean = record.folded, held_out(record.rounds), mean_loss(record.folded)
    seconds = sum(row.get("seconds") or 0 for row in record.rounds)
    up = sum(row.get("bytes_up") or 0 for row in record.rounds)
    done = len({row["round"] for row in record.rounds})
    return {
        "name": name,
        "stage": record.stage,
        "state": record.status.state,
        "sites": str(folded["site"].nunique()),
        "images": total_images(record) or "–",
        "rounds": f"{done} of {record.status.rounds or '?'}",
        "loss": f"{mean.iloc[-1]:.3f}" if len(mean) else "–",
        "held_out": f"{measured.iloc[-1]:.3f}" if len(measured) else "–",
        "missed": str(int((record.sites["outcome"] != FOLDED).sum())),
        "seconds": f"{seconds:,.0f}",
        "up": f"{up / 1e6:,.1f}",
    }


def _losses(records: Sequence[Record], names: Sequence[str], axis: str) -> list[Chart]:
    found = []
    for heading, series in (
        ("Training loss, all sites by images", [mean_loss(record.folded) for record in records]),
        ("Loss on held-out images", [held_out(record.rounds) for record in records]),
    ):
        lines = [
            Line(name, values.index.tolist(), values.tolist())
            for name, values in zip(names, series, strict=True)
            if len(values)
        ]
        measured = {line.name for line in lines}
        without = ", ".join(name for name in names if name not in measured)
        note = f"Not measured: {without}." if without else ""
        if lines:
            found.append(Chart(heading, charts.curves(lines, heading, axis, legend=True), note))
    return found


def _estimates(records: Sequence[Record], names: Sequence[str]) -> list[Estimate]:
    """Return probes by task and scores by site, one series per run."""
    table: dict[str, dict[str, tuple[float, float, float] | None]] = {}
    for record, name in zip(records, names, strict=True):
        for pair in record.probes:
            task = f"{pair.trained.label}, {pair.trained.cohort}, {pair.trained.kind}"
            found = (pair.trained.auroc, pair.trained.low, pair.trained.high)
            table.setdefault(task, {})[name] = found
        for score in record.by_site:
            label = f"{score.site} ({score.name})" if score.name else score.site
            table.setdefault(label, {})[name] = charts.triple(score.federated)
    return [Estimate(label, {name: row.get(name) for name in names}) for label, row in sorted(table.items())]


def _figure_charts(estimates: Sequence[Estimate], pretraining: bool) -> list[Chart]:
    if not any(found for row in estimates for found in row.series.values()):
        return []
    heading = "AUROC of the probes" if pretraining else "Score by site"
    axis = "AUROC (0.5 is chance)" if pretraining else "AUROC or Dice"
    return [Chart(heading, charts.intervals(estimates, heading, axis, 0.5 if pretraining else None))]


def _shown(row: Estimate, name: str) -> str:
    found = row.series.get(name)
    return card.interval(*found) if found else "–"


def _settings(records: Sequence[Record]) -> list[dict[str, Any]]:
    keys = sorted({key for record in records for key in record.settings} - set(_UNLIKE))
    rows = []
    for key in keys:
        cells = [short(record.settings.get(key, "–")) for record in records]
        if len(set(cells)) > 1:
            rows.append({"key": key, "cells": cells})
    return rows


def short(value: Any) -> str:
    """Return a setting's value as text, cut if it is long."""
    text = str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
