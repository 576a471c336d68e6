"""No call on the Grid waits for ever: a SuperLink that hangs or ends stops the run with its state saved."""

import threading
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import federation as fed
import pytest
from flwr.app import Message

from client import app as client
from server import app as server
from server import mail, roster
from server.mail import RunStopped
from sim.engine import InlineGrid
from sscxr.runs import Status, read_status


class Remote(InlineGrid):
    """A Grid whose calls end in time or not at all: `broken` names the call that does not."""

    in_process = False
    broken = ""
    error: Exception | None = None

    def _maybe(self, call: str) -> None:
        if call == self.broken:
            if self.error:
                raise self.error
            threading.Event().wait()

    def get_nodes(self) -> Iterable[Any]:
        self._maybe("nodes")
        return super().get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self._maybe("push")
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self._maybe("pull")
        return list(super().pull_messages(message_ids))


def test_no_other_site_can_name_the_message_that_a_site_answers(tmp_path: Path) -> None:
    """A message's name is the hash of its content, its time included; who knows the rest cannot work it out."""
    sent: list[Message] = []

    class Noted(fed.Grid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent.extend(messages)
            return super().push_messages(sent[-1:])

    config = fed.settings("federation.rounds=1")
    fed.federation(
        Noted(client.app, fed.make_sites(tmp_path, ["anna", "bona"])), config, tmp_path / "out"
    ).run()
    secret = [str(message.content["secret"]["secret"]) for message in sent]
    assert len(sent) >= 4
    assert len(set(secret)) == len(sent)
    assert all(len(bytes.fromhex(text)) >= 16 for text in secret)
    name = sent[-1].object_id
    sent[-1].content["secret"]["secret"] = secret[0]
    assert sent[-1].object_id != name


@pytest.mark.parametrize("call", ["nodes", "push", "pull"])
@pytest.mark.parametrize("error", [None, ConnectionError("DOE^JANE")], ids=["hangs", "raises"])
def test_a_call_that_does_not_return_stops_the_run_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception | None
) -> None:
    monkeypatch.setattr(mail, "_PATIENCE", 0.3)
    monkeypatch.setattr(mail, "_LOOK", 0.3)
    monkeypatch.setattr(roster, "_HELLO_TIME", 0.5)
    config, out = fed.settings("federation.rounds=3", "federation.deadline=0.5"), tmp_path / "out"
    grid = Remote(client.app, fed.make_sites(tmp_path, ["anna"], images=10))
    federation = fed.federation(grid, config, out)
    grid.broken, grid.error = call, error
    began = monotonic()
    with pytest.raises(RunStopped, match="resume") as stopped:
        federation.run()
    assert monotonic() - began < 5
    assert "DOE" not in str(stopped.value)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [8, 1])
def test_a_reply_that_comes_slowly_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Flower's pull waits for the last byte of a reply that is being uploaded, with room for others or without."""
    monkeypatch.setattr(mail, "_GLANCE", 0.2)
    monkeypatch.setattr(mail, "_STALLED", 1)
    monkeypatch.setattr(mail, "_AT_ONCE", at_once)
    config = fed.settings("federation.rounds=1", "federation.deadline=6", "federation.quorum=0.6")
    grid = Remote(client.app, fed.make_sites(tmp_path, ["anna", "bona", "cora"], images=10))
    really, lock = grid.pull_messages, threading.Lock()

    def pull(message_ids: Iterable[str]) -> Iterable[Message]:
        (identifier,) = message_ids
        with lock:  # the sites of this Grid answer one after another
            message = grid._waiting.get(identifier)
        if message and message.metadata.message_type == "train" and message.metadata.dst_node_id == 1:
            threading.Event().wait()
        with lock:
            return really([identifier])

    monkeypatch.setattr(grid, "pull_messages", pull)
    fed.federation(grid, config, tmp_path / "out").run()
    rows = (tmp_path / "out" / "sites.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1:2] + row.split(",")[-2:] for row in rows] == [
        ["anna", "late", "no reply in 6 s"],
        ["bona", "folded", ""],
        ["cora", "folded", ""],
    ]


def test_a_superlink_that_goes_away_between_rounds_costs_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail, "_PATIENCE", 0.3)
    out, files = tmp_path / "out", fed.make_sites(tmp_path, ["anna", "bona"], images=10)
    plain = fed.make_sites(tmp_path / "plain", ["anna", "bona"], images=10)
    text = " ".join([*fed.SMALL, "federation.rounds=3", "federation.deadline=600"])
    expected = fed.federation(
        InlineGrid(client.app, plain), fed.settings("federation.rounds=3"), tmp_path / "p"
    ).run()
    grid = Remote(client.app, files)
    committed = server.Federation._commit

    def then_break(self: Any, *args: Any) -> None:
        committed(self, *args)
        grid.broken = "nodes" if self.state.round == 2 else ""

    monkeypatch.setattr(server.Federation, "_commit", then_break)
    config = server.configs.load("smoke", text.split())
    fed.approve(config, *files)
    with pytest.raises(RunStopped, match=r"stopped after round 2 of 3: the SuperLink did not answer"):
        server.run(grid, config, out, resume=False)
    assert read_status(out).state == "stopped"
    assert "did not answer" in read_status(out).reason
    server.run(fed.Grid(client.app, files), config, out, resume=True)
    assert read_status(out) == Status("finished", 3, 3, "", read_status(out).updated)
    found = server.Ledger(out, config, resume=True).last()
    assert found is not None
    assert all((found.encoder[name] == expected.encoder[name]).all() for name in expected.encoder)
