"""The median and the trimmed mean over sites: definition, order, no trace on the disk, and one hostile site."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from server import robust
from server.aggregate import FoldError
from sscxr.federation.codecs import CHUNK

LIKE = {"w": torch.zeros(CHUNK // 64, 65), "b": torch.zeros(3)}  # more than one block


def update(seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(like.shape, generator=source) * 0.1 for name, like in LIKE.items()}


def averaged(rule: str, folder: Path, updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = robust.total(rule, LIKE, folder)
    for number, one in enumerate(updates):
        total.add(one, 1 + number)
    return total.mean()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_they_are_numpys(tmp_path: Path, count: int) -> None:
    updates = [update(seed) for seed in range(count)]
    for name in LIKE:
        values = np.stack([one[name].double().numpy() for one in updates])
        median = averaged("median", tmp_path, updates)[name]
        np.testing.assert_allclose(median.numpy(), np.median(values, axis=0), rtol=1e-6, atol=1e-9)
        ordered, drop = np.sort(values, axis=0), count // 4
        trimmed = averaged("trimmed", tmp_path, updates)[name]
        expected = ordered[drop : count - drop].mean(axis=0)
        np.testing.assert_allclose(trimmed.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert not list(tmp_path.iterdir()), "an update has no name on the disk"


@pytest.mark.parametrize("rule", robust.TRIMMED)
def test_the_order_of_replies_changes_no_bit(tmp_path: Path, rule: str) -> None:
    updates = [update(seed) for seed in range(4)]
    first = averaged(rule, tmp_path, updates)
    for order in itertools.permutations(updates):
        again = averaged(rule, tmp_path, list(order))
        assert all(torch.equal(again[name], first[name]) for name in LIKE)


@pytest.mark.parametrize("rule", robust.TRIMMED)
def test_one_hostile_site_of_four_stays_within_what_the_others_sent(tmp_path: Path, rule: str) -> None:
    honest = [update(seed) for seed in range(3)]
    hostile = {name: torch.full(like.shape, 60.0) for name, like in LIKE.items()}
    found = averaged(rule, tmp_path, [*honest, hostile])
    for name in LIKE:
        values = torch.stack([one[name] for one in honest])
        assert bool((found[name] <= values.amax(dim=0)).all())
        assert bool((found[name] >= values.amin(dim=0)).all())
    mean = averaged("mean", tmp_path, [*honest, hostile])
    assert float(mean["b"].min()) > 10, "what it does to the mean"


def test_a_value_out_of_range_is_not_added(tmp_path: Path) -> None:
    total = robust.total("median", LIKE, tmp_path)
    total.add(update(0), 1)
    for value in (65.0, float("nan")):
        with pytest.raises(FoldError, match="not within 64"):
            total.add({**update(1), "b": torch.full((3,), value)}, 1)
    assert torch.equal(total.mean()["b"], update(0)["b"])
    with pytest.raises(FoldError, match="no update was added"):
        robust.total("median", LIKE, tmp_path).mean()
