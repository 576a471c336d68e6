"""The holdings of each virtual site: a table and a picture, to check before training."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from sim import confounding
from sim.partition import CHILD_BANDS, apart
from sscxr.data.cache.cache import LABEL_PREFIX, LATERAL_VIEWS
from sscxr.report.svg import COLOURS
from sscxr.runs import natural

MAX_DRAWN = 80  # sites; more are illegible
MAX_FIGURES = 32  # sites; with more, figures are left out
MOST_SOURCES = len(COLOURS)


def homes(index: pd.DataFrame, parts: Mapping[str, Sequence[str]]) -> "pd.Series[str]":
    """Return the site of every row, empty for rows without one."""
    known = {group: site for site, members in parts.items() for group in members}
    return index["group"].map(known).fillna("").astype(str)


def table(index: pd.DataFrame, held_out: npt.NDArray[np.bool_], site: "pd.Series[str]") -> pd.DataFrame:
    """Return one row per site: images and patients, those set aside, views, sex, age, `NAME present`, `NAME known`.

    Args:
        index: the rows of the partition.
        held_out: bool [N], which are set aside.
        site: [N], from `homes`.
    """
    rows = pd.DataFrame(
        {"site": site, "group": index["group"], "images": 1, "held out": held_out.astype(int)}
    )
    rows["lateral"] = index["view"].isin(LATERAL_VIEWS).astype(int)
    for name in ("F", "M"):
        rows[name] = (index["sex"] == name).astype(int)
    rows["children"] = index["age_band"].isin(CHILD_BANDS).astype(int)
    rows["age unknown"] = (index["age_band"] == "").astype(int)
    for column in [name for name in index.columns if name.startswith(LABEL_PREFIX)]:
        label = column.removeprefix(LABEL_PREFIX)
        values = index[column].to_numpy(dtype=np.float64)
        rows[f"{label} present"] = (values > 0.5).astype(int)
        rows[f"{label} known"] = np.isfinite(values).astype(int)
    rows = rows[rows["site"] != ""]
    grouped = rows.groupby("site", sort=True)
    sums = grouped.sum(numeric_only=True)
    sums.insert(1, "patients", grouped["group"].nunique())
    return sums.loc[sorted(sums.index, key=natural)]


def warnings(index: pd.DataFrame, held_out: npt.NDArray[np.bool_], site: "pd.Series[str]") -> list[str]:
    """Return warnings if the site, source or hospital predicts a label of the training images."""
    rows = (~held_out) & (site != "").to_numpy()
    labels = {
        name.removeprefix(LABEL_PREFIX): index[name].to_numpy(dtype=np.float64)[rows]
        for name in index.columns
        if name.startswith(LABEL_PREFIX)
    }
    lines = confounding.warnings(site[rows], labels, "site")
    origin = apart(index, "hospital")[rows]
    if origin.nunique() > 1 and not lines:
        lines = confounding.warnings(origin, labels, "source")
    return lines


def picture(index: pd.DataFrame, site: "pd.Series[str]", counts: pd.DataFrame) -> bytes:
    """Return a PNG of images by site and source, and of how common each label is at each site, among known ones."""
    names = counts.sort_values("images", ascending=False).index[:MAX_DRAWN]
    labels = [name.removesuffix(" known") for name in counts.columns if name.endswith(" known")]
    labels = [name for name in labels if counts[f"{name} present"].sum()]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        height = 1.6 + 0.24 * len(names)
        wide = 5.5 + (1.6 + 0.32 * len(labels) if labels else 0)
        figure = Figure(figsize=(wide, height), dpi=110, layout="constrained")
        axes = figure.subplots(1, 2 if labels else 1, squeeze=False, sharey=True)[0]
        _draw_sizes(axes[0], index, site, names, counts)
        if labels:
            _draw_labels(axes[1], counts.loc[names], labels)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _draw_sizes(
    axes: "matplotlib.axes.Axes",
    index: pd.DataFrame,
    site: "pd.Series[str]",
    names: "pd.Index[str]",
    counts: pd.DataFrame,
) -> None:
    by_source = pd.crosstab(site, index["source"]).reindex(names)
    common = by_source.sum().sort_values(ascending=False).index
    shown = by_source[common[: MOST_SOURCES - (len(common) > MOST_SOURCES)]].copy()
    if len(common) > MOST_SOURCES:
        shown["other"] = by_source.sum(axis=1) - shown.sum(axis=1)
    left = np.zeros(len(names))
    for number, source in enumerate(shown.columns):
        width = shown[source].to_numpy(dtype=np.float64)
        axes.barh(
            np.arange(len(names)), width, left=left, color=COLOURS[number], label=str(source), height=0.8
        )
        left += width
    for place, name in enumerate(names):
        axes.text(left[place], place, f" {int(counts['images'][name]):,}", va="center", fontsize=7)
    axes.set_yticks(np.arange(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, left.max() * 1.18)
    axes.set_xlabel("images, trained on and set aside")
    axes.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _draw_labels(axes: "matplotlib.axes.Axes", counts: pd.DataFrame, labels: Sequence[str]) -> None:
    present = counts[[f"{name} present" for name in labels]].to_numpy(dtype=np.float64)
    known = counts[[f"{name} known" for name in labels]].to_numpy(dtype=np.float64)
    shares = np.where(known > 0, present / np.maximum(known, 1), np.nan)
    axes.set_facecolor("#dddddd")  # unknown
    shown = axes.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="Blues")
    for row, column in np.ndindex(shares.shape) if len(shares) <= MAX_FIGURES else ():
        if np.isfinite(shares[row, column]):
            dark = shares[row, column] > 0.6
            axes.text(
                column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=5.5,
                color="white" if dark else "black",
            )  # fmt: skip
    axes.set_xticks(
        np.arange(len(labels)), [name.replace("_", " ") for name in labels], rotation=60, ha="left"
    )
    axes.xaxis.tick_top()
    axes.set_xlabel("share of the images with it; grey: unknown")
    axes.figure.colorbar(shown, ax=axes, shrink=0.5, format="{x:.0%}")
