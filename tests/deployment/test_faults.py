"""What a fault costs. Each is brought about in a federation that runs, and the run's folder is read afterwards.

`docs/faults.md` has the table; the seconds in it are what these tests print with `-s`. Faults of sites with their
service are in `test_service_faults.py`.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep, time

import pytest
from deployments import NAME, NGINX, SITES, Deployment
from faults import a_small_disk, after_round, came_of, fill, in_round, rows, undisturbed, until
from processes import wait_until
from simulations import ROOT, weights

from sscxr.runs import read_status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(1200),
]
A, B, C = SITES
SHORT = ("federation.local_epochs=5", "federation.evaluate_every=0", "federation.quorum=0.6")
LONG = (*SHORT, "federation.local_epochs=40")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("faults")
    with Deployment(folder, behind_nginx=NGINX is not None) as deployment:
        deployment.start_all(wires=[C])
        for site in SITES:
            deployment.wait_for_node(site)
        yield deployment
    assert deployment.pids() == []


@pytest.fixture
def small_disk(federation: Deployment) -> Iterator[Path | None]:
    """The folder of hospital-b's state, on a disk of 16 MB; None where this user may not mount one."""
    with a_small_disk(federation.site(B) / "state", megabytes=16) as folder:
        yield folder


def working(federation: Deployment, out: Path, site: str, cpu: float = 4.5, limit: float = 120) -> int:
    """The pid of a site's client process of this attempt, once it has used so many seconds of CPU.

    Starting up takes 3 to 4.
    """
    second = os.sysconf("SC_CLK_TCK")

    def busy() -> int:
        attempt = time() - (out / "checkpoints" / "attempt.json").stat().st_mtime
        now = float(Path("/proc/uptime").read_text().split()[0])
        for pid in federation.pids(site, "flwr-clientapp"):
            try:
                words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            state, used, began = words[0], int(words[11]) / second, int(words[19]) / second
            if state != "Z" and used > cpu and now - began < attempt:
                return pid
        return 0

    return int(until(federation, busy, limit, f"{site} trains"))


def raising_app(folder: Path) -> Path:
    """The two apps, but hospital-a's client raises in round 1, past everything that catches."""
    shutil.copytree(ROOT, folder, ignore=lambda at, names: set(names) - _APP if at == str(ROOT) else _CACHES)
    text = (folder / "client" / "app.py").read_text()
    start = '    return _answer(message, context, "train")\n'
    assert start in text
    fault = (
        f'    if "/{A}/" in str(context.node_config["site"]) and message.content[RECORD]["round"] == 0:\n'
        '        raise RuntimeError("the words of this exception stay here")\n'
    )
    (folder / "client" / "app.py").write_text(text.replace(start, fault + start))
    return folder


_APP = {"client", "server", "pyproject.toml", "LICENSE", "README.md"}
_CACHES = {"__pycache__", "doctor"}


def test_sites_that_raise_fill_their_disk_or_are_late_cost_their_own_round_alone(
    federation: Deployment, small_disk: Path | None, tmp_path: Path
) -> None:
    out = federation.folder / "out-sites"
    federation.app = raising_app(tmp_path / "app")
    try:
        federation.run(out, *SHORT, "federation.rounds=4", "federation.deadline=120", "run.name=sites")
    finally:
        federation.app = ROOT
    first = after_round(federation, out, 1)
    assert came_of(out, 1) == {
        A: ("failed", "no reply: its client app raised an exception (Flower error 2)"),
        B: ("folded", ""),
        C: ("folded", ""),
    }

    in_round(federation, out, 2)
    if small_disk:
        fill(small_disk / "filler")
    second = after_round(federation, out, 2)
    if small_disk:
        (small_disk / "filler").unlink()
        assert came_of(out, 2)[B] == ("failed", "its disk is full")
    assert came_of(out, 2)[A] == came_of(out, 2)[C] == ("folded", "")

    in_round(federation, out, 3)
    working(federation, out, C, cpu=0.5)
    federation.wires[C].rate = 3000  # bytes a second: its update of some 700 kB takes minutes
    third = after_round(federation, out, 3)
    federation.wires[C].rate = 0
    assert came_of(out, 3) == {A: ("folded", ""), B: ("folded", ""), C: ("late", "no reply in 120 s")}
    assert third["seconds"] >= 120

    ended = federation.wait(out)
    assert (ended.state, ended.round) == ("finished", 4)
    # Its late reply counted nowhere, and it went on from the state of round 2, the last that was folded.
    assert came_of(out, 4) == dict.fromkeys(SITES, ("folded", ""))
    times = [line["seconds"] for line in (first, second, third)]
    print("\nseconds of a round: a client raises {}, a disk is full {}, a site is late {}".format(*times))


def test_processes_that_are_killed_and_a_network_that_is_cut_cost_the_rounds_that_a_site_is_away(
    federation: Deployment,
) -> None:
    out = federation.folder / "out-kills"
    federation.run(out, *LONG, "federation.rounds=4", "federation.deadline=300", "run.name=kills")
    in_round(federation, out, 1)
    os.kill(working(federation, out, A), signal.SIGKILL)
    began = monotonic()
    after_round(federation, out, 1)
    client = monotonic() - began
    assert came_of(out, 1)[A] == ("failed", "no reply: its client process ended or hung (Flower error 8)")

    in_round(federation, out, 2)
    working(federation, out, B)
    federation.kill(B)
    began = monotonic()
    federation.come_back(B)
    back = monotonic() - began
    after_round(federation, out, 2)
    node = monotonic() - began
    assert came_of(out, 2)[B][0] in ("failed", "late")
    assert came_of(out, 2)[A] == ("folded", "")

    in_round(federation, out, 3)
    working(federation, out, C)
    with federation.wires[C].cut():
        sleep(20)
    third = after_round(federation, out, 3)
    assert came_of(out, 3)[A] == came_of(out, 3)[C] == ("folded", "")
    # Flower lets a node in again once it takes the one before for dead; a round may begin before that.
    assert came_of(out, 3)[B] in (("folded", ""), ("absent", "not connected"))

    ended = federation.wait(out)
    assert (ended.state, ended.round) == ("finished", 4)
    assert came_of(out, 4) == dict.fromkeys(SITES, ("folded", ""))
    print(
        f"\nclient process killed: round ends {client:.0f} s later; SuperNode killed: {node:.0f} s later, back "
        f"after {back:.0f} s; network cut for 20 s: round of {third['seconds']} s"
    )


def test_a_server_that_is_killed_and_resumed_ends_with_the_bytes_of_one_that_never_was(
    federation: Deployment, tmp_path: Path
) -> None:
    settings = (
        "federation.local_epochs=60",
        "federation.evaluate_every=0",
        "federation.rounds=4",
        "federation.quorum=1",
    )
    out = federation.folder / "out-server"
    federation.run(out, *settings, "run.name=server")
    in_round(federation, out, 2)
    working(federation, out, A)
    assert federation.kill("superlink", "flwr-serverapp")
    wait_until(lambda: read_status(out).state == "died", 10, "the run is known to be dead")

    began = monotonic()
    federation.run(out, *settings, "run.name=server", resume=str(out))
    after_round(federation, out, 2)
    app = monotonic() - began
    in_round(federation, out, 3)
    working(federation, out, B)
    federation.kill("superlink")
    wait_until(
        lambda: read_status(out).state in ("died", "stopped"), 60, "the ServerApp ends with its SuperLink"
    )
    federation.start_superlink()
    began = monotonic()
    federation.run(out, *settings, "run.name=server", resume=str(out))
    after_round(federation, out, 3)
    link = monotonic() - began
    ended = federation.wait(out)
    assert (ended.state, ended.round) == ("finished", 4)
    print(
        f"\nServerApp killed: its round is done {app:.0f} s after the resume; SuperLink killed: {link:.0f} s"
    )

    alone = undisturbed(federation, tmp_path, settings)
    assert weights(out) == alone
    assert [row["outcome"] for row in rows(out)] == ["folded"] * 12


def test_flwr_stop_stops_a_run_which_is_resumed_like_any_other(federation: Deployment) -> None:
    out = federation.folder / "out-stopped"
    settings = (*SHORT, "federation.rounds=3", "run.name=stopped")
    federation.run(out, *settings)
    in_round(federation, out, 2)
    federation.flwr("stop", str(federation.listed()[-1]["run-id"]), NAME)
    wait_until(lambda: read_status(out).state != "running", 60, "the run ends")
    ended = read_status(out)
    assert (ended.state, ended.round) == ("stopped", 1)
    assert "flwr stop" in ended.reason
    federation.run(out, *settings, resume=str(out))
    assert federation.wait(out).state == "finished"


def test_a_run_that_cannot_reach_its_quorum_stops_with_its_state_saved(federation: Deployment) -> None:
    out = federation.folder / "out-quorum"
    federation.stop(C)
    settings = (
        "federation.quorum=1",
        "federation.rounds=1",
        "federation.start_timeout=15",
        "run.name=quorum",
    )
    federation.run(out, *settings)
    ended = federation.wait(out)
    assert ended.state == "stopped"
    assert f"missing: {C}" in ended.reason
    log = federation.flwr("log", str(federation.listed()[-1]["run-id"]), NAME, "--show")
    ours = [line for line in log.splitlines() if f"run {out} " in line]
    assert f"missing: {C}" in ours[-1], log[-2000:]
    federation.start_node(C, wire=True)
    federation.wait_for_node(C)
    federation.run(out, *settings, resume=str(out))
    assert federation.wait(out).state == "finished"
