"""Warns if the site or source alone predicts a label: a model may then learn the site instead."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score

# Expected images of a class, by the odds of all sites, from which on a site with none is reported (ours).
EXPECTED = 5
GIVES_AWAY = 0.8  # AUROC of the place alone from which on a warning is given (ours)
LEAST = 20  # images of either class, below which no warning is given (ours)
SHOWN = 6  # places named in one line

Values = npt.NDArray[np.float64]


def warnings(places: "pd.Series[str]", labels: Mapping[str, Values], what: str = "site") -> list[str]:
    """Return lines for a report: places with a single class of a label, and labels that the place alone predicts.

    Args:
        places: [N], the site, source or hospital of each image.
        labels: name -> [N], 1 present, 0 absent, NaN unknown.
        what: the word for a place.
    """
    single: dict[str, list[str]] = {}
    given: list[str] = []
    for name, values in labels.items():
        known = np.isfinite(values)
        present = values > 0.5
        if min((known & present).sum(), (known & ~present).sum()) < LEAST:
            continue
        table = pd.DataFrame({"place": places[known].to_numpy(), "present": present[known]})
        found = table.groupby("place")["present"].agg(["size", "mean"])
        counts, shares = (found[name].to_numpy(dtype=np.float64) for name in ("size", "mean"))
        overall = float(present[known].mean())
        for place, count, share in zip(found.index, counts, shares, strict=True):
            expected = count * (1 - overall if share == 1 else overall)
            if share in (0, 1) and expected >= EXPECTED:
                with_it = "only images with" if share == 1 else "no image with"
                single.setdefault(f"{with_it} {name}", []).append(str(place))
        area = _auroc(counts, shares)
        if area >= GIVES_AWAY:
            given.append(f"{name} ({area:.2f})")
    lines = []
    for kind, alike in single.items():
        more = f" and {len(alike) - SHOWN} more" if len(alike) > SHOWN else ""
        verb = "has" if len(alike) == 1 else "have"
        lines.append(f"Single-class {what}s: {', '.join(alike[:SHOWN])}{more} {verb} {kind}.")
    if given:
        lines.append(
            f"The {what} gives the label away: it alone predicts {', '.join(given)} (AUROC). A model may "
            f"learn the {what} and not the disease: evaluate it within each {what}, or on others."
        )
    return lines


def _auroc(counts: Values, shares: Values) -> float:
    """Return the area under the ROC curve with each place's share as the score of its images."""
    present = np.repeat([True, False], len(shares))
    weights = np.concatenate([counts * shares, counts * (1 - shares)])
    return float(roc_auc_score(present, np.tile(shares, 2), sample_weight=weights))
