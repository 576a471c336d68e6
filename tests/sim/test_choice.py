"""`--engine auto`: all cores where that pays, one process otherwise, and one line on which and why."""

import os

import pytest

from sim import choice
from sim.choice import choose
from sscxr import config as configs

IMAGES = 800


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, 64 GiB, no GPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(choice, "physical_memory", lambda: 64 << 30)
    monkeypatch.setattr(choice, "gpus_of", lambda config: 0)


@pytest.mark.parametrize(
    ("clients", "images", "settings", "name", "at_once", "why"),
    [
        (8, IMAGES, [], "pool", 4, "4 cores, run.threads=1"),
        (8, IMAGES, ["run.threads=2"], "pool", 2, "4 cores, run.threads=2"),
        (3, IMAGES, [], "pool", 3, "4 cores"),
        (1, IMAGES, [], "inline", 1, "one site"),
        (8, IMAGES, ["run.threads=4"], "inline", 1, "4 cores, run.threads=4"),
        (8, 10, ["federation.rounds=20"], "inline", 1, "a short run"),
    ],
)
def test_cores(clients: int, images: int, settings: list[str], name: str, at_once: int, why: str) -> None:
    found = choose("auto", configs.load("demo", settings), clients, images)
    assert (found.name, found.at_once) == (name, at_once)
    assert why in found.line
    assert found.line.count("\n") == 0


def test_a_run_of_tests_stays_in_one_process() -> None:
    assert choose("auto", configs.load("smoke", ["run.threads=1"]), 4, 96).name == "inline"


def test_what_is_left_of_a_resumed_run_counts() -> None:
    config = configs.load("demo")
    assert choose("auto", config, 8, IMAGES, done=0).name == "pool"
    assert choose("auto", config, 8, IMAGES, done=118).name == "inline"


def test_no_more_sites_at_a_time_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.load("demo")
    monkeypatch.setattr(choice, "physical_memory", lambda: int(3.5 * choice.of_site(config) / 0.8))
    found = choose("auto", config, 8, IMAGES)
    assert (found.name, found.at_once) == ("pool", 3)
    assert "memory for 3" in found.line
    monkeypatch.setattr(choice, "physical_memory", lambda: int(choice.of_site(config)))
    assert choose("auto", config, 8, IMAGES).name == "inline"


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.load("demo")
    for gpus, ray, name, at_once in ((1, True, "inline", 1), (4, False, "inline", 1), (4, True, "ray", 3)):
        monkeypatch.setattr(choice, "gpus_of", lambda config, gpus=gpus: gpus)
        monkeypatch.setattr(choice, "find_spec", lambda name, ray=ray: object() if ray else None)
        found = choose("auto", config, 3, IMAGES)
        assert (found.name, found.at_once) == (name, at_once)


def test_a_given_engine_is_taken() -> None:
    config = configs.load("smoke")
    for name in ("inline", "pool", "ray"):
        found = choose(name, config, 2, 96)
        assert (found.name, found.line) == (name, "")
