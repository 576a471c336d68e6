"""A run's charts: each is an inline SVG with a heading, units on both axes, and a text for those who do not see it.

Up to twelve sites differ by colour and marker. More lines could not be distinguished: all are drawn alike, their
median and range stand out, and a map of sites by rounds shows each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from sscxr.report import svg
from sscxr.report.record import Record, SiteScore
from sscxr.report.summary import held_out, mean_loss
from sscxr.runs import OWN, natural

APART = 12  # lines, or categories, that can be distinguished

_HIDDEN = "others"


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        heading: above it.
        svg: the inline SVG.
        note: below it.
    """

    heading: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend; shortened if it is long.
        x, y: [N] each; a NaN in y is a gap.
        bold: whether it sums up the others, and is drawn thick and in the text's colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    bold: bool = False


@dataclass(frozen=True)
class Estimate:
    """One row of a chart of intervals: a label, and for each series (value, low, high), or None."""

    label: str
    series: Mapping[str, tuple[float, float, float] | None]


def losses(record: Record) -> list[Chart]:
    """Return charts of loss and score by round and site."""
    words, folded = record.words, record.folded
    charts = []
    if folded["loss"].notna().any():
        lines = [
            Line(str(name), rows["round"].tolist(), rows["loss"].tolist())
            for name, rows in sorted(folded.groupby("site"), key=lambda site: natural(site[0]))
        ]
        if len(lines) > 1:
            mean = mean_loss(folded)
            lines.append(Line("all, by images", mean.index.tolist(), mean.tolist(), bold=True))
        charts.append(Chart("Training loss by site", curves(lines, "Training loss by site", words.axis)))
    measured = held_out(record.rounds)
    if len(measured):
        line = Line("held out", measured.index.tolist(), measured.tolist(), bold=True)
        heading = "Loss on held-out images"
        charts.append(Chart(heading, curves([line], heading, words.axis)))
    scores = _score_lines(record.rounds)
    if scores:
        heading = f"{words.score} on each site's held-out images"
        charts.append(Chart(heading, curves(scores, heading, words.score)))
    if record.sites["site"].nunique() > 1 and len(charts):
        charts.append(site_map(record, words.axis))
    return charts


def _score_lines(rounds: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return each site's held-out scores, as far as it reported them."""
    found = [(int(row["round"]), row.get("scores") or {}) for row in rounds]
    sites = sorted({site for _, scores in found for site in scores}, key=natural)
    points = {site: [(number, scores[site]) for number, scores in found if site in scores] for site in sites}
    return [Line(site, [x for x, _ in points[site]], [y for _, y in points[site]]) for site in sites]


def curves(
    lines: Sequence[Line],
    heading: str,
    y_label: str,
    *,
    x_label: str = "round",
    whole: bool = True,
    legend: bool = False,
) -> str:
    """Draw lines over rounds or another axis.

    Args:
        whole: whether the axis has ticks at whole numbers only.
        legend: draw a legend even for one line.
    """
    plain = [line for line in lines if not line.bold]
    crowd = len(plain) > APART
    named = [line for line in lines if line.bold or not crowd]
    legend_rows = -(-(len(named) + 2 * crowd) // 2) if legend or len(lines) > 1 else 0

    def paint(figure: Any, axes: Any) -> dict[str, str]:
        texts = {}
        for number, line in enumerate(lines):
            look = _crowded(number == 0) if crowd else _look(line, number)
            if line.bold:
                look = _look(line, number)
            (drawn,) = axes.plot(line.x, line.y, markersize=4, markevery=max(1, len(line.x) // 10), **look)
            texts[svg.hover(drawn, number)] = line.name
        if crowd:
            _range(axes, plain)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=svg.SOFT, alpha=0.3, linewidth=0.6)
        if legend_rows:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        return texts

    return svg.draw(paint, alt=_in_words(lines, heading, x_label), height=2.8 + 0.21 * legend_rows)


def _look(line: Line, number: int) -> dict[str, Any]:
    look = svg.style(number) | {"label": svg.shorten(line.name), "linewidth": 1.2, "zorder": 2}
    if line.bold:
        look |= {"color": svg.INK, "linestyle": "-", "linewidth": 2.4, "zorder": 4}
        look |= {"marker": None if len(line.x) > APART else "o"}
    return look


def _crowded(first: bool) -> dict[str, Any]:
    return {"color": svg.SOFT, "linewidth": 0.5, "alpha": 0.6, "zorder": 1} | (
        {"label": "one site each"} if first else {}
    )


def _range(axes: Any, lines: Sequence[Line]) -> None:
    """Shade the middle half of many lines."""
    series = [pd.Series(list(line.y), index=list(line.x), dtype=float) for line in lines]
    table = pd.concat(series, axis=1).sort_index()
    low, high = table.quantile(0.25, axis=1), table.quantile(0.75, axis=1)
    axes.fill_between(
        table.index, low, high, color=svg.COLOURS[0], alpha=0.35, label="middle half of the sites"
    )


def _in_words(lines: Sequence[Line], heading: str, x_label: str) -> str:
    """Describe a chart by the line that sums up the others, or by the ends of its first few lines."""
    chosen = [line for line in lines if line.bold] or list(lines[:3])
    ends = []
    for line in chosen:
        known = [value for value in line.y if np.isfinite(value)]
        if known:
            ends.append(f"{line.name} from {known[0]:.3g} to {known[-1]:.3g}")
    count = f"{len(lines)} lines" if len(lines) > 1 else "one line"
    return f"{heading}, by {x_label}: {count}; {'; '.join(ends)}"


def site_map(record: Record, label: str) -> Chart:
    """Return a map of sites by rounds: the loss as a colour, and a cross where a site had no part."""
    rows = record.sites.drop_duplicates(["site", "round"], keep="last")
    table = rows.pivot(index="site", columns="round", values="loss").astype(float).sort_index()
    missed = rows[rows["outcome"] != "folded"]
    names = [str(name) for name in table.index]

    def paint(figure: Any, axes: Any) -> None:
        first, last = int(table.columns.min()), int(table.columns.max())
        values = table.reindex(columns=range(first, last + 1)).to_numpy()
        extent = (first - 0.5, last + 0.5, len(names) - 0.5, -0.5)
        shown = axes.imshow(values, aspect="auto", cmap="cividis", interpolation="none", extent=extent)
        if len(missed):
            places = [names.index(str(name)) for name in missed["site"]]
            axes.plot(missed["round"].tolist(), places, "x", color=svg.INK, markersize=3.5, label="no part")
            figure.legend(loc="outside lower right", frameon=False, fontsize=9)
        axes.set_yticks(range(len(names)), [svg.shorten(name, 22) for name in names], fontsize=8)
        axes.set_xlabel("round")
        axes.set_ylabel("site")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        # Above, not beside: few sites make a low map, and its label would not fit.
        figure.colorbar(
            shown, ax=axes, label=label, location="top", aspect=50, pad=0.02, ticks=MaxNLocator(5)
        )

    heading = "Loss by site and round"
    alt = f"{heading}: {len(names)} sites by {table.shape[1]} rounds; {len(missed)} times a site had no part"
    note = "Yellow is a high loss, blue a low one; a cross: the site had no part in that round."
    return Chart(heading, svg.draw(paint, alt=alt, height=1.7 + 0.17 * max(3, len(names))), note)


def probes(record: Record) -> list[Chart]:
    """Return a chart of the trained and the untrained encoder's AUROC, with intervals."""
    rows = [
        Estimate(
            f"{pair.trained.label}, {pair.trained.cohort}, {pair.trained.kind}",
            {
                "trained": (pair.trained.auroc, pair.trained.low, pair.trained.high),
                "untrained": (pair.untrained.auroc, pair.untrained.low, pair.untrained.high),
            },
        )
        for pair in record.probes
    ]
    if not rows:
        return []
    return [
        Chart("AUROC of the probes", intervals(rows, "AUROC of the probes", "AUROC (0.5 is chance)", 0.5))
    ]


def scores(record: Record) -> list[Chart]:
    """Return charts of the figure at each site, with the others and alone: by the patients that it is of."""
    return [
        chart
        for where in dict.fromkeys(score.where for score in record.scores)
        for chart in _scores([one for one in record.scores if one.where == where and one.figure != "k-NN"])
    ]


def _scores(scores: Sequence[SiteScore]) -> list[Chart]:
    rows = []
    for score in scores:
        both = {"with the others": score.federated, "alone": score.alone}
        rows.append(Estimate(score.site, {name: triple(found) for name, found in both.items()}))
    if not any(value for row in rows for value in row.series.values()):
        return []
    name = next(score.name for score in scores if score.name)
    whose = "" if scores[0].where == OWN else ", on everybody's held-out patients"
    heading = f"{name} at each site, with the others and alone{whose}"
    return [Chart(heading, intervals(rows, heading, name, 0.5 if name.endswith("AUROC") else None))]


def triple(found: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """Return a figure as (value, low, high); None if it was not measured."""
    if not found or found["value"] is None:
        return None
    value = float(found["value"])
    low, high = (value if found[end] is None else float(found[end]) for end in ("low", "high"))
    return value, low, high


def intervals(rows: Sequence[Estimate], heading: str, x_label: str, chance: float | None) -> str:
    """Draw values with their 95 % intervals, one row each, the series side by side."""
    names = list(dict.fromkeys(name for row in rows for name in row.series))
    step = 0.7 / max(1, len(names))

    def paint(figure: Any, axes: Any) -> None:
        for number, name in enumerate(names):
            places, found = [], []
            for place, row in enumerate(rows):
                value = row.series.get(name)
                if value:
                    places.append(place + (number - (len(names) - 1) / 2) * step)
                    found.append(value)
            if not found:
                continue
            middle, low, high = np.array(found).T
            look = svg.style(number) | {"linestyle": "none", "capsize": 2, "markersize": 5}
            ends = np.maximum(0, [middle - low, high - middle])
            axes.errorbar(middle, places, xerr=ends, label=svg.shorten(name), **look)
        if chance is not None:
            axes.axvline(chance, color=svg.SOFT, linestyle="--", linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_yticks(range(len(rows)), [svg.shorten(row.label, 34) for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(x_label)
        axes.grid(axis="x", color=svg.SOFT, alpha=0.3, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)

    height = 0.9 + max(0.9, len(rows) * (0.1 + 0.13 * len(names))) + 0.21 * -(-len(names) // 2)
    alt = f"{heading}: {len(rows)} rows, {', '.join(names)}, with 95 % intervals; the table has the figures"
    return svg.draw(paint, alt=alt, height=height)


def embedding(record: Record) -> list[Chart]:
    """Return maps of the images, coloured by site and by label."""
    points = record.embedding
    if points is None or points.empty:
        return []
    return [
        Chart("Map of images, by site", _scatter(points, "site", "by site")),
        Chart("Map of images, by label", _scatter(points, "label", "by label")),
    ]


def _scatter(points: pd.DataFrame, column: str, how: str) -> str:
    counts = points[column].value_counts()
    order = sorted(counts.index, key=lambda name: (-counts[name], name))
    named = order if len(order) <= APART else order[: APART - 1]
    legend_rows = -(-(len(named) + (len(named) < len(order))) // 2)

    def paint(figure: Any, axes: Any) -> None:
        for number, name in enumerate(named):
            part = points[points[column] == name]
            look = svg.style(number) | {"linestyle": "none", "markersize": 3.5, "alpha": 0.8}
            axes.plot(part["x"], part["y"], label=svg.shorten(name), markeredgewidth=0, **look)
        if len(named) < len(order):
            rest, look = points[~points[column].isin(named)], {"markersize": 3, "alpha": 0.6, "zorder": 1}
            axes.plot(rest["x"], rest["y"], ".", color=svg.SOFT, label=_HIDDEN, **look)
        axes.set_xlabel("t-SNE, first axis (no unit)")
        axes.set_ylabel("t-SNE, second axis (no unit)")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, markerscale=1.6)

    alt = f"Map of {len(points)} images by the encoder's features, coloured {how}: {len(order)} kinds"
    return svg.draw(paint, alt=alt, height=_map_height(points) + 0.21 * legend_rows)


def _map_height(points: pd.DataFrame) -> float:
    """Return a height in inches that suits the map's proportions, within bounds."""
    across, up = (float(np.ptp(points[axis])) or 1.0 for axis in ("x", "y"))
    return 0.6 + (svg.WIDTH - 0.4) * float(np.clip(up / across, 0.4, 1.0))
