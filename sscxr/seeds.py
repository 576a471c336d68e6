"""Randomness by name: every generator comes from the run's seed and the place where it is used."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *place: str | int) -> int:
    """Return a seed of 63 bits for one place, e.g. `derive(run_seed, site, round)`; the same in every process."""
    text = "\x1f".join([str(seed), *(str(part) for part in place)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *place: str | int) -> torch.Generator:
    """Return a generator on `device`, seeded for one place."""
    return torch.Generator(device=device).manual_seed(derive(seed, *place))


@contextmanager
def forked(seed: int, *place: str | int) -> Iterator[None]:
    """Run code that uses the global generators (timm's initialisation, drop-path) with our own seed.

    The global generators are restored afterwards.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *place))
        yield
