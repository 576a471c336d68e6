"""Updates as whole numbers modulo a power of 256: sums are exact, in any order, under any masks."""

import math

import federation as fed
import numpy as np
import pytest
import torch

from server.aggregate import WeightedSum
from sscxr.config import Config
from sscxr.federation import codecs, lattice
from sscxr.federation.lattice import Lattice, add_mask, figures, figures_of
from sscxr.federation.wire import WireError

SEED = bytes(range(32))


def config(*overrides: str, count: int = 8) -> Config:
    made = fed.settings("federation.secure=true", "federation.weight_cap=0", *overrides)
    made.federation.members = {f"site-{number}": f"SHA256:{number:043d}" for number in range(count)}
    return made


def update(seed: int, codec: str) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=source) / 30 for name, shape in {"b": (3, 5), "a": (7,)}.items()
    }
    return codecs.decode(codecs.encode(made, codec), codec, made)


@pytest.mark.parametrize(
    ("overrides", "count", "width"),
    [
        (["federation.weights=equal"], 8, 4),
        (["federation.weights=equal"], 16, 5),
        (["federation.weights=root"], 8, 6),
        ([], 8, 6),
        (["federation.uplink=fp32"], 8, 7),
        (["federation.uplink=fp32", "federation.max_images=1000000"], 30, 8),
    ],
)
def test_a_sum_is_the_servers_own_bit_for_bit_at_every_width(
    overrides: list[str], count: int, width: int
) -> None:
    """With the largest weights and values that there may be, so that the modulus is filled."""
    made = config(*overrides, count=count)
    grid = Lattice.of(made)
    assert grid.width == width
    updates = [update(seed, made.federation.uplink) for seed in range(count)]
    for one in updates:
        one["a"][:2] = torch.tensor([lattice.REACH, -lattice.REACH])
    plain = WeightedSum(updates[0])
    total, row = None, None
    for number, one in enumerate(updates):
        plain.add(one, grid.most)
        words, own = (
            grid.words(one, grid.most),
            figures(weight=grid.most, images=9, loss=1, norm=2, moment_norm=0),
        )
        add_mask(words, own, SEED, 1 if number % 2 else -1)  # pairs cancel
        if number == count - 1 and count % 2:
            add_mask(words, own, SEED, 1)
        words, own = grid.unpack(grid.pack(words, own), one)
        total, row = (words, own) if total is None else (total + words, row + own)
    found = figures_of(row, count, grid.most)
    assert (found["weight"], found["norm"]) == (count * grid.most, 2 * count)
    mean = grid.mean(total, int(found["weight"]), updates[0])
    expected = plain.mean()
    assert all(torch.equal(mean[name], expected[name]) for name in expected)


def test_values_are_rounded_to_the_nearest_multiple() -> None:
    grid = Lattice.of(config())
    given = {"a": torch.tensor([2.0**-25 * 1.01, -(2.0**-24) * 3, 1e-9, 0.1])}
    mean = grid.mean(grid.words(given, 5), 5, given)
    assert float((mean["a"] - given["a"]).abs().max()) <= 2.0**-25
    assert mean["a"][:3].tolist() == [2.0**-24, -3 * 2.0**-24, 0.0]


@pytest.mark.parametrize("value", [8.1, -8.1, math.nan, math.inf])
def test_a_value_beyond_the_reach_is_refused(value: float) -> None:
    with pytest.raises(WireError, match="a has a value of size"):
        Lattice.of(config()).words({"a": torch.tensor([0.0, value])}, 1)


def test_a_masked_update_looks_like_random_bytes() -> None:
    """All-zero updates: each byte's values are equally frequent (chi-squared, 255 degrees of freedom)."""
    grid = Lattice.of(config())
    zeros = {"a": torch.zeros(50_000)}
    words, row = grid.words(zeros, 1), figures(weight=1, images=1, loss=0, norm=0, moment_norm=0)
    add_mask(words, row, SEED, 1)
    data = np.frombuffer(grid.pack(words, row), np.uint8)
    for place in range(grid.width):
        counts = np.bincount(data[place : -40 : grid.width], minlength=256)
        assert 150 < ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 380  # outside: once in 10^5
    assert abs(np.corrcoef(data[:-1], data[1:])[0, 1]) < 0.01
    add_mask(words, row, SEED, -1)
    assert (int(words.max()), row.tolist()) == (0, [1, 1, 0, 0, 0])


def test_the_two_streams_of_a_seed_differ_and_a_long_one_does_not_repeat() -> None:
    words, row = np.zeros(2 * lattice._CHUNK + 3, "<u8"), np.zeros(5, "<u8")
    add_mask(words, row, SEED, 1)
    assert len(np.unique(words)) == len(words)
    assert not set(row.tolist()) & set(words.tolist())


def test_the_key_stream_is_chacha20_of_rfc_8439() -> None:
    """Appendix A.1, test vector 1: key and nonce of zeros, block 0."""
    words = np.zeros(8, "<u8")
    add_mask(np.zeros(0, "<u8"), words, bytes(32), 1)
    assert (
        words.tobytes().hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    )


def test_a_sum_with_a_mask_left_in_it_is_refused() -> None:
    grid = Lattice.of(config())
    given = update(0, "fp16")
    words, row = grid.words(given, 3), figures(weight=3, images=3, loss=1, norm=1, moment_norm=1)
    add_mask(words, row, SEED, 1)
    with pytest.raises(WireError, match="cannot be that of 1 sites"):
        figures_of(row, 1, grid.most)
    with pytest.raises(WireError, match="no updates add up to"):
        grid.mean(words, 3, given)
    with pytest.raises(WireError, match="expected"):
        grid.unpack(grid.pack(words, row)[1:], given)
