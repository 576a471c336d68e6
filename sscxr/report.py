"""The report that a person looks at: one HTML file that opens from disk and asks the network for nothing.

It answers, from the top: what ran, did it learn, what went wrong; then the charts, tables and pictures that
show it. Every text is escaped, since sites choose their names and send reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr import card, figures
from sscxr.evaluation.probe import Comparison
from sscxr.files import write_atomically
from sscxr.report_summary import FOLDED, WORDS, SiteScore, Words, held_out, mean_loss, summary

SITE_COLUMNS = ("round", "site", "images", "loss", "update_norm", "seconds", "bytes", "outcome", "reason")
# Refusals and absences listed in full; beyond this the reader is sent to sites.csv.
LISTED = 40

Pictures = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Reconstruction:
    """Pictures to look at: uint8 [n, H, W] each, alike in shape.

    Attributes:
        caption: where they come from.
        clean, corrupted, reconstructed: what the encoder should see, did see, and made of it.
    """

    caption: str
    clean: Pictures
    corrupted: Pictures
    reconstructed: Pictures


def write(
    out: str | Path,
    *,
    title: str,
    stage: str = "pretrain",
    rounds: Sequence[Mapping[str, Any]],
    sites: pd.DataFrame,
    reconstructions: Sequence[Reconstruction] = (),
    probes: Sequence[Comparison] = (),
    scores: Sequence[SiteScore] = (),
    notes: Sequence[str] = (),
    stopped: str = "",
    min_cell: int = 10,
) -> Path:
    """Write the report of a run, finished, stopped or never begun.

    Args:
        out: the HTML file; it appears whole or not at all.
        title: the run's name.
        stage: "pretrain", "classify" or "segment".
        rounds: the records of rounds.jsonl: `round`; `held_out_loss`, `bytes_up`, `bytes_down` where measured.
        sites: the rows of sites.csv, `SITE_COLUMNS`; outcome is "folded", or what went wrong.
        reconstructions: pictures; none where no image is at hand.
        probes: the encoder against the untrained one; none without labels.
        scores: a fine-tuning's model against each site's own.
        notes: lines for the reader, shown under the summary.
        stopped: why the run ended early; empty: it did not.
        min_cell: counts of images and patients below it are not shown.
    """
    absent = [name for name in SITE_COLUMNS if name not in sites.columns]
    if absent and len(sites):
        raise ValueError(f"the report's site rows have no {', '.join(absent)}")
    sites = sites.reindex(columns=list(SITE_COLUMNS))
    folded = sites[sites["outcome"] == FOLDED]
    troubles = _troubles(sites)
    page = _template().render(
        title=title,
        summary=summary(WORDS[stage], folded, sites, rounds, probes, scores, min_cell),
        meaning=WORDS[stage].meaning,
        stopped=stopped,
        notes=list(notes),
        charts=_charts(WORDS[stage], folded, rounds),
        sites=_site_rows(sites, min_cell),
        troubles=troubles[:LISTED],
        more_troubles=max(0, len(troubles) - LISTED),
        reconstructions=[_pictures(item) for item in reconstructions],
        probes=[_probe_row(pair, min_cell) for pair in probes],
        scores=[_score_row(score, min_cell) for score in scores],
    )
    out = Path(out)
    write_atomically(out, page.encode())
    return out


def _score_row(score: SiteScore, min_cell: int) -> dict[str, Any]:
    federated, alone, gap = score.told()
    patients = str(score.test_patients) if score.test_patients >= min_cell else f"below {min_cell}"
    row = {"site": score.site, "figure": score.figure or "too few images", "patients": patients}
    return row | {"federated": federated, "alone": alone, "gap": gap, "better": score.better}


def _template() -> jinja2.Template:
    text = (resources.files("sscxr") / "templates" / "report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


def _charts(words: Words, folded: pd.DataFrame, rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of heading and inline SVG."""
    drawn: list[tuple[str, list[figures.Line], str]] = []
    if folded["loss"].notna().any():
        lines = [
            figures.Line(str(name), rows["round"].tolist(), rows["loss"].tolist())
            for name, rows in folded.groupby("site")
        ]
        if len(lines) > 1:
            mean = mean_loss(folded)
            lines.append(figures.Line("all, by images", mean.index.tolist(), mean.tolist(), bold=True))
        drawn.append(("Training loss by site", lines, words.axis))
    losses = held_out(rounds)
    if len(losses):
        line = figures.Line("held out", losses.index.tolist(), losses.tolist(), bold=True)
        drawn.append(("Loss on held-out images", [line], words.axis))
    scores = _score_lines(rounds)
    if scores:
        drawn.append((f"{words.score} on each site's held-out images", scores, words.score))
    return [
        (heading, figures.line_chart(lines, x_label="round", y_label=axis, alt=f"{heading}, round by round"))
        for heading, lines, axis in drawn
    ]


def _score_lines(rounds: Sequence[Mapping[str, Any]]) -> list[figures.Line]:
    """Each site's held-out score, where it told one."""
    told = [(int(row["round"]), row.get("scores") or {}) for row in rounds]
    sites = sorted({site for _, scores in told for site in scores})
    points = {site: [(number, scores[site]) for number, scores in told if site in scores] for site in sites}
    return [figures.Line(site, [x for x, _ in points[site]], [y for _, y in points[site]]) for site in sites]


def _site_rows(sites: pd.DataFrame, min_cell: int) -> list[dict[str, str]]:
    table = []
    for name, rows in sites.groupby("site"):
        folded = rows[rows["outcome"] == FOLDED]
        losses = folded["loss"].dropna()
        images = folded["images"].dropna()
        table.append(
            {
                "site": str(name),
                "images": card.count(int(images.iloc[-1]), min_cell) if len(images) else "–",
                "rounds": f"{len(folded)} of {rows['round'].nunique()}",
                "loss": f"{losses.iloc[0]:.3f} → {losses.iloc[-1]:.3f}" if len(losses) else "–",
                "norm": _figure(folded["update_norm"].median(), "{:#.3g}"),
                "seconds": _figure(folded["seconds"].median(), "{:.1f}"),
                "sent": _figure(rows["bytes"].sum() / 1e6, "{:.1f}"),
            }
        )
    return table


def _troubles(sites: pd.DataFrame) -> list[dict[str, str]]:
    """What was not folded and why, and remarks on what was."""
    odd = sites[(sites["outcome"] != FOLDED) | (sites["reason"].astype(object).fillna("") != "")]
    return [
        {
            "round": str(row["round"]),
            "site": str(row["site"]),
            "outcome": str(row["outcome"]),
            "reason": "" if pd.isna(row["reason"]) else str(row["reason"]),
        }
        for row in odd.sort_values(["round", "site"]).to_dict("records")
    ]


def _pictures(item: Reconstruction) -> dict[str, Any]:
    rows = {"clean": item.clean, "corrupted": item.corrupted, "reconstructed": item.reconstructed}
    return {
        "caption": item.caption,
        "rows": [(name, figures.image_row(images)) for name, images in rows.items()],
    }


def _probe_row(pair: Comparison, min_cell: int) -> dict[str, Any]:
    trained, untrained = pair.trained, pair.untrained
    return {
        "label": trained.label,
        "cohort": trained.cohort,
        "kind": trained.kind,
        "trained": card.interval(trained.auroc, trained.low, trained.high),
        "untrained": card.interval(untrained.auroc, untrained.low, untrained.high),
        "gain": card.interval(pair.gain, pair.low, pair.high, sign="+"),
        "better": pair.better,
        "patients": card.count(trained.test_patients, min_cell),
    }


def _figure(value: float, form: str) -> str:
    return form.format(value) if np.isfinite(value) else "–"
