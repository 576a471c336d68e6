"""What a fault costs at sites that have their service: no byte of the encoder, as the round is tried again.

Like `test_faults.py`, for `docs/faults.md`. The undisturbed run is one of a single process.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from deployments import NGINX, SETTINGS, SITES, Deployment
from faults import a_small_disk, after_round, fill, in_round, rows, undisturbed, until
from simulations import weights

from sscxr.federation import wire

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]
A, B = SITES[:2]
LONG = (
    *("federation.local_epochs=30", "federation.evaluate_every=0", "federation.quorum=1"),
    *("federation.rounds=3", "federation.retries=500", "federation.deadline=300"),
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("f")
    with Deployment(folder, (A, B), behind_nginx=NGINX is not None, services=True) as deployment:
        yield deployment.start_all()
    assert deployment.pids() == []


@pytest.fixture(scope="module")
def expected(federation: Deployment, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    sites = f"federation.sites=[{A},{B}]"
    federation.approve("smoke", [*SETTINGS, sites, *LONG])
    return undisturbed(federation, tmp_path_factory.mktemp("alone"), LONG)


def training(federation: Deployment, site: str, seconds: float = 0.4) -> None:
    """Return once a site's service has worked so long, in CPU time, from now on."""
    (pid,) = federation.pids(f"{site}-service", "serve")

    def used() -> float:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    before = used()
    until(federation, lambda: used() > before + seconds, 240, f"the service of {site} trains")


def trouble(out: Path) -> set[tuple[int, str, str]]:
    """What did not count: round, site and reason; not the attempts that were dropped with it."""
    bad = [row for row in rows(out) if row["outcome"] not in ("folded", "dropped")]
    return {(int(row["round"]), row["site"], row["reason"]) for row in bad}


def test_services_that_are_killed_upgraded_or_without_room_cost_not_one_byte(
    federation: Deployment, expected: bytes
) -> None:
    federation.stop(f"{B}-service")
    with a_small_disk(federation.site(B) / "state", megabytes=64) as disk:
        federation.start_service(B)
        out = federation.folder / "out-services"
        federation.run(out, *LONG, "run.name=services")
        in_round(federation, out, 1)
        training(federation, A)
        federation.kill(f"{A}-service")
        began = monotonic()
        federation.start_service(A)
        after_round(federation, out, 1)
        killed = monotonic() - began

        federation.stop(f"{A}-service")
        federation.start_service(A)
        after_round(federation, out, 2)

        in_round(federation, out, 3)
        if disk:

            def full() -> bool:
                fill(disk / "filler")  # a site deletes older states first
                return (3, B, wire.FAILURES["disk"]) in trouble(out)

            until(federation, full, 240, "the disk is full")
            (disk / "filler").unlink()
        ended = federation.wait(out, limit=600)
        federation.stop(f"{B}-service")
    federation.start_service(B)
    assert (ended.state, ended.round) == ("finished", 3)
    lost = {(1, A, wire.FAILURES["service"])} | ({(3, B, wire.FAILURES["disk"])} if disk else set())
    assert trouble(out) == lost, "an upgrade between two rounds costs nothing"
    assert weights(out) == expected
    print(f"\nservice killed: its round is done {killed:.0f} s later")


def test_supernodes_that_are_killed_alone_or_with_their_service_cost_not_one_byte(
    federation: Deployment, expected: bytes
) -> None:
    out = federation.folder / "out-nodes"
    federation.run(out, *LONG, "run.name=nodes")
    in_round(federation, out, 1)
    training(federation, B)
    federation.kill(B)
    began = monotonic()
    federation.come_back(B, limit=300)
    after_round(federation, out, 1)
    alone = monotonic() - began

    in_round(federation, out, 2)
    training(federation, A)
    federation.kill(A)
    federation.kill(f"{A}-service")
    began = monotonic()
    federation.start_service(A)
    federation.come_back(A, limit=300)
    after_round(federation, out, 2)
    both = monotonic() - began
    ended = federation.wait(out, limit=600)
    assert (ended.state, ended.round) == ("finished", 3)
    assert {(number, site) for number, site, _ in trouble(out)} == {(1, B), (2, A)}
    assert weights(out) == expected
    print(f"\nSuperNode killed: its round is done {alone:.0f} s later; with its service: {both:.0f} s")
