"""A partition as a publishable file: the site of each image, by names that others can look up.

    source,image,site,part

`image` is the image's name within a public corpus, known to everybody with the corpus, at any resolution. A
hospital's own images have no such name but the salted hash of the cache, which reveals nothing and is valid in
that cache alone. `part` is train, or test if the patient was set aside.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from sim.partition import Groups, PartitionError, check_minimum
from sscxr import printable
from sscxr.data.corpora import csv_text
from sscxr.printable import PLAIN_NAME

COLUMNS = ("source", "image", "site", "part")


def text(index: pd.DataFrame, held_out: npt.NDArray[np.bool_], parts: Mapping[str, Sequence[str]]) -> str:
    """Return the file's text.

    Args:
        index: the rows of the partition.
        held_out: bool [N], which of them are set aside.
        parts: site -> its patient groups.
    """
    homes = {group: site for site, members in parts.items() for group in members}
    table = pd.DataFrame(
        {
            "source": index["source"],
            "image": _ids(index),
            "site": index["group"].map(homes),
            "part": np.where(held_out, "test", "train"),
        }
    )
    table = table.dropna(subset=["site"]).sort_values(["source", "image"])
    return printable.frame(table, index=False)


def _ids(index: pd.DataFrame) -> "pd.Series[str]":
    return index["public_id"].where(index["public_id"] != "", index["image"])


def read(
    file: Path, index: pd.DataFrame, held_out: npt.NDArray[np.bool_], groups: Groups, minimum: int
) -> tuple[dict[str, list[str]], list[str]]:
    """Assign patient groups to sites by a file.

    The whole group goes to the site that has most of its images; a group without an image in the file is left
    out.

    Args:
        file: in the form of `text`.
        index: the rows to assign.
        held_out: bool [N], which of them are set aside here.
        groups: the patient groups of the rows.
        minimum: training images that each site must have.

    Returns:
        site -> its groups, in the groups' order; and lines about differences between the file and the data.

    Raises:
        PartitionError: the file does not exist or names none of the data, or a site has too few images.
    """
    table = _table(file)
    mine = pd.DataFrame(
        {"source": index["source"], "image": _ids(index), "group": index["group"], "here": held_out}
    )
    met = mine.merge(table, on=["source", "image"], how="left")
    found = met.dropna(subset=["site"])
    if found.empty:
        theirs, ours = (", ".join(sorted(set(one["source"]))[:5]) for one in (table, mine))
        raise PartitionError(
            f"{file}: none of its {len(table):,} rows names an image of the data; it has images of {theirs}, the "
            f"data has {ours}"
        )
    counts = found.groupby(["group", "site"], sort=True).size().reset_index(name="images")
    counts = counts.sort_values(["group", "images", "site"], ascending=[True, False, True])
    home = counts.drop_duplicates("group").set_index("group")["site"]
    sites = sorted(set(home))
    numbers = pd.Series(groups.names).map(home).map({site: number for number, site in enumerate(sites)})
    dealt = numbers.fillna(-1).to_numpy(dtype=np.int64)
    at_home = dealt >= 0
    check_minimum(sites, dealt[at_home], groups.at(at_home), minimum)
    parts = {site: groups.names[dealt == number].tolist() for number, site in enumerate(sites)}
    return parts, _differences(file, table, met, found, home, int((~at_home).sum()))


def _table(file: Path) -> pd.DataFrame:
    with csv_text.reading(file, PartitionError):
        table = csv_text.frame(file).map(printable.plain)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise PartitionError(
            f"{file}: no column {missing[0]!r}; a partition has {', '.join(COLUMNS)}, and here are "
            f"{', '.join(map(str, table.columns[:8]))}"
        )
    again = table.duplicated(["source", "image"])
    if again.any():
        first = table[again].iloc[0]
        raise PartitionError(f"{file}: {first['source']} {first['image']} is there twice")
    bad = next((site for site in sorted(set(table["site"])) if not PLAIN_NAME.fullmatch(site)), None)
    if bad is not None:
        raise PartitionError(
            f"{file}: site {bad[:80]!r}: use 1 to 64 letters, digits, dots, dashes or underscores"
        )
    return table[list(COLUMNS)]


def _differences(
    file: Path,
    table: pd.DataFrame,
    met: pd.DataFrame,
    found: pd.DataFrame,
    home: "pd.Series[str]",
    nowhere: int,
) -> list[str]:
    lines = []
    absent = len(table) - len(found)
    if absent:
        lines.append(f"{absent:,} of the {len(table):,} images of {file.name} are not in the data")
    if nowhere:
        lines.append(f"{nowhere:,} patients of the data are not in {file.name} and at no site")
    moved = int((found["group"].map(home) != found["site"]).sum())
    if moved:
        lines.append(
            f"{moved:,} images went with the rest of their patient to another site than in {file.name}"
        )
    freed = int(((found["part"] == "test") & ~found["here"]).sum())
    kept = int(((found["part"] == "train") & found["here"]).sum())
    if freed or kept:
        lines.append(
            f"{freed:,} images that {file.name} sets aside are trained on here, and {kept:,} the other way round; "
            "give the data.test_share and sim.train_on_test of the run that wrote it"
        )
    return lines
