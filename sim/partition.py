"""Cutting a cache into virtual sites: always by patient group, reproducible from a seed.

A group that is found in several sources belongs to the first one listed. Wherever an order of groups matters it
is that of their `split` values, which do not depend on the salt of the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from sscxr import seeds
from sscxr.data.cache import LABEL_PREFIX, Cache
from sscxr.errors import SscxrError
from sscxr.ranges import CHOICES

METHODS = CHOICES["sim.partition"]
_DRAWS = 200  # tries at a random partition in which every site has its minimum


class PartitionError(SscxrError):
    """A partition that cannot be made: one line that says why and what to do."""


@dataclass(frozen=True)
class Groups:
    """The patient groups of a cache, in an order that depends on the images alone.

    Attributes:
        names: the groups.
        images: how many usable images each has.
        training: how many of these are trained on.
        source: the source each belongs to.
        kind: a class for each: its labels' majority, for label skew.
    """

    names: npt.NDArray[np.str_]
    images: npt.NDArray[np.int64]
    training: npt.NDArray[np.int64]
    source: npt.NDArray[np.str_]
    kind: npt.NDArray[np.int64]


def groups_of(cache: Cache, *, laterals: bool, test_share: float) -> Groups:
    """Gather a cache's usable images by patient group."""
    rows = cache.rows(laterals=laterals)
    index = cache.index.iloc[rows]
    order = {source: place for place, source in enumerate(cache.summary.get("sources", []))}
    table = pd.DataFrame(
        {
            "group": index["group"].to_numpy(),
            "split": index["split"].to_numpy(),
            "training": ~cache.held_out(test_share)[rows],
            "source": index["source"].to_numpy(),
            "rank": [order.get(source, len(order)) for source in index["source"]],
            "kind": _kinds(cache)[rows],
        }
    ).sort_values(["split", "group", "rank"], kind="stable")
    grouped = table.groupby("group", sort=False)
    return Groups(
        names=grouped["group"].first().to_numpy(dtype=str),
        images=np.asarray(grouped.size(), dtype=np.int64),
        training=np.asarray(grouped["training"].sum(), dtype=np.int64),
        source=grouped["source"].first().to_numpy(dtype=str),
        kind=np.asarray(grouped["kind"].agg(lambda values: values.mode().iloc[0]), dtype=np.int64),
    )


def _kinds(cache: Cache) -> npt.NDArray[np.int64]:
    """A class for each image: the first of its labels that is present, or none."""
    columns = [LABEL_PREFIX + label for label in cache.labels]
    if not columns:
        return np.zeros(len(cache), dtype=np.int64)
    present = cache.index[columns].to_numpy(dtype=np.float64) > 0.5
    return np.where(present.any(axis=1), present.argmax(axis=1), len(columns)).astype(np.int64)


def partition(
    groups: Groups, method: str, sites: int, *, alpha: float, minimum: int, seed: int
) -> dict[str, list[str]]:
    """Give every group to one virtual site.

    Args:
        method: one of `METHODS`. natural: each source apart, the largest cut further until there are enough
            sites; iid: at random; dirichlet: each label's share drawn by site; quantity: sizes drawn.
        alpha: of the Dirichlet draws.
        minimum: images that each site must have to train on.

    Returns:
        site -> its groups, in the groups' order.

    Raises:
        PartitionError: an unknown method, fewer sites than sources for `natural`, or too few images.
    """
    if sites < 1:
        raise PartitionError(f"{sites} sites: ask for at least 1")
    if method not in METHODS:
        raise PartitionError(f"partition {method!r} is not known; there are: {', '.join(METHODS)}")
    if groups.training.sum() < sites * minimum:
        raise PartitionError(
            f"{groups.training.sum()} images to train on do not give {sites} sites {minimum} each "
            "(privacy.min_cell); use more data or fewer sites"
        )
    rng = np.random.default_rng(seeds.derive(seed, "partition", method))
    if method == "natural":
        names, home = _natural(groups, sites)
        _check_minimum(names, home, groups, minimum)
    else:
        names = [f"site-{number}" for number in range(1, sites + 1)]
        home = _redrawn(_DEALS[method], groups, sites, alpha, minimum, rng)
    return {name: groups.names[home == number].tolist() for number, name in enumerate(names)}


def _natural(groups: Groups, sites: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    sizes = {source: int(groups.images[groups.source == source].sum()) for source in set(groups.source)}
    sources = sorted(sizes, key=lambda source: (-sizes[source], source))
    if len(sources) > sites:
        raise PartitionError(
            f"the data has {len(sources)} sources and natural keeps each apart: ask for at least "
            f"{len(sources)} sites, or for sim.partition=iid"
        )
    parts = dict.fromkeys(sources, 1)
    for _ in range(sites - len(sources)):
        largest = max(sources, key=lambda source: sizes[source] / parts[source])
        parts[largest] += 1
    names: list[str] = []
    home = np.zeros(len(groups.names), dtype=np.int64)
    for source in sorted(sources):
        mine = np.flatnonzero(groups.source == source)
        home[mine] = len(names) + _fill(groups.images[mine], np.full(parts[source], 1 / parts[source]))
        count = parts[source]
        names += [_plain(source)] if count == 1 else [f"{_plain(source)}-{n}" for n in range(1, count + 1)]
    return _distinct(names), home


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, the later of two that are alike (sources `A B` and `A-B`) told apart."""
    found: dict[str, None] = {}
    for name in names:
        number, told = 1, name
        while told in found:
            number += 1
            told = f"{name}.{number}"
        found[told] = None
    return list(found)


def _plain(source: str) -> str:
    """A source's name as a site's name."""
    kept = "".join(
        letter if (letter.isascii() and letter.isalnum()) or letter in "._-" else "-" for letter in source
    )
    return kept.strip("._-")[:50] or "source"


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
    """Each class is dealt by shares of its own (Hsu et al., arXiv 1909.06335)."""
    home = np.zeros(len(groups.names), dtype=np.int64)
    for kind in np.unique(groups.kind):
        members = np.flatnonzero(groups.kind == kind)
        home[members] = _shuffled(groups.images[members], rng.dirichlet(np.full(sites, alpha)), rng)
    return home


_DEALS: dict[str, Deal] = {"iid": _iid, "quantity": _quantity, "dirichlet": _dirichlet}


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


def _check_minimum(names: Sequence[str], home: npt.NDArray[np.int64], groups: Groups, minimum: int) -> None:
    for name, count in zip(names, _training(home, groups, len(names)), strict=True):
        if count < minimum:
            raise PartitionError(
                f"source {name} has {int(count)} images to train on, below privacy.min_cell={minimum}; "
                "leave it out, lower the minimum, or use sim.partition=iid"
            )
