"""What a run comes to, in sentences: did it learn, is it better, what went wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sscxr.evaluation.probe import Comparison

FOLDED = "folded"


@dataclass(frozen=True)
class Words:
    """What a stage's loss and score are called, and what they mean."""

    loss: str
    axis: str
    meaning: str
    score: str = ""


WORDS = {
    "pretrain": Words(
        "reconstruction loss",
        "loss (mean absolute error)",
        "Loss: mean absolute error of the reconstructed pixels, in units of the encoder's input (grey levels 0 to "
        "1 divided by data.std). Lower is better.",
    ),
    "classify": Words(
        "loss",
        "loss (cross-entropy, nats)",
        "Loss: mean cross-entropy of the known labels, both classes of each weighing the same. Lower is better.",
        "AUROC",
    ),
    "segment": Words(
        "loss",
        "loss (Dice + cross-entropy)",
        "Loss: one minus the soft Dice, and the mean cross-entropy of the pixels. Lower is better.",
        "Dice",
    ),
}


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


def summary(
    words: Words,
    folded: pd.DataFrame,
    sites: pd.DataFrame,
    rounds: Sequence[Mapping[str, Any]],
    probes: Sequence[Comparison],
    scores: Sequence[SiteScore],
    min_cell: int,
) -> list[str]:
    """The run in a few plain sentences."""
    if folded.empty:
        return ["No round was completed: no site's update was folded into the encoder.", *_trouble(sites)]
    counts = folded.groupby("site")["images"].last()
    # One small site's count would follow from a total and the others' counts.
    total = "" if (counts.isna() | (counts < min_cell)).any() else f" on {int(counts.sum()):,} images"
    names, number = folded["site"].nunique(), folded["round"].nunique()
    lines = [f"{many(names, 'site')} trained{total} over {many(number, 'round')}."]
    judged = _scored(scores) if words.score else _probed(probes)
    lines += [text for text in (_learned(words, folded, rounds), judged, _sent(rounds)) if text]
    return lines + _trouble(sites)


def _learned(words: Words, folded: pd.DataFrame, rounds: Sequence[Mapping[str, Any]]) -> str:
    losses, kind = held_out(rounds), "held-out images"
    if len(losses) < 2:
        losses, kind = mean_loss(folded), "the sites' own images"
    losses = losses.dropna()
    if len(losses) < 2:
        return "One round does not tell whether it learned."
    first, last = float(losses.iloc[0]), float(losses.iloc[-1])
    fall = (first - last) / first if first else 0.0
    verdict = "It learned" if fall > 0.01 else "It hardly learned" if fall > -0.01 else "It did not learn"
    return f"{verdict}: the {words.loss} on {kind} went from {first:.3f} to {last:.3f} ({-fall:+.0%})."


def _scored(scores: Sequence[SiteScore]) -> str:
    told = [score for score in scores if score.gap and score.gap["low"] is not None]
    if not told:
        return "No site's model alone was compared with the federation's."
    better, worse = (
        sum(score.better for score in told),
        sum(score.gap["high"] < 0 for score in told if score.gap),
    )
    return (
        f"The federation's model is better than a site's own at {better} of {many(len(told), 'site')}, worse at "
        f"{worse}, beyond the interval of the difference."
    )


def _probed(probes: Sequence[Comparison]) -> str:
    if not probes:
        return "No probe was run: no label has enough cases on patients that were set aside."
    better = sum(pair.better for pair in probes)
    worse = sum(pair.high < 0 for pair in probes)
    told = f"The features beat the untrained encoder's in {better} of {many(len(probes), 'probe')}"
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
    told = ", ".join(f"{outcome}: {many(int(number), 'time')}" for outcome, number in counts.items())
    return [f"Not every site took part in every round ({told}); see below for sites and reasons."]


def mean_loss(folded: pd.DataFrame) -> "pd.Series[float]":
    """By round, the sites' losses weighted by their images."""
    rows = folded.dropna(subset=["loss"])
    weight = rows["images"].fillna(1).clip(lower=1).astype(float)
    total = (rows["loss"].astype(float) * weight).groupby(rows["round"]).sum()
    return total / weight.groupby(rows["round"]).sum()


def held_out(rounds: Sequence[Mapping[str, Any]]) -> "pd.Series[float]":
    found = {int(row["round"]): row.get("held_out_loss") for row in rounds}
    return pd.Series(
        {number: float(loss) for number, loss in sorted(found.items()) if loss is not None}, dtype=float
    )


def many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
