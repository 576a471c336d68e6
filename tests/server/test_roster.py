"""Who speaks for a site: the node that the coordinator registered under its name, running the same code."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import federation as fed
import pytest
from flwr.app import ConfigRecord, Message

from client import app as client
from server.mail import RunStopped
from sim.engine import InlineGrid
from sscxr.federation import wire
from sscxr.federation.wire import RECORD


class Registered(InlineGrid):
    """Nodes with the names that a coordinator registered their keys under."""

    names: Callable[[], dict[int, str]]

    def get_nodes(self) -> Iterable[Any]:
        return [
            SimpleNamespace(node_id=node, name=name, public_key=f"key {node}".encode())
            for node, name in self.names().items()
        ]


def rows(out: Path) -> list[tuple[str, str, str, str]]:
    with (out / "sites.csv").open() as handle:
        return [
            tuple(row[k] for k in ("round", "site", "outcome", "reason")) for row in csv.DictReader(handle)
        ]  # type: ignore[misc]


def grid(folder: Path, names: dict[int, str], claims: list[str], **more: Any) -> Registered:
    """Sites that claim these names, on nodes that are registered under those."""
    files = [fed.make_site(folder / str(i), name, images=10, seed=i) for i, name in enumerate(claims)]
    made = Registered(more.get("app", client.app), files)
    made.names = lambda: names
    return made


def test_a_node_speaks_for_the_name_that_it_is_registered_under(tmp_path: Path) -> None:
    config = fed.settings("federation.sites=[anna,bona]", "federation.rounds=1")
    nodes = grid(tmp_path, {1: "anna", 2: "bona"}, ["anna", "bona"])
    state = fed.federation(nodes, config, tmp_path / "out").run()
    assert [row[2] for row in rows(tmp_path / "out")] == ["folded", "folded"]
    assert state.keys.keys() == {"anna", "bona"}
    saved = json.loads((tmp_path / "out" / "checkpoints" / "round-00001" / "state.json").read_text())
    assert saved["keys"] == state.keys


@pytest.mark.parametrize(
    ("registered", "reason"), [("cora", "another site's node claimed"), ("", "without a name")]
)
def test_another_node_under_a_sites_name_is_refused_and_recorded(
    tmp_path: Path, registered: str, reason: str
) -> None:
    config = fed.settings("federation.sites=[anna,bona]", "federation.rounds=1", "federation.quorum=0.5")
    nodes = grid(tmp_path, {1: registered, 2: "anna"}, ["bona", "anna"])  # the true bona is not there
    state = fed.federation(nodes, config, tmp_path / "out").run()
    assert set(state.bases) == {"anna"}
    found = {(site, outcome): why for _, site, outcome, why in rows(tmp_path / "out")}
    assert reason in found["bona", "refused"]
    assert found["bona", "absent"] == "not connected"


@pytest.mark.parametrize("registered", ["cora", ""])
def test_a_failure_told_by_another_node_is_not_a_sites(tmp_path: Path, registered: str) -> None:
    config = fed.settings(
        "federation.sites=[anna,bona]",
        "federation.rounds=1",
        "federation.quorum=0.5",
        "federation.start_timeout=1",
    )
    nodes = grid(tmp_path, {1: registered, 2: "anna"}, ["bona", "anna"])  # the true bona is not there
    (tmp_path / "0" / "cache" / "images.npy").unlink()
    fed.federation(nodes, config, tmp_path / "out").run()
    found = {outcome: why for _, site, outcome, why in rows(tmp_path / "out") if site == "bona"}
    assert found["absent"] == "not connected"
    assert set(found) == {"absent", "refused"}, "the claim is recorded, the failure is not the site's"


def test_a_name_once_registered_is_not_given_to_a_node_without_one(tmp_path: Path) -> None:
    config = fed.settings("federation.sites=[anna,bona]", "federation.rounds=2", "federation.quorum=0.5")
    nodes = grid(tmp_path, {}, ["anna", "bona", "bona"])
    nodes.names = lambda: {1: "anna", 2: "bona"} if running.state.round == 0 else {1: "anna", 3: ""}
    running = fed.federation(nodes, config, tmp_path / "out")
    running.run()
    second = [row[1:] for row in rows(tmp_path / "out") if row[0] == "2"]
    assert [row[:2] for row in second] == [("anna", "folded"), ("bona", "absent"), ("bona", "refused")]
    assert "register it with --name" in second[2][2]


def other_code(told: str, **more: object) -> Any:
    """A client of other code: its hello tells `told` and `more`, and it trains like any other."""
    app = fed.ClientApp()

    @app.query()
    def hello(message: Message, context: Any) -> Message:
        reply = client.hello(message, context)
        fields = dict(reply.content.config_records[RECORD])
        if fields["site"] == "bona":
            reply.content[RECORD] = ConfigRecord(
                {**fields, "fingerprint": told or fields["fingerprint"], **more}
            )
        return reply

    app.train()(client.train)
    app.evaluate()(client.evaluate)
    return app


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ('{"recipe": "abc", "torch": "1.0"}', '{"recipe": "abc", "torch": "1.0"}'),
        ('{"torch": "DOE^JANE /data/x.dcm"}', "its fingerprint is malformed"),
        ("DOE^JANE", "its fingerprint is malformed"),
        ("[" * 900, "its fingerprint is malformed"),
        ("x" * 10**6, "its fingerprint is malformed"),
    ],
    ids=["other", "words", "text", "deep", "long"],
)
def test_a_site_of_other_code_is_refused_with_both_fingerprints(
    tmp_path: Path, told: str, shown: str
) -> None:
    config = fed.settings("federation.sites=[anna,bona]", "federation.rounds=1", "federation.quorum=0.5")
    nodes = grid(tmp_path, {1: "anna", 2: "bona"}, ["anna", "bona"], app=other_code(told))
    running = fed.federation(nodes, config, tmp_path / "out")
    running.run()
    found = {site: (outcome, why) for _, site, outcome, why in rows(tmp_path / "out")}
    assert found["anna"][0] == "folded"
    assert found["bona"][0] == "refused"
    assert shown in found["bona"][1]
    assert "DOE" not in found["bona"][1]
    if shown.startswith("{"):
        assert running.fingerprint in found["bona"][1]


@pytest.mark.parametrize("images", [0, -1, wire.MAX_COUNT + 1])
def test_a_site_of_an_impossible_number_of_images_does_not_join(tmp_path: Path, images: int) -> None:
    config = fed.settings("federation.sites=[anna,bona]", "federation.rounds=1", "federation.quorum=0.5")
    nodes = grid(tmp_path, {1: "anna", 2: "bona"}, ["anna", "bona"], app=other_code("", images=images))
    fed.federation(nodes, config, tmp_path / "out").run()
    found = {site: (outcome, why) for _, site, outcome, why in rows(tmp_path / "out")}
    assert found == {"anna": ("folded", ""), "bona": ("failed", f"it reports {images} images to train on")}


def test_why_no_site_could_join_is_said(tmp_path: Path) -> None:
    config = fed.settings("federation.sites=[bona]", "federation.rounds=1")
    nodes = grid(tmp_path, {1: "bona"}, ["bona"], app=other_code('{"torch": "1.0"}'))
    with pytest.raises(RunStopped, match=r'bona \(its code or recipe differs: \{"torch": "1.0"\}'):
        fed.federation(nodes, config, tmp_path / "out").run()


def test_a_hospital_that_pauses_is_missed_for_that_long_and_goes_on_from_what_counted(tmp_path: Path) -> None:
    config = fed.settings("federation.sites=[anna,bona]", "federation.rounds=4", "federation.quorum=0.5")
    nodes = grid(tmp_path, {1: "anna", 2: "bona"}, ["anna", "bona"])
    file = tmp_path / "1" / "site.yaml"
    fed.approve(config, file)
    going = file.read_text()
    running = fed.federation(nodes, config, tmp_path / "out")
    committed = running._commit

    def pause_after_the_first_and_come_back_after_the_third(*args: Any) -> None:
        committed(*args)
        file.write_text(going + ("paused: true\n" if running.state.round in (1, 2) else ""))

    running._commit = pause_after_the_first_and_come_back_after_the_third  # type: ignore[method-assign]
    running.run()
    bona = [(number, outcome, why) for number, site, outcome, why in rows(tmp_path / "out") if site == "bona"]
    assert bona == [
        ("1", "folded", ""),
        ("2", "failed", "it is paused"),
        ("3", "failed", "it is paused"),
        ("4", "folded", ""),  # its state of round 1 was kept, and none is called lost
    ]
