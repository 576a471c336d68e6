"""Randomness by name: the same place the same numbers, another place others, and the global generator left."""

import torch

from sscxr import seeds

PLACES = [
    *((0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (0, "a", "b"), (0, "b", "a")),
    *((0, "ab"), (0, "a1"), (0, "a", 11), (0, "a1", 1), (1, "a", 1)),
]


def test_a_place_has_one_seed_and_no_two_share_one() -> None:
    first = [seeds.derive(*place) for place in PLACES]
    assert first == [seeds.derive(*place) for place in PLACES]
    assert len(set(first)) == len(PLACES)


def test_seeds_are_what_torch_and_numpy_take() -> None:
    assert all(0 <= seeds.derive(0, number) < 2**63 for number in range(200))


def test_seeds_are_the_same_on_every_machine() -> None:
    """A snapshot: a change of it changes every run, and resumed ones in their middle."""
    assert seeds.derive(0, "site-1", 3) == 6192289408902115767


def test_a_generator_draws_by_its_place_alone() -> None:
    torch.manual_seed(1)
    one = torch.rand(5, generator=seeds.generator("cpu", 0, "a", 1))
    torch.manual_seed(2)
    torch.rand(3)
    assert torch.equal(torch.rand(5, generator=seeds.generator("cpu", 0, "a", 1)), one)
    assert not torch.equal(torch.rand(5, generator=seeds.generator("cpu", 0, "a", 2)), one)


def test_forked_code_draws_by_its_place_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeds.forked(0, "a"):
        one = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeds.forked(0, "a"):
        assert torch.equal(torch.rand(3), one)


def test_the_global_generator_is_left_alone_by_forked_code_that_fails() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    try:
        with seeds.forked(0, "a"):
            torch.rand(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
