"""A run as rows of tables: sites, rounds, troubles, probes, scores. Texts only; the templates escape them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sscxr.federation.wire import GREY
from sscxr.release import card
from sscxr.report.record import FOLDED, Record
from sscxr.report.summary import total_images, verdict
from sscxr.runs import natural

# Refusals and absences listed in full; for more the report refers to sites.csv.
LISTED = 40
_REASONS = 3  # kinds of absence named in a site's row
Row = dict[str, Any]


def sites(record: Record) -> list[Row]:
    """Return one row per site."""
    groups = {str(name): rows for name, rows in record.sites.groupby("site")}
    return [_site(name, groups[name], record) for name in sorted(groups, key=natural)]


def _site(name: str, rows: pd.DataFrame, record: Record) -> Row:
    folded = rows[rows["outcome"] == FOLDED]
    losses, images = folded["loss"].dropna(), folded["images"].dropna()
    counts = record.counts.get(name, {})
    seconds = folded["seconds"].dropna()
    patients = counts.get("images", {}).get("first of a patient")
    return {
        "site": name,
        "images": card.count(int(images.iloc[-1]), record.min_cell) if len(images) else "–",
        "patients": "–" if patients is None else card.count(patients, record.min_cell),
        "views": _reported(counts.get("view", {})),  # a table of `wire.COUNT_TABLES`
        "ages": _reported(counts.get("age", {})),
        "rounds": f"{len(folded)} of {rows['round'].nunique()}",
        "missed": _missed(rows[rows["outcome"] != FOLDED]),
        "loss": f"{losses.iloc[0]:.3f} → {losses.iloc[-1]:.3f}" if len(losses) else "–",
        "epsilon": f"{record.costs[name][0]:.3g}" if name in record.costs else "–",
        "norm": _figure(folded["update_norm"].median(), "{:#.3g}"),
        "seconds": _figure(seconds.median(), "{:,.1f}"),
        "total_seconds": _figure(seconds.sum() if len(seconds) else float("nan"), "{:,.0f}"),
        "sent": _figure(rows["bytes"].sum() / 1e6, "{:,.1f}"),
    }


def _reported(cells: Mapping[str, int]) -> list[str]:
    """Return the reported counts, the largest first."""
    ordered = sorted(cells.items(), key=lambda item: (-item[1], item[0]))
    return [f"{name}: {number:,}" for name, number in ordered if number]


def _missed(bad: pd.DataFrame) -> list[str]:
    """Return absences and refusals by kind and reason, the most frequent first."""
    if bad.empty:
        return []
    reasons = bad["reason"].astype(object).fillna("")
    kinds = (bad["outcome"] + reasons.map(lambda text: f": {text}" if text else "")).value_counts()
    listed = [f"{number} × {kind}" for kind, number in kinds.head(_REASONS).items()]
    more = int(kinds.iloc[_REASONS:].sum())
    return [*listed, f"{more} × others"] if more else listed


def rounds(record: Record) -> list[Row]:
    """Return one row per round; with its images only if the sum does not reveal a small site's."""
    known = bool(total_images(record))
    return [
        {
            "round": str(row["round"]),
            "sites": f"{row['sites']} of {row['roster']}" if "roster" in row else str(row.get("sites", "–")),
            "images": f"{row['images']:,}" if known and row.get("images") else "–",
            "loss": _maybe(row.get("loss"), "{:.4f}"),
            "held_out": _maybe(row.get("held_out_loss"), "{:.4f}"),
            "score": _maybe(row.get("held_out_score"), "{:.3f}"),
            "seconds": _maybe(row.get("seconds"), "{:,.1f}"),
            "up": _megabytes(row.get("bytes_up")),
            "down": _megabytes(row.get("bytes_down")),
        }
        for row in record.rounds
    ]


def troubles(record: Record) -> list[Row]:
    """Return rows about replies that were not folded, and remarks on those that were."""
    reasons = record.sites["reason"].astype(object).fillna("")
    odd = record.sites[(record.sites["outcome"] != FOLDED) | (reasons != "")]
    odd = odd.sort_values("site", key=lambda names: names.map(natural)).sort_values("round", kind="stable")
    return [
        {
            "round": str(row["round"]),
            "site": str(row["site"]),
            "outcome": str(row["outcome"]),
            "reason": "" if pd.isna(row["reason"]) else str(row["reason"]),
        }
        for row in odd.to_dict("records")
    ]


def probes(record: Record) -> list[Row]:
    """Return one row per probe."""
    return [
        {
            "label": pair.trained.label,
            "cohort": pair.trained.cohort,
            "kind": pair.trained.kind,
            "trained": card.interval(pair.trained.auroc, pair.trained.low, pair.trained.high),
            "untrained": card.interval(pair.untrained.auroc, pair.untrained.low, pair.untrained.high),
            "gain": card.interval(pair.gain, pair.low, pair.high, sign="+"),
            "verdict": verdict(pair.low, pair.high),
            "patients": card.count(pair.trained.test_patients, record.min_cell),
        }
        for pair in record.probes
    ]


def few(record: Record) -> list[Row]:
    """Return one row per label and encoder with few labels."""
    table = []
    for row in record.few:
        gain = row["gain"] or {"low": None, "high": None}
        shown = {"auroc": card.interval(**row["auroc"]), "gain": ""}
        if row["gain"]:
            shown["gain"] = card.interval(**gain, sign="+")
        about = {name: str(row[name]) for name in ("cohort", "label", "encoder", "per_class", "draws")}
        table.append(about | shown | {"verdict": verdict(gain["low"], gain["high"])})
    return table


def scores(record: Record) -> list[Row]:
    """Return one row per site, figure and kind of patients: the federation's model, or encoder, and its own."""
    table = []
    for score in sorted(record.scores, key=lambda one: natural(one.site)):
        federated, alone, gap = score.told()
        enough, small = score.test_patients >= record.min_cell, f"below {record.min_cell}"
        row = {"site": score.site, "where": score.where, "figure": score.name or "too few images"}
        row |= {"patients": str(score.test_patients) if enough else small}
        ends = score.gap or {"low": None, "high": None}
        row |= {"federated": federated, "alone": alone, "gap": gap}
        table.append(row | {"verdict": verdict(ends["low"], ends["high"])})
    return table


def aggregates(record: Record) -> tuple[Sequence[str], list[Row]]:
    """Return every reported count: the columns ("view: PA"), and one row per site."""
    columns = sorted(
        {
            (table, cell)
            for tables in record.counts.values()
            for table, cells in tables.items()
            if table != GREY  # shares, not counts
            for cell in cells
        }
    )
    rows = [
        {"site": site, "cells": [_maybe(tables.get(table, {}).get(cell), "{:,}") for table, cell in columns]}
        for site, tables in sorted(record.counts.items(), key=lambda item: natural(item[0]))
    ]
    return [f"{table.removeprefix('label:')}: {cell}" for table, cell in columns], rows


def _megabytes(count: Any) -> str:
    return "–" if count is None else f"{count / 1e6:,.1f}"


def _maybe(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)


def _figure(value: float, form: str) -> str:
    return form.format(value) if np.isfinite(value) else "–"
