"""A pool of processes: a task that fails or dies costs itself alone, and nothing is left running."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim import pool
from sim.pool import Ended, Pool

PATIENCE = 60.0  # seconds


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # the tasks below, for the processes
    with Pool(2, [], 1) as found:
        yield found


def ended(two: Pool) -> dict[object, Ended]:
    """Every task's end, by its name."""
    found = {}
    until = time.monotonic() + PATIENCE
    while two.busy and time.monotonic() < until:
        found |= {one.name: one for one in two.fetch(PATIENCE)}
    assert not two.busy
    return found


def double(number: int) -> int:
    return 2 * number


def fail(_: int) -> None:
    raise ValueError("seven")


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_: int) -> None:
    sys.exit(3)


def unsendable(_: int) -> object:
    return lambda: None


def talk(number: int) -> int:
    pool.say("step", number)
    logging.getLogger("sscxr.site").warning("image %d is odd", number)
    return os.getpid()


def sleep(seconds: float) -> int:
    pool.say(os.getpid())
    time.sleep(seconds)
    return os.getpid()


def test_every_task_returns_whatever_becomes_of_the_others(two: Pool) -> None:
    functions = [double, fail, double, die, double, leave, unsendable, double]
    for name, function in enumerate(functions):
        two.put(name, function, name)
    found = ended(two)
    assert found.keys() == set(range(len(functions)))
    for name, function in enumerate(functions):
        if function is double:
            assert found[name] == Ended(name, 2 * name)
    assert found[1].problem == "ValueError: seven"
    assert found[3].problem == "its process ended by signal 9"
    assert found[5].problem == "its process ended with exit code 3"
    assert found[6].problem


def test_what_a_task_says_and_logs_arrives_before_it_ends(
    two: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[object] = []
    two.heard = lambda *what: said.append(what)
    for number in range(6):
        two.put(number, talk, number)
    processes = {one.value for one in ended(two).values()}
    assert sorted(said) == [("step", number) for number in range(6)]  # type: ignore[type-var]
    assert sorted(caplog.messages) == [f"image {number} is odd" for number in range(6)]
    assert {record.name for record in caplog.records} == {"sscxr.site"}
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in processes


def test_a_dropped_task_is_ended_and_one_that_waits_never_begins(two: Pool) -> None:
    said: list[int] = []
    two.heard = lambda process: said.append(process)
    for name in ("a", "b", "c"):
        two.put(name, sleep, 600.0)
    while len(said) < 2:
        assert two.fetch(1.0) == []
    for name in ("c", "a", "b"):
        two.drop(name)
    assert not two.busy
    assert len(said) == 2
    assert not any(Path(f"/proc/{process}").exists() for process in said)
    two.put("d", double, 4)
    assert ended(two) == {"d": Ended("d", 8)}


def test_an_idle_process_that_dies_costs_nothing(two: Pool) -> None:
    two.put("a", sleep, 0.0)
    os.kill(ended(two)["a"].value, signal.SIGKILL)
    time.sleep(0.2)
    two.put("b", double, 1)
    assert ended(two) == {"b": Ended("b", 2)}
