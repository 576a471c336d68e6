"""A run in sentences, for a reader who was not there: did it learn, is it better, what went wrong."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from sscxr import runs
from sscxr.evaluation.gains import Comparison
from sscxr.report.record import FOLDED, Record, SiteScore
from sscxr.runs import Status

_NAMED = 4  # sites that are named in a sentence; the table has the others
_ENDED_EARLY = {"stopped": "stopped early", "failed": "failed", "died": "died"}
# Linear probes that are described in words: the first that were run, whatever their figures.
_IN_WORDS = 4


def answers(record: Record) -> list[tuple[str, list[str]]]:
    """Return questions, and the sentences that answer them."""
    found = [("Who took part?", [_took_part(record)])]
    if not record.folded.empty:
        found.append(("Did it learn?", [_learned(record), *_probed(record)]))
        found.append(("Is it better than each site alone?", _compared(record)))
    found.append(("What went wrong?", _trouble(record)))
    return found


def tiles(record: Record) -> list[tuple[str, str]]:
    """Return the figures at the head of the page, each with its name."""
    folded = record.folded
    done = max((int(row["round"]) for row in record.rounds), default=0)
    sites = folded["site"].nunique() if len(folded) else 0
    named = len(record.settings.get("federation.sites") or ())
    expected = max([named, *(int(row.get("roster", 0)) for row in record.rounds)])
    planned = record.status.rounds
    return [
        ("sites", f"{sites} of {expected}" if expected > sites else str(sites)),
        ("images", total_images(record) or "–"),
        ("rounds", f"{done} of {planned}" if planned else str(done)),
        ("state", record.status.state),
    ]


def ended(record: Record) -> str:
    """Return one line on a run that is not finished; empty if it is."""
    status = record.status
    if status.state == "finished":
        return ""
    if status.state in _ENDED_EARLY:
        return f"{_ended_early(status)}: {status.reason.strip() or 'no reason was given'}"
    return f"The run is in progress; this page was written {_at(status)}."


def _ended_early(status: Status) -> str:
    return f"The run {_ENDED_EARLY[status.state]} {_at(status)}"


def _at(status: Status) -> str:
    return f"after round {status.round} of {status.rounds}" if status.rounds else "before its first round"


def moment(text: str) -> str:
    """Return an ISO time in a form that is easy to read."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def total_images(record: Record) -> str:
    """Return the sum of the sites' images; empty if it would reveal a small site's count."""
    counts = record.folded.groupby("site")["images"].last()
    if counts.empty or (counts.isna() | (counts < record.min_cell)).any():
        return ""
    return f"{int(counts.sum()):,}"


def _took_part(record: Record) -> str:
    folded = record.folded
    if folded.empty:
        return "No round was completed: no site's update was folded into the encoder."
    total = total_images(record)
    names, number = folded["site"].nunique(), folded["round"].nunique()
    on = f" on {total} images" if total else ""
    line = f"{many(names, 'site')} trained{on} over {many(number, 'round')}. No image left a site."
    return f"{line} {_sent(record.rounds)}".strip()


def _learned(record: Record) -> str:
    words = record.words
    losses, kind = held_out(record.rounds), "held-out images"
    if len(losses) < 2:
        losses, kind = mean_loss(record.folded), "the sites' own images"
    losses = losses.dropna()
    if len(losses) < 2:
        return "One round does not show whether it learned."
    first, last = float(losses.iloc[0]), float(losses.iloc[-1])
    fall = (first - last) / first if first else 0.0
    verdict = "It learned" if fall > 0.01 else "It hardly learned" if fall > -0.01 else "It did not learn"
    return f"{verdict}: the {words.loss} on {kind} went from {first:.3f} to {last:.3f} ({change(-fall)})."


def change(share: float) -> str:
    """Return a relative change in per cent, with its sign; a small one has one more digit."""
    digits = 0 if abs(share) >= 0.1 else 1
    return f"{100 * share:+.{digits}f}\u00a0%".replace("-", "\u2212")


def _probed(record: Record) -> list[str]:
    if record.words.task:
        return []
    probes = record.probes
    if not probes and record.status.state != "finished":
        return [
            "How well its features show disease is not measured yet: a simulation measures it at its end, a "
            "server has no images."
        ]
    if not probes:
        return ["How well its features show disease was not measured: that needs labelled images."]
    better = sum(pair.better for pair in probes)
    worse = sum(pair.high < 0 for pair in probes)
    count = f"The features beat the untrained encoder's in {better} of {many(len(probes), 'probe')}"
    line = f"{count}, beyond the interval of the difference{f'; they are worse in {worse}' if worse else ''}."
    linear = [pair for pair in probes if pair.trained.kind == "linear"]
    left = len(linear) - _IN_WORDS
    more = (
        [f"{many(left, 'other linear probe')} and the k-NN probes are in the table below."]
        if left > 0
        else []
    )
    return [line, *(in_words(pair) for pair in linear[:_IN_WORDS]), *more]


def in_words(pair: Comparison) -> str:
    """Describe a probe to a reader who does not know what an AUROC is."""
    trained, untrained = pair.trained, pair.untrained
    right, low, high, before = (
        f"{100 * value:.0f}" for value in (trained.auroc, trained.low, trained.high, untrained.auroc)
    )
    return (
        f"Of an image with {trained.label} and one without ({trained.cohort}), a {trained.kind} probe picks the "
        f"right one {right} times in 100 (95\u00a0% interval {low} to {high}), on the untrained encoder {before} "
        "times; guessing gives 50."
    )


def _compared(record: Record) -> list[str]:
    if record.scores:
        return _scored(record.scores)
    if record.words.task and record.status.state != "finished":
        return ["Not measured yet: a simulation also trains each site alone at its end, a server does not."]
    return [
        "Not measured: no site was also trained alone, to compare with; a simulation does that with --alone some, "
        "or all."
    ]


def _scored(scores: Sequence[SiteScore]) -> list[str]:
    """Describe a model's figure, or an encoder's linear probes; the table has the others."""
    told = [score for score in scores if score.figure != "k-NN"]
    thing = scores[0].thing
    measured = [score for score in told if score.gap and score.gap["low"] is not None]
    if not measured:
        return [
            f"Not shown: no site has enough held-out patients to compare its own {thing} with the federation's."
        ]
    by_patients = {
        where: [score for score in measured if score.where == where] for where in (runs.OWN, runs.EVERYBODY)
    }
    lines = [_verdicts(each, where) for where, each in by_patients.items() if each]
    if own := [score.site for score in by_patients[runs.OWN] if score.worse]:
        lines.append(
            f"Give {', '.join(own)} the {thing}s of their own, in the folder alone, not the federation's."
        )
    return lines


def _verdicts(scores: Sequence[SiteScore], where: str) -> str:
    better, worse = sum(score.better for score in scores), sum(score.worse for score in scores)
    even = len(scores) - better - worse
    whose = "the site's own" if where == runs.OWN else "all sites'"
    by = f", by linear probes on {whose} held-out patients," if scores[0].thing == "encoder" else ""
    gaps = ", ".join(f"{score.site} {score.gap['value']:+.3f}" for score in scores[:_NAMED] if score.gap)
    line = (
        f"The federation's {scores[0].thing} is{by} better than a site's own at {better} of "
        f"{many(len(scores), 'site')}, worse at {worse}, beyond the interval of the difference"
    )
    if scores[0].thing == "encoder":
        line += f" ({gaps.replace('-', chr(0x2212))})"
    return f"{line}; {even} have too few patients to show a difference." if even else f"{line}."


def _sent(rounds: Sequence[Mapping[str, Any]]) -> str:
    measured = [row for row in rounds if "bytes_up" in row and "bytes_down" in row]
    if not measured:
        return ""
    up, down = (float(np.median([row[way] for row in measured])) / 1e6 for way in ("bytes_up", "bytes_down"))
    return f"In the median round {up:,.1f} MB came from all sites together, and {down:,.1f} MB went to them."


def _trouble(record: Record) -> list[str]:
    sites = record.sites
    bad = sites[sites["outcome"] != FOLDED]
    status = record.status
    early = [f"{_ended_early(status)}; the reason is given above."] if status.state in _ENDED_EARLY else []
    if bad.empty:
        nothing = "Nothing: no site was absent and no update was refused."
        return early or [nothing if len(sites) else "Nothing yet: no site has taken part in a round."]
    missed = bad.groupby("site").size().sort_values(ascending=False, kind="stable")
    lines = []
    for name in missed.index[:_NAMED]:
        rows = bad[bad["site"] == name]
        asked = int((sites["site"] == name).sum())
        last = rows.iloc[-1]
        reason = "" if pd.isna(last["reason"]) else str(last["reason"])
        why = f"{last['outcome']}{': ' if reason else ''}{reason}"
        lines.append(f"{name} did not take part in {len(rows)} of {many(asked, 'attempt')} (last: {why}).")
    if len(missed) > _NAMED:
        lines.append(
            f"{many(len(missed) - _NAMED, 'other site')} missed some too; the table below lists all."
        )
    counts = bad.groupby("outcome").size()
    listed = ", ".join(f"{outcome}: {many(int(number), 'time')}" for outcome, number in counts.items())
    return [*early, f"Not every site took part in every round ({listed}).", *lines]


def mean_loss(folded: pd.DataFrame) -> "pd.Series[float]":
    """Return the sites' mean loss by round, weighted by their images."""
    rows = folded.dropna(subset=["loss"])
    weight = rows["images"].fillna(1).clip(lower=1).astype(float)
    total = (rows["loss"].astype(float) * weight).groupby(rows["round"]).sum()
    return total / weight.groupby(rows["round"]).sum()


def held_out(rounds: Sequence[Mapping[str, Any]]) -> "pd.Series[float]":
    """Return the loss on held-out images by round, where it was measured."""
    found = {int(row["round"]): row.get("held_out_loss") for row in rounds}
    return pd.Series(
        {number: float(loss) for number, loss in sorted(found.items()) if loss is not None}, dtype=float
    )


def many(number: int, thing: str) -> str:
    """Return a number and its noun: "1 site", "2 sites"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def verdict(low: float | None, high: float | None) -> str:
    """Return in words what a difference's interval shows."""
    if low is None or high is None:
        return "not measured"
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"
