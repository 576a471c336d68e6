"""Reports published test sets, and whether they were trained on, for the report and the model card."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr.data.corpora import CORPORA


def lines(
    index: pd.DataFrame, held_out: npt.NDArray[np.bool_], groups: Iterable[str] | None = None
) -> list[str]:
    """Return a line for each source with a published test set.

    Args:
        index: of a cache.
        held_out: bool [N], which rows are set aside.
        groups: the groups that sites train on; None: all that are not set aside.
    """
    at_site = np.ones(len(index), bool) if groups is None else index["group"].isin(list(groups)).to_numpy()
    found = []
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
            found.append(f"None of the {count} that {source} published as its test set was trained on.")
    return found
