"""A run killed anywhere and resumed is as one never killed: the same encoder, bit for bit, the same losses."""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest
from simulations import Killer, arguments, everything, losses, weights

# Where to die: the function, its n-th call, before or after it did its work. Two sites, three rounds.
POINTS = {
    "in local training": ("sscxr.training.loop:set_rates", 8, "after"),
    "within the second site's training": ("sscxr.training.loop:set_rates", 13, "before"),
    "in a site's writing of its state": ("safetensors.torch:save_file", 2, "after"),
    "between a site's state and its reply": ("client.site:StateStore.save", 3, "after"),
    "before a reply is folded": ("server.fold:Fold.add", 4, "before"),
    "in folding": ("server.aggregate:to_fixed", 25, "after"),
    "between the server's step and its commit": ("server.rounds:Federation._evaluate", 2, "before"),
    "between the two ledger files": ("server.ledger:Ledger.log_sites", 2, "after"),
    "in the second checkpoint": ("server.ledger:save_tensors", 4, "after"),
    "between rounds": ("server.ledger:Ledger.commit", 2, "after"),
    "before a round's picture": ("sscxr.report.pictures:strip", 6, "before"),
    "as a round begins": ("server.ledger:Ledger.next_attempt", 3, "after"),
    "between the rounds and the word for it": ("server.app:_run", 1, "after"),
    "between the rounds and the probes": ("sim.outcome:finish", 1, "before"),
    "before the release": ("sim.outcome:publishing.write", 1, "before"),
    "in the release": ("sscxr.release.release:_check_timm", 1, "after"),
    "after the release": ("sim.outcome:publishing.write", 1, "after"),
    "before the last file": ("sim.outcome:_print_sites", 1, "before"),
}
SEED, DRAWS = 20, 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def killer(place: Path) -> Iterator[Killer]:
    program = Killer(place)
    yield program
    program.close()


@dataclass(frozen=True)
class Whole:
    """A run that was never killed: its folder, and the seconds it took."""

    out: Path
    seconds: float


@pytest.fixture(scope="module")
def whole(place: Path, killer: Killer, cache: Path) -> Whole:
    began = monotonic()
    ended = killer.run(arguments(place / "whole", data=cache))
    assert ended.status == 0, ended.log
    return Whole(place / "whole", monotonic() - began)


PREPARED = (
    "sim.phantoms=32",
    "privacy.min_cell=2",
    "federation.rounds=1",
    "probe.cohorts={a: [phantom_site_0]}",
)


@pytest.fixture(scope="module")
def whole_of_phantoms(place: Path, killer: Killer) -> Path:
    """A run that drew its own phantoms and was never killed."""
    out = place / "whole-of-phantoms"
    ended = killer.run(arguments(out, *PREPARED))
    assert ended.status == 0, ended.log
    return out


def pictures(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "pictures").iterdir()}


def resumed(killer: Killer, argv: list[str], out: Path, whole: Path) -> None:
    """Go on with a run, and compare it to one that was never killed."""
    ended = killer.run([*argv, "--resume"])
    assert ended.status == 0, ended.log
    assert weights(out) == weights(whole)
    assert losses(out) == losses(whole)
    assert pictures(out) == pictures(whole)
    assert (out / "report.html").exists()
    left = [path.name for path in out.rglob("*") if path.name.endswith((".tmp", ".partial", ".old"))]
    assert left == []


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(point: str, killer: Killer, cache: Path, whole: Whole, tmp_path: Path) -> None:
    at, call, when = POINTS[point]
    argv = arguments(tmp_path / "out", data=cache)
    ended = killer.run(argv, at=at, call=call, when=when)
    assert ended.status == -signal.SIGKILL, ended.log
    resumed(killer, argv, tmp_path / "out", whole.out)


def test_killed_with_int8_what_a_site_carries_is_that_of_the_folded_round(
    killer: Killer, cache: Path, tmp_path: Path
) -> None:
    def asked(name: str) -> list[str]:
        return arguments(tmp_path / name, "federation.uplink=int8", data=cache)

    ended = killer.run(asked("whole"))
    assert ended.status == 0, ended.log
    for number, point in enumerate(("between a site's state and its reply", "before a reply is folded")):
        at, call, when = POINTS[point]
        out = tmp_path / f"out-{number}"
        ended = killer.run(asked(out.name), at=at, call=call, when=when)
        assert ended.status == -signal.SIGKILL, ended.log
        resumed(killer, asked(out.name), out, tmp_path / "whole")


@pytest.mark.parametrize("draw", range(DRAWS))
def test_killed_at_random_moments(
    draw: int, killer: Killer, cache: Path, whole: Whole, tmp_path: Path
) -> None:
    rng = random.Random(SEED + draw)
    argv = arguments(tmp_path / "out", data=cache)
    delays = [rng.random() * whole.seconds for _ in range(2)]
    for delay in delays:
        killer.run([*argv, "--resume"], after=delay)
    resumed(killer, argv, tmp_path / "out", whole.out)


@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("sscxr.data.phantoms.phantom:_write_site", 2),
        ("sscxr.data.cache.journal:Journal.add", 10),
        ("sscxr.data.cache.store:recover", 2),
        ("sim.sites:partition", 1),
    ],
)
def test_killed_while_the_data_is_prepared(
    at: str, call: int, killer: Killer, whole_of_phantoms: Path, tmp_path: Path
) -> None:
    argv = arguments(tmp_path / "out", *PREPARED)
    ended = killer.run(argv, at=at, call=call, when="after")
    assert ended.status == -signal.SIGKILL, ended.log
    resumed(killer, argv, tmp_path / "out", whole_of_phantoms)


def test_resume_of_nothing_starts_and_of_a_finished_run_changes_nothing(
    killer: Killer, cache: Path, whole: Whole, tmp_path: Path
) -> None:
    argv = arguments(tmp_path / "out", data=cache)
    resumed(killer, argv, tmp_path / "out", whole.out)
    before = everything(tmp_path / "out")
    ended = killer.run([*argv, "--resume"])
    assert ended.status == 0
    assert ended.log.count("\n") == 1
    assert "finished" in ended.log
    assert everything(tmp_path / "out") == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(
    number: signal.Signals, status: int, killer: Killer, cache: Path, whole: Whole, tmp_path: Path
) -> None:
    argv = arguments(tmp_path / "out", data=cache)
    begun = tmp_path / "out" / "checkpoints" / "round-00001"
    ended = killer.run(argv, once=str(begun), signal=number)
    assert ended.status == status, ended.log
    last = ended.log.splitlines()[-1]
    assert last.startswith("stopped; finished work is saved")
    assert last.endswith("--resume")
    assert "Traceback" not in ended.log
    resumed(killer, argv, tmp_path / "out", whole.out)
