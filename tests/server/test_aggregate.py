"""The sum of updates: no order, no split and no damage changes it."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from server.aggregate import (
    MAX_ABS,
    MAX_TOTAL_WEIGHT,
    FoldError,
    WeightedSum,
)
from sscxr.federation.codecs import CHUNK

LIKE = {"a": torch.zeros(7, 5), "b": torch.zeros(3)}
WEIGHTS = (1, 100_000, 17, 3, 999)


def update(seed: int, scale: float = 0.1) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(like.shape, generator=source) * scale for name, like in LIKE.items()}


UPDATES = [(update(seed, 10.0 ** (seed - 3)), weight) for seed, weight in enumerate(WEIGHTS)]


def summed(updates: Sequence[tuple[dict[str, Tensor], int]]) -> WeightedSum:
    total = WeightedSum(LIKE)
    for tensors, weight in updates:
        total.add(tensors, weight)
    return total


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- the sum


def test_any_order_gives_the_same_bytes() -> None:
    means = [summed(order).mean() for order in itertools.permutations(UPDATES)]
    assert all(same(mean, means[0]) for mean in means)


def test_pieces_and_fp32_on_the_way_change_no_bit() -> None:
    """The plain form: each value in fp64, times 2^32, rounded, times the weight, in one piece."""
    source = torch.Generator().manual_seed(3)
    count = 2 * CHUNK + 17
    values = torch.randn(count, generator=source) * 10 ** (12 * torch.rand(count, generator=source) - 11)
    values = values.clamp(-MAX_ABS, MAX_ABS)
    values[:6] = torch.tensor([0.0, -0.0, 1e-45, 2.0**-33, 1.5 * 2.0**-32, -MAX_ABS])
    total, plain = WeightedSum({"a": values}), torch.zeros(count, dtype=torch.int64)
    for weight in WEIGHTS:
        total.add({"a": values}, weight)
        plain += (values.double() * 2.0**32).round().to(torch.int64) * weight
    assert torch.equal(total.mean()["a"], (plain.double() / (2.0**32 * sum(WEIGHTS))).float())


def test_sums_beyond_what_fp64_holds_are_exact() -> None:
    """In any order; the plain form is Python's whole numbers."""
    values = [(64.0, 10_000_000), (-63.5, 9_999_999), (2.0**-32, 1), (1e-3, 65_537), (-(2.0**-20), 3)]
    whole = sum(round(float(torch.tensor(value)) * 2**32) * weight for value, weight in values)
    expected = torch.tensor(whole / (2**32 * sum(weight for _, weight in values)))
    for order in itertools.permutations(values):
        total = WeightedSum({"a": torch.zeros(1)})
        for value, weight in order:
            total.add({"a": torch.tensor([value])}, weight)
        moved = int(total._moved["a"]) + int(total._sums["a"])
        assert moved == whole
        assert torch.equal(total.mean()["a"], expected[None])


def test_a_plain_float_sum_would_not() -> None:
    """The updates above are such that the test of order can fail."""
    sums = set()
    for order in itertools.permutations(UPDATES):
        total = torch.zeros(7, 5)
        for tensors, weight in order:
            total += tensors["a"] * weight
        sums.add(total.numpy().tobytes())
    assert len(sums) > 1


def test_the_mean_is_the_weighted_mean() -> None:
    mean = summed(UPDATES).mean()
    for name in LIKE:
        exact = sum(tensors[name].double() * weight for tensors, weight in UPDATES) / sum(WEIGHTS)
        assert mean[name].dtype == torch.float32
        torch.testing.assert_close(mean[name].double(), exact, rtol=1e-6, atol=2.0**-32)


def test_the_mean_of_equal_updates_is_that_update() -> None:
    """Exactly, for what fp16 carries: its values are multiples of 2^-24."""
    one = {name: tensor.half().float() for name, tensor in update(0).items()}
    assert same(summed([(one, weight) for weight in WEIGHTS]).mean(), one)


def test_weights_are_shares_whatever_their_scale() -> None:
    small = summed([(update(1), 1), (update(2), 3)]).mean()
    assert same(summed([(update(1), 1000), (update(2), 3000)]).mean(), small)


def test_adding_leaves_the_update_as_it_was() -> None:
    tensors = update(0)
    summed([(tensors, 5)])
    assert same(tensors, update(0))


@pytest.mark.parametrize(
    ("tensors", "weight"),
    [
        (update(1), 0),
        (update(1), -3),
        (update(1), MAX_TOTAL_WEIGHT),  # with what is there already, above the bound
        ({"a": torch.full((7, 5), 0.5), "b": torch.tensor([0.0, 0.0, MAX_ABS * 1.001])}, 1),
        ({"a": torch.full((7, 5), 0.5), "b": torch.tensor([0.0, -1e30, 0.0])}, 1),
        ({"a": torch.full((7, 5), 0.5), "b": torch.tensor([0.0, torch.nan, 0.0])}, 1),
        ({"a": torch.full((7, 5), torch.nan), "b": torch.zeros(3)}, 1),
        ({"a": torch.full((7, 5), torch.inf), "b": torch.zeros(3)}, 1),
    ],
)
def test_what_the_sum_cannot_hold_is_refused_with_nothing_added(
    tensors: dict[str, Tensor], weight: int
) -> None:
    total = summed(UPDATES)
    with pytest.raises(FoldError):
        total.add(tensors, weight)
    assert same(total.mean(), summed(UPDATES).mean())
    assert total.weight == sum(WEIGHTS)


def test_the_largest_values_at_the_largest_weight_do_not_overflow() -> None:
    for sign in (1.0, -1.0):
        extreme = {name: torch.full(like.shape, sign * MAX_ABS) for name, like in LIKE.items()}
        total = summed([(extreme, MAX_TOTAL_WEIGHT - 1), (extreme, 1)])
        assert same(total.mean(), extreme)


def test_nothing_has_no_mean() -> None:
    with pytest.raises(FoldError, match="no update"):
        WeightedSum(LIKE).mean()
