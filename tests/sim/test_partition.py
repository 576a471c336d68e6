"""Virtual sites: every patient group in exactly one, sources apart, the same from the same seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from caches import make_cache

from sim.partition import METHODS, Groups, PartitionError, groups_of, partition
from sscxr.data.cache.cache import Cache, open_cache
from sscxr.federation.wire import check_name

SOURCES = ("north", "south")


def groups(
    counts: dict[str, int], *, seed: int = 0, names: Callable[[int], str] = "g{:05d}".format
) -> Groups:
    """So many groups of each source, of 1 to 4 images and one of three classes."""
    rng, total = np.random.default_rng(seed), sum(counts.values())
    images = rng.integers(1, 5, total)
    return Groups(
        names=np.array([names(number) for number in range(total)]),
        images=images,
        training=np.where(rng.random(total) < 0.2, 0, images),
        source=rng.permutation([source for source, count in counts.items() for _ in range(count)]),
        kind=rng.integers(0, 3, total),
    )


def cut(which: Groups, method: str, sites: int, *, minimum: int = 5, seed: int = 0, alpha: float = 0.5):  # type: ignore[no-untyped-def]
    return partition(which, method, sites, alpha=alpha, minimum=minimum, seed=seed)


def homes(which: Groups, parts: dict[str, list[str]]) -> list[str]:
    """Each group's site, in the groups' order."""
    home = {group: site for site, members in parts.items() for group in members}
    return [home[name] for name in which.names]


def training(which: Groups, members: list[str]) -> int:
    return int(which.training[np.isin(which.names, members)].sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sites", [2, 3, 7])
def test_every_group_is_in_exactly_one_site(method: str, sites: int) -> None:
    which = groups({"north": 120, "south": 60})
    parts = cut(which, method, sites)
    assert len(parts) == sites
    dealt = [group for members in parts.values() for group in members]
    assert sorted(dealt) == sorted(which.names)
    assert all(training(which, members) >= 5 for members in parts.values())
    assert all(check_name(name, "site") for name in parts)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_parts_and_another_others(method: str) -> None:
    which = groups({"north": 120, "south": 60})
    assert cut(which, method, 4) == cut(which, method, 4)
    assert (cut(which, method, 4) == cut(which, method, 4, seed=1)) == (method == "natural")


@pytest.mark.parametrize("method", METHODS)
def test_groups_keep_their_order_within_a_site(method: str) -> None:
    which = groups({"north": 120, "south": 60})
    for members in cut(which, method, 4).values():
        assert members == sorted(members)


# ---- natural


def test_natural_keeps_sources_apart_and_cuts_the_largest() -> None:
    which = groups({"north": 120, "south": 60})
    parts = cut(which, "natural", 4)
    assert list(parts) == ["north-1", "north-2", "north-3", "south"]
    for site, source in zip(homes(which, parts), which.source, strict=True):
        assert site.split("-")[0] == source
    sizes = [which.images[np.isin(which.names, members)].sum() for members in parts.values()]
    assert max(sizes[:3]) - min(sizes[:3]) <= 4, "cut evenly, up to one group"


def test_natural_with_as_many_sites_as_sources_cuts_none() -> None:
    assert list(cut(groups({"b": 20, "a": 30}), "natural", 2)) == ["a", "b"]


@pytest.mark.parametrize("number", range(12))
def test_of_two_sources_alike_in_size_the_first_by_name_is_cut(number: int) -> None:
    """Not the first in a set's order, which differs from process to process."""
    names = f"a{number * 7919}", f"b{number * 104729}"
    which = groups({names[0]: 20, names[1]: 20})
    which.images[:] = 1
    assert list(cut(which, "natural", 3)) == [f"{names[0]}-1", f"{names[0]}-2", names[1]]


def test_sources_whose_names_become_alike_stay_apart() -> None:
    which = groups({"St Mary": 20, "St-Mary": 20, "St_Mary": 20, "  ": 20})
    parts = cut(which, "natural", 4)
    assert len(parts) == 4
    for members in parts.values():
        assert len({str(source) for source in which.source[np.isin(which.names, members)]}) == 1
    assert sum(map(len, parts.values())) == 80


def test_a_part_and_a_source_of_its_name_stay_apart() -> None:
    which = groups({"x": 60, "x-1": 20})
    parts = cut(which, "natural", 3)
    assert len(parts) == 3
    assert sum(map(len, parts.values())) == 80


# ---- drawn


def test_iid_sites_are_alike_in_size_and_sources() -> None:
    which = groups({"north": 400, "south": 400})
    for members in cut(which, "iid", 4).values():
        mine = np.isin(which.names, members)
        assert which.images[mine].sum() == pytest.approx(which.images.sum() / 4, abs=4)
        assert (which.source[mine] == "north").mean() == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("method", ["dirichlet", "quantity"])
def test_a_smaller_alpha_skews_more(method: str) -> None:
    which = groups({"north": 1500})

    def skew(alpha: float) -> float:
        spreads = []
        for seed in range(5):
            parts = cut(which, method, 4, minimum=1, seed=seed, alpha=alpha).values()
            shares = np.array(
                [
                    [
                        which.images[np.isin(which.names, members) & (which.kind == kind)].sum()
                        for kind in range(3)
                    ]
                    for members in parts
                ]
            )
            table = (
                shares / shares.sum(axis=0) if method == "dirichlet" else shares.sum(axis=1) / shares.sum()
            )
            spreads.append(float(table.std()))
        return float(np.mean(spreads))

    assert skew(0.3) > 2 * skew(20.0)


def test_the_minimum_is_of_images_that_are_trained_on() -> None:
    which = groups({"north": 60})
    for seed in range(5):
        parts = cut(which, "dirichlet", 4, minimum=15, seed=seed, alpha=1.0)
        assert min(training(which, members) for members in parts.values()) >= 15


# ---- what cannot be cut


@pytest.mark.parametrize(
    ("method", "sites", "minimum", "word"),
    [
        ("natural", 0, 1, "at least 1"),
        ("fair", 2, 1, "'fair' is not known; choose one of: natural, iid, dirichlet, quantity"),
        ("natural", 1, 1, "the data has 2 sources"),
        ("iid", 50, 10, "do not give 50 sites 10 each"),
        ("natural", 2, 60, "source south has"),
        ("dirichlet", 4, 52, "no draw of 200"),
    ],
)
def test_what_cannot_be_cut_is_one_line(method: str, sites: int, minimum: int, word: str) -> None:
    which = groups({"north": 90, "south": 20})
    with pytest.raises(PartitionError, match=word) as error:
        cut(which, method, sites, minimum=minimum)
    assert "\n" not in str(error.value)


# ---- groups of a cache


def cached(folder: Path, salt: str = "", sources: tuple[str, ...] = SOURCES) -> Cache:
    """Forty patients of two images; every fifth is in both sources; one image in ten is a lateral."""
    patients = np.repeat(np.arange(40), 2)
    second = np.arange(80) % 2 == 1
    mixed = patients % 5 == 0
    source = np.where(mixed, np.where(second, "south", "north"), np.where(patients < 25, "north", "south"))
    index = {
        "group": [f"{hash_of(salt, patient):016x}" for patient in patients],
        "source": source,
        "split": (patients * 7 % 40 + 0.5) / 40,
        "view": np.where(np.arange(80) % 10 == 3, "L", "PA"),
        "label:edema": np.where(patients % 3 == 0, 1.0, 0.0),
    }
    make_cache(folder, np.zeros((80, 8, 8), np.uint8), index)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"sources": list(sources)}))
    return open_cache(folder)


def hash_of(salt: str, patient: int) -> int:
    return int(np.random.default_rng([len(salt), patient]).integers(2**62))


def test_a_group_is_counted_whole_and_belongs_to_the_first_listed_source(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    found = groups_of(cache, laterals=True, test_share=0.2)
    assert len(found.names) == len(set(found.names)) == 40
    assert found.images.tolist() == [2] * 40
    held_out = {group for group, out in zip(cache.index["group"], cache.held_out(0.2), strict=True) if out}
    assert set(found.names[found.training == 0]) == held_out
    assert len(held_out) == 8
    both = cache.index.groupby("group")["source"].nunique() == 2
    assert set(found.source[np.isin(found.names, both.index[both])]) == {"north"}
    turned = groups_of(cached(tmp_path / "t", sources=SOURCES[::-1]), laterals=True, test_share=0.2)
    assert set(turned.source[np.isin(turned.names, both.index[both])]) == {"south"}


def test_laterals_are_left_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    found = groups_of(cached(tmp_path), laterals=False, test_share=0.2)
    assert found.images.sum() == 72


@pytest.mark.parametrize("method", METHODS)
def test_the_salt_of_the_names_changes_nothing(tmp_path: Path, method: str) -> None:
    caches = [cached(tmp_path / salt, salt) for salt in ("a", "bb")]
    assert set(caches[0].index["group"]).isdisjoint(caches[1].index["group"])
    rows = []
    for cache in caches:
        parts = cut(groups_of(cache, laterals=True, test_share=0.2), method, 3, minimum=2)
        rows.append({name: cache.index["group"].isin(members).to_list() for name, members in parts.items()})
    assert rows[0] == rows[1]
