"""Chooses what carries the messages of a simulation: `--engine auto` uses all cores, or GPUs, where that pays."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch

from sscxr import stages
from sscxr.config import Config
from sscxr.data.prepare.pool import physical_memory
from sscxr.stages import memory
from sscxr.training.device import in_bf16

INLINE, POOL, RAY = "inline", "pool", "ray"
# Ours, on two cores of 2021: operations a second of a core in training, and seconds for the imports of a pool.
_SPEED, _START = 4e10, 8.0
_MEMORY = 0.8  # share of the machine's memory that sites may take together


@dataclass(frozen=True)
class Choice:
    """An engine.

    Attributes:
        name: inline, pool or ray.
        at_once: how many sites work at a time.
        line: the choice and its reason, for a person; empty if it was given.
    """

    name: str
    at_once: int
    line: str = ""


def choose(given: str, config: Config, clients: int, images: int, done: int = 0) -> Choice:
    """Return the engine of a run.

    Args:
        given: one of these, or auto.
        clients: the number of sites.
        images: of all sites, held-out ones included; about.
        done: the rounds that a resumed run has done.
    """
    cores = len(os.sched_getaffinity(0))
    gpus = gpus_of(config)
    room = max(1, cores // config.run.threads)
    if given == RAY:
        return Choice(RAY, min(clients, gpus or room))
    if given == POOL:
        return Choice(POOL, min(clients, room))
    if given == INLINE:
        return Choice(INLINE, 1)
    if gpus:
        return _on_gpus(gpus, clients)
    return _on_cores(config, clients, images, done, cores, room)


def gpus_of(config: Config) -> int:
    """Return how many GPUs a run may use; 0: it computes on the CPU, or on one that it names."""
    return torch.cuda.device_count() if config.run.device in ("auto", "cuda") else 0


def _on_gpus(gpus: int, clients: int) -> Choice:
    at_once = min(gpus, clients)
    if at_once > 1 and find_spec("ray") is not None:
        return Choice(RAY, at_once, f"engine: Ray, {at_once} sites at a time, one on each GPU")
    why = "one GPU" if gpus == 1 else "one site" if clients == 1 else "Ray is not installed, for more GPUs"
    return Choice(INLINE, 1, f"engine: this process, sites in turn ({why})")


def _on_cores(config: Config, clients: int, images: int, done: int, cores: int, room: int) -> Choice:
    fit = max(1, int(_MEMORY * physical_memory() / of_site(config)))
    at_once = min(clients, room, fit)
    seconds = seconds_of(config, images, done)
    threads = config.run.threads
    if at_once > 1 and seconds * (1 - 1 / at_once) > _START:
        limited = f"; memory for {fit}" if at_once == fit < min(clients, room) else ""
        shared = f"{cores} cores, run.threads={threads}{limited}"
        return Choice(POOL, at_once, f"engine: {at_once} processes, a site each at a time ({shared})")
    if at_once > 1:
        why = "a short run"
    elif clients == 1:
        why = "one site"
    elif room == 1:
        why = f"{cores} core{'s' * (cores > 1)}, run.threads={threads}"
    else:
        why = "memory for one site"
    return Choice(INLINE, 1, f"engine: this process, sites in turn ({why})")


def of_site(config: Config) -> float:
    """Return the bytes of main memory that a process takes at its peak in which a site trains."""
    with torch.device("meta"):
        parts = stages.of(config).parts()
    return memory.of_round(config, parts, bf16=in_bf16(config.learning.amp, torch.device("cpu")))


def seconds_of(config: Config, images: int, done: int = 0) -> float:
    """Return roughly how long the rounds that are left take on one core, one site after the other."""
    with torch.device("meta"):
        encoder = cast(Any, stages.of(config).parts().encoder)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    tokens = encoder.patch_embed.num_patches
    federation = config.federation
    views = images * (1 - config.data.test_share) * federation.local_epochs * (federation.rounds - done)
    return float(6 * parameters * tokens * views / _SPEED)  # 2 operations a weight forward, 4 backward
