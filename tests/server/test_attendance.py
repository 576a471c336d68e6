"""Who answers: late, absent or failed sites cost the round nothing but themselves; too few stop the run."""

from collections.abc import Callable, Iterable
from pathlib import Path

import federation as fed
import pytest
from flwr.app import Message
from replies import Replay, sites, table

from client import app as client
from server import mail, roster, rounds
from server.mail import RunStopped
from sim.engine import InlineGrid


class Clock:
    """Time that passes only while the server sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(rounds, "monotonic", lambda: self.now)
        for module in (mail, roster):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
            monkeypatch.setattr(module, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Silent(Replay):
    """Nodes that take messages of some kinds and never answer."""

    in_process = False  # as over a network: a site that does not answer keeps no process waiting
    silent: frozenset[tuple[int, str]] = frozenset()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in message_ids:
            message = self._waiting.get(identifier)
            if message and (message.metadata.dst_node_id, message.metadata.message_type) not in self.silent:
                yield from super().pull_messages([identifier])


def test_at_the_deadline_the_round_ends_without_the_late(
    tmp_path: Path, replies: dict[str, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.deadline=7")
    grid = Silent(sites(tmp_path), replies, {})
    grid.silent = frozenset({(2, "train")})
    fed.federation(grid, config, tmp_path / "out").run()
    rows = {row["site"]: (row["outcome"], row["reason"]) for row in table(tmp_path / "out")}
    assert rows["bona"] == ("late", "no reply in 7 s")
    assert rows["anna"] == rows["cora"] == ("folded", "")
    assert 7 <= clock.now < 9


def test_a_site_that_is_not_there_is_absent(tmp_path: Path, replies: dict[str, Message]) -> None:
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.sites=[anna,bona,cora]")
    grid = Replay([sites(tmp_path)[0], sites(tmp_path)[2]], replies, {})
    fed.federation(grid, config, tmp_path / "out").run()
    rows = {row["site"]: (row["outcome"], row["reason"]) for row in table(tmp_path / "out")}
    assert rows["bona"] == ("absent", "not connected")
    assert rows["anna"] == rows["cora"] == ("folded", "")


def test_too_few_sites_at_the_start_stop_the_run_with_their_names(
    tmp_path: Path, replies: dict[str, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    config = fed.settings("federation.sites=[anna,bona,cora]", "federation.start_timeout=5")
    grid = Replay(sites(tmp_path)[:1], replies, {})
    with pytest.raises(RunStopped, match=r"1 of 3 sites .*missing: bona, cora") as error:
        fed.federation(grid, config, tmp_path / "out").run()
    assert "\n" not in str(error.value)
    assert 5 <= clock.now < 7


@pytest.mark.parametrize("kind", ["silent", "failed", "nobody"])
def test_no_site_at_all_stops_the_run(
    tmp_path: Path, replies: dict[str, Message], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    Clock(monkeypatch)
    config = fed.settings("privacy.min_cell=1000" if kind == "failed" else "federation.rounds=1")
    grid = Silent(sites(tmp_path)[: 0 if kind == "nobody" else 1], replies, {})
    grid.silent = frozenset({(1, "query")} if kind == "silent" else ())
    with pytest.raises(RunStopped, match="no site answered"):
        fed.federation(grid, config, tmp_path / "out").run()


def test_a_site_that_fails_at_its_hello_stops_nobody_else(
    tmp_path: Path, replies: dict[str, Message]
) -> None:
    files = sites(tmp_path)
    (files[1].parent / "cache" / "images.npy").unlink()
    config = fed.settings("federation.rounds=1", "federation.quorum=0.6", "federation.sites=[anna,bona,cora]")
    fed.federation(Replay(files, replies, {}), config, tmp_path / "out").run()
    outcomes = {row["site"]: row["outcome"] for row in table(tmp_path / "out")}
    assert outcomes == {"anna": "folded", "bona": "failed", "cora": "folded"}


class Changing(InlineGrid):
    """Nodes that come and go: `nodes` says which there are now."""

    nodes: Callable[[], list[int]]

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes()


def test_a_second_node_under_a_taken_name_is_not_listened_to_until_the_first_has_gone(tmp_path: Path) -> None:
    one, other = sites(tmp_path)[0], fed.make_site(tmp_path / "again", "anna", images=10, seed=8)
    config = fed.settings("federation.rounds=2", "federation.quorum=1")
    grid = Changing(client.app, [one, other])
    grid.nodes = lambda: [1, 2] if running.state.round == 0 else [2]
    running = fed.federation(grid, config, tmp_path / "out")
    state = running.run()
    assert state.roster == ["anna"]
    assert [(row["round"], row["outcome"], row["reason"]) for row in table(tmp_path / "out")] == [
        ("1", "folded", ""),
        ("1", "refused", "a second node claimed this name; refused"),
        ("2", "folded", "its state was missing or damaged; it started without it"),
    ]
    kept = [list((folder / "state").rglob("*.safetensors")) for folder in (one.parent, other.parent)]
    assert [[file.stem for file in files] for files in kept] == [["r00000-a00"], ["r00001-a00"]]
