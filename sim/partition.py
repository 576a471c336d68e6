"""Divides a cache into virtual sites, always by patient group, reproducible from a seed.

A group in several sources belongs to the first one listed; a group in several hospitals, age groups and so on
belongs where most of its images are. If the order of groups matters, it is that of their `split` values, which do
not depend on the salt of the cache.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr import seeds
from sscxr.config.schema import PARTITIONS
from sscxr.data.cache.cache import LABEL_PREFIX, Cache
from sscxr.errors import SscxrError

METHODS = tuple(method for method in PARTITIONS if method != "file")
CHILD_BANDS, UNKNOWN = ("0-4", "5-17", "paediatric"), "unknown"
_DRAWS = 200  # attempts at a random partition in which every site has its minimum


class PartitionError(SscxrError):
    """An impossible partition; one line states why and what to do."""


@dataclass(frozen=True)
class Groups:
    """The patient groups of a cache, in an order that depends on the images alone.

    Attributes:
        names: the groups.
        images: each group's number of usable images.
        training: how many of these are trained on.
        source: each group's source.
        kind: each group's class, its labels' majority, for label skew.
    """

    names: npt.NDArray[np.str_]
    images: npt.NDArray[np.int64]
    training: npt.NDArray[np.int64]
    source: npt.NDArray[np.str_]
    kind: npt.NDArray[np.int64]

    def at(self, rows: npt.NDArray[Any]) -> "Groups":
        """Return some of the groups, by their indices or by bool [N]."""
        return Groups(*(values[rows] for values in vars(self).values()))


def groups_of(
    cache: Cache, *, laterals: bool, test_share: float, by: str = "source", label: str | None = None
) -> Groups:
    """Gather a cache's usable images by patient group.

    Args:
        by: what `natural` divides by: source, hospital, age, sex or view.
        label: the label that the Dirichlet draws are over; None: the first of an image's labels that is present.

    Raises:
        PartitionError: the cache does not have the label.
    """
    rows = cache.rows(laterals=laterals)
    sources = list(cache.summary.get("sources", []))
    return gathered(cache.index.iloc[rows], ~cache.held_out(test_share)[rows], sources, by=by, label=label)


def gathered(
    index: pd.DataFrame,
    training: npt.NDArray[np.bool_],
    sources: Sequence[str] = (),
    *,
    by: str = "source",
    label: str | None = None,
) -> Groups:
    """Gather the patient groups of an index, or of a planned one; see `groups_of`.

    Args:
        index: `group`, `split`, `source` and the columns for `by` and the labels.
        training: bool [N], which rows may be trained on.
        sources: in the order they were listed.
    """
    found, seen = pd.factorize(index["group"])
    first = np.unique(found, return_index=True)[1]
    order = np.lexsort((np.asarray(seen, dtype=str), index["split"].to_numpy(dtype=np.float64)[first]))
    rank = np.empty(len(seen), dtype=np.int64)
    rank[order] = np.arange(len(seen))
    codes, names = rank[found], np.asarray(seen, dtype=str)[order]
    values = apart(index, by)
    known = [*dict.fromkeys([*(sources if by == "source" else ()), *sorted(set(values))])]
    numbers = {value: place for place, value in enumerate(known)}
    places = np.asarray(values.map(numbers), dtype=np.int64)
    if by == "source":
        home = np.full(len(names), len(known), dtype=np.int64)
        np.minimum.at(home, codes, places)
    else:
        home = _commonest(codes, places, len(known))
    kinds = _kinds(index, label)
    return Groups(
        names=names,
        images=np.bincount(codes, minlength=len(names)).astype(np.int64),
        training=np.bincount(codes, weights=training, minlength=len(names)).astype(np.int64),
        source=np.asarray(known, dtype=str)[home] if len(names) else np.array([], dtype=str),
        kind=_commonest(codes, kinds, int(kinds.max(initial=0)) + 1),
    )


def apart(index: pd.DataFrame, by: str) -> "pd.Series[str]":
    """Return what `natural` divides by, for every row: its source, hospital or machine, age group, sex or view."""
    if by == "source":
        return index["source"].astype(str)
    if by == "hospital":
        known = index["hospital"] != ""
        return (index["source"] + " " + index["hospital"]).where(known, index["source"]).astype(str)
    if by == "age":
        band = index["age_band"]
        ages = pd.Series(np.where(band.isin(CHILD_BANDS), "children", "adults"), index=index.index)
        return ages.where(band != "", f"{UNKNOWN} age")
    return index[by].where(index[by] != "", f"{UNKNOWN} {by}").astype(str)


def _commonest(
    codes: npt.NDArray[np.int64], values: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.int64]:
    """Return the commonest value of each group, the smallest of several; groups are 0 to the largest code."""
    pairs, often = np.unique(codes * count + values, return_counts=True)
    groups, found = pairs // count, pairs % count
    order = np.lexsort((found, -often, groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.asarray(found[order][first], dtype=np.int64)


def _kinds(index: pd.DataFrame, label: str | None) -> npt.NDArray[np.int64]:
    """Return each image's class: present, absent or unknown for one label; or the first present label, or none."""
    columns = [name for name in index.columns if name.startswith(LABEL_PREFIX)]
    if label is not None:
        if LABEL_PREFIX + label not in columns:
            known = ", ".join(name.removeprefix(LABEL_PREFIX) for name in columns) or "none"
            raise PartitionError(f"sim.label={label!r}: the data has no such label; its labels: {known}")
        values = index[LABEL_PREFIX + label].to_numpy(dtype=np.float64)
        return np.where(np.isnan(values), 2, values > 0.5).astype(np.int64)
    if not columns:
        return np.zeros(len(index), dtype=np.int64)
    present = index[columns].to_numpy(dtype=np.float64) > 0.5
    return np.where(present.any(axis=1), present.argmax(axis=1), len(columns)).astype(np.int64)


def partition(
    groups: Groups, method: str, sites: int, *, alpha: float, minimum: int, seed: int
) -> dict[str, list[str]]:
    """Assign every group to a virtual site.

    Args:
        method: one of `METHODS`. natural: each source is a site, and the largest are divided further until there
            are enough; natural-dirichlet: the same, each label's share drawn by part of a source; iid: at random;
            dirichlet: each label's share drawn by site; quantity: sizes drawn.
        alpha: of the Dirichlet draws.
        minimum: training images that each site must have.

    Returns:
        site -> its groups, in the groups' order.

    Raises:
        PartitionError: an unknown method, fewer sites than sources for `natural`, or too few images.
    """
    if sites < 1:
        raise PartitionError(f"{sites} sites: ask for at least 1")
    if method not in METHODS:
        raise PartitionError(f"partition {method!r} is not known; choose one of: {', '.join(METHODS)}")
    if groups.training.sum() < sites * minimum:
        raise PartitionError(
            f"{groups.training.sum()} images to train on do not give {sites} sites {minimum} each "
            "(privacy.min_cell); use more data or fewer sites"
        )
    rng = np.random.default_rng(seeds.derive(seed, "partition", method))
    names = [f"site-{number}" for number in range(1, sites + 1)]
    if method.startswith("natural"):
        names = _names(_parts(groups, sites))
    if method == "natural":
        home = _natural(_evenly, groups, sites, alpha, rng)
        check_minimum(names, home, groups, minimum)
    else:
        home = _redrawn(_DEALS[method], groups, sites, alpha, minimum, rng)
    return {name: groups.names[home == number].tolist() for number, name in enumerate(names)}


def _parts(groups: Groups, sites: int) -> dict[str, int]:
    """Return into how many sites each source is divided, by the sources' names."""
    sizes = {source: int(groups.images[groups.source == source].sum()) for source in set(groups.source)}
    sources = sorted(sizes, key=lambda source: (-sizes[source], source))
    if len(sources) > sites:
        raise PartitionError(
            f"the data has {len(sources)} sources (or groups by sim.by) and natural keeps each apart: ask for "
            f"at least {len(sources)} sites, or for sim.partition=iid"
        )
    parts = dict.fromkeys(sources, 1)
    for _ in range(sites - len(sources)):
        largest = max(sources, key=lambda source: sizes[source] / parts[source])
        parts[largest] += 1
    return dict(sorted(parts.items()))


def _names(parts: dict[str, int]) -> list[str]:
    """Return the sites' names: the source's, numbered if it is divided."""
    names: list[str] = []
    for source, count in parts.items():
        plain = _plain(source)
        names += [plain] if count == 1 else [f"{plain}-{number}" for number in range(1, count + 1)]
    return _distinct(names)


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, with duplicates (from sources `A B` and `A-B`) made distinct."""
    found: dict[str, None] = {}
    for name in names:
        number, distinct = 1, name
        while distinct in found:
            number += 1
            distinct = f"{name}.{number}"
        found[distinct] = None
    return list(found)


def _plain(source: str) -> str:
    """Return a source's name in the form of a site's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", source).strip("._-")[:50] or "source"


def _fill(images: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Deal groups in their order, each to the part that is furthest below its share of the images."""
    wanted = shares * images.sum()
    home = np.zeros(len(images), dtype=np.int64)
    held = np.zeros(len(shares))
    for number, count in enumerate(images):
        part = int(np.argmax((wanted - held) / np.maximum(wanted, 1e-9)))
        home[number] = part
        held[part] += count
    return home


Deal = Callable[[Groups, int, float, np.random.Generator], npt.NDArray[np.int64]]


def _iid(groups: Groups, sites: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return _shuffled(groups.images, np.full(sites, 1 / sites), rng)


def _quantity(groups: Groups, sites: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return _shuffled(groups.images, rng.dirichlet(np.full(sites, alpha)), rng)


def _dirichlet(groups: Groups, sites: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Deal each class by its own shares (Hsu et al., arXiv 1909.06335)."""
    home = np.zeros(len(groups.names), dtype=np.int64)
    for kind in np.unique(groups.kind):
        members = np.flatnonzero(groups.kind == kind)
        home[members] = _shuffled(groups.images[members], rng.dirichlet(np.full(sites, alpha)), rng)
    return home


def _evenly(groups: Groups, sites: int, alpha: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return _fill(groups.images, np.full(sites, 1 / sites))


def _natural(
    deal: Deal, groups: Groups, sites: int, alpha: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Deal each source to its own sites."""
    home, before = np.zeros(len(groups.names), dtype=np.int64), 0
    for source, count in _parts(groups, sites).items():
        mine = groups.source == source
        home[mine] = before + deal(groups.at(mine), count, alpha, rng)
        before += count
    return home


_DEALS: dict[str, Deal] = {
    "iid": _iid,
    "quantity": _quantity,
    "dirichlet": _dirichlet,
    "natural-dirichlet": partial(_natural, _dirichlet),
}


def _shuffled(
    images: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    order = rng.permutation(len(images))
    home = np.zeros(len(images), dtype=np.int64)
    home[order] = _fill(images[order], shares)
    return home


def _redrawn(
    deal: Deal, groups: Groups, sites: int, alpha: float, minimum: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    for _ in range(_DRAWS):
        home = deal(groups, sites, alpha, rng)
        if _training(home, groups, sites).min() >= minimum:
            return home
    raise PartitionError(
        f"no draw of {_DRAWS} gave each of {sites} sites {minimum} images; raise sim.alpha={alpha}, "
        "or use fewer sites or more data"
    )


def _training(home: npt.NDArray[np.int64], groups: Groups, sites: int) -> npt.NDArray[np.float64]:
    return np.bincount(home, weights=groups.training, minlength=sites).astype(np.float64)


def check_minimum(names: Sequence[str], home: npt.NDArray[np.int64], groups: Groups, minimum: int) -> None:
    """Refuse a site with fewer images to train on than the minimum."""
    for name, count in zip(names, _training(home, groups, len(names)), strict=True):
        if count < minimum:
            raise PartitionError(
                f"source {name} has {int(count)} images to train on, below privacy.min_cell={minimum}; "
                "leave it out, lower the minimum, or use sim.partition=iid"
            )
