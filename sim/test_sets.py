"""Reports published test sets, and whether they were trained on, for the report and the model card."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.data.corpora import CORPORA


def lines(
    index: pd.DataFrame, held_out: npt.NDArray[np.bool_], groups: Iterable[str] | None = None
) -> list[str]:
    """Return a line for each source whose published test set was trained on, and one line for all others.

    Args:
        index: of a cache.
        held_out: bool [N], which rows are set aside.
        groups: the groups that sites train on; None: all that are not set aside.
    """
    at_site = np.ones(len(index), bool) if groups is None else index["group"].isin(list(groups)).to_numpy()
    found: list[str] = []
    kept: dict[str, int] = {}
    for source in sorted(set(index["source"])):
        parts = CORPORA[source].held_out if source in CORPORA else ("test",)
        mine = ((index["source"] == source) & index["published"].isin(parts)).to_numpy()
        trained = int((mine & ~held_out & at_site).sum())
        count = f"{int(mine.sum()):,} image{'s' if mine.sum() != 1 else ''}"
        if trained:
            found.append(
                f"{trained:,} of the {count} that {source} published as its test set were trained on, as asked "
                "for: figures on that set are not figures on unseen patients."
            )
        elif mine.any():
            kept[source] = int(mine.sum())
    if kept:
        names, whose = ", ".join(kept), "its test set was" if len(kept) == 1 else "their test sets was"
        total = f"{sum(kept.values()):,} image{'s' if sum(kept.values()) != 1 else ''}"
        found.append(f"None of the {total} that {names} published as {whose} trained on.")
    return found
