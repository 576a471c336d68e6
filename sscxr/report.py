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

FOLDED = "folded"
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


@dataclass(frozen=True)
class SiteScore:
    """One site's held-out patients, under the federation's model and under one that the site trained by itself.

    Attributes:
        figure: "auroc" or "dice"; empty: the site has too little that the stage can use.
        images, test_images, test_patients: trained on and tested on.
        federated, alone, gap: {value, low, high, n} with 95 % intervals over patients; the gap is the paired
            difference. None: not measured.
    """

    site: str
    figure: str
    images: int
    test_images: int
    test_patients: int
    federated: dict[str, Any] | None
    alone: dict[str, Any] | None
    gap: dict[str, Any] | None

    def told(self) -> tuple[str, str, str]:
        """The three figures as a person reads them."""
        return _told(self.federated), _told(self.alone), _told(self.gap, sign="+")

    @property
    def better(self) -> bool:
        """Whether the federation's model beats the site's own beyond the interval of the difference."""
        return bool(self.gap and self.gap["low"] is not None and self.gap["low"] > 0)


def _told(found: Mapping[str, Any] | None, *, sign: str = "") -> str:
    if not found or found["value"] is None:
        return "-"
    value, low, high = (
        f"{found[k]:{sign}.3f}" if found[k] is not None else "-" for k in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def write(
    out: str | Path,
    *,
    title: str,
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
        summary=_summary(folded, sites, rounds, probes, min_cell),
        stopped=stopped,
        notes=list(notes),
        charts=_charts(folded, rounds),
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


def _summary(
    folded: pd.DataFrame,
    sites: pd.DataFrame,
    rounds: Sequence[Mapping[str, Any]],
    probes: Sequence[Comparison],
    min_cell: int,
) -> list[str]:
    """The run in a few plain sentences."""
    if folded.empty:
        return ["No round was completed: no site's update was folded into the encoder.", *_trouble(sites)]
    counts = folded.groupby("site")["images"].last()
    # One small site's count would follow from a total and the others' counts.
    total = "" if (counts.isna() | (counts < min_cell)).any() else f" on {int(counts.sum()):,} images"
    names, number = folded["site"].nunique(), folded["round"].nunique()
    lines = [f"{_many(names, 'site')} trained{total} over {_many(number, 'round')}."]
    lines += [text for text in (_learned(folded, rounds), _probed(probes), _sent(rounds)) if text]
    return lines + _trouble(sites)


def _learned(folded: pd.DataFrame, rounds: Sequence[Mapping[str, Any]]) -> str:
    losses, kind = _held_out(rounds), "held-out images"
    if len(losses) < 2:
        losses, kind = _mean_loss(folded), "the sites' own images"
    losses = losses.dropna()
    if len(losses) < 2:
        return "One round does not tell whether it learned."
    first, last = float(losses.iloc[0]), float(losses.iloc[-1])
    fall = (first - last) / first if first else 0.0
    verdict = "It learned" if fall > 0.01 else "It hardly learned" if fall > -0.01 else "It did not learn"
    return f"{verdict}: the reconstruction loss on {kind} went from {first:.3f} to {last:.3f} ({-fall:+.0%})."


def _probed(probes: Sequence[Comparison]) -> str:
    if not probes:
        return "No probe was run: no label has enough cases on patients that were set aside."
    better = sum(pair.better for pair in probes)
    worse = sum(pair.high < 0 for pair in probes)
    told = f"The features beat the untrained encoder's in {better} of {_many(len(probes), 'probe')}"
    return f"{told}, beyond the interval of the difference{f'; they are worse in {worse}' if worse else ''}."


def _sent(rounds: Sequence[Mapping[str, Any]]) -> str:
    measured = [row for row in rounds if "bytes_up" in row and "bytes_down" in row]
    if not measured:
        return ""
    up, down = (float(np.median([row[way] for row in measured])) / 1e6 for way in ("bytes_up", "bytes_down"))
    return f"In the median round {up:,.1f} MB came from all sites together, and {down:,.1f} MB went to them."


def _trouble(sites: pd.DataFrame) -> list[str]:
    bad = sites[sites["outcome"] != FOLDED]
    if bad.empty:
        return ["No site was absent and no update was refused."] if len(sites) else []
    counts = bad.groupby("outcome").size()
    told = ", ".join(f"{outcome}: {_many(int(number), 'time')}" for outcome, number in counts.items())
    return [f"Not every site took part in every round ({told}); see below for sites and reasons."]


def _charts(folded: pd.DataFrame, rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of heading and inline SVG."""
    charts: list[tuple[str, str]] = []
    if folded["loss"].notna().any():
        lines = [
            figures.Line(str(name), rows["round"].tolist(), rows["loss"].tolist())
            for name, rows in folded.groupby("site")
        ]
        if len(lines) > 1:
            mean = _mean_loss(folded)
            lines.append(figures.Line("all, by images", mean.index.tolist(), mean.tolist(), bold=True))
        alt = "Training loss of each site by round"
        charts.append(("Training loss by site", _loss_chart(lines, alt)))
    held_out = _held_out(rounds)
    if len(held_out):
        line = figures.Line("held out", held_out.index.tolist(), held_out.tolist(), bold=True)
        alt = "Loss on held-out images by round"
        charts.append(("Loss on held-out images", _loss_chart([line], alt)))
    return charts


def _loss_chart(lines: Sequence[figures.Line], alt: str) -> str:
    return figures.line_chart(lines, x_label="round", y_label="loss (mean absolute error)", alt=alt)


def _mean_loss(folded: pd.DataFrame) -> "pd.Series[float]":
    """By round, the sites' losses weighted by their images."""
    rows = folded.dropna(subset=["loss"])
    weight = rows["images"].fillna(1).clip(lower=1).astype(float)
    total = (rows["loss"].astype(float) * weight).groupby(rows["round"]).sum()
    return total / weight.groupby(rows["round"]).sum()


def _held_out(rounds: Sequence[Mapping[str, Any]]) -> "pd.Series[float]":
    found = {int(row["round"]): row.get("held_out_loss") for row in rounds}
    return pd.Series(
        {number: float(loss) for number, loss in sorted(found.items()) if loss is not None}, dtype=float
    )


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


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
