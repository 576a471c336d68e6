"""Whatever a site sends over the network costs its own round alone; Flower's own server and Grid are between."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import federation as fed
import nodes
import pytest
from flwr.app import Context, Message, RecordDict
from superlinks import Authority, SuperLink

from client import app as client
from server import mail
from sscxr.federation.wire import RECORD

NAMES = ["anna", "bona"]
PATIENT = "DOE^JANE"


def garbled(kind: str, body: bytes, pieces: int) -> bytes | None:
    return f"{PATIENT}".encode() if kind == "Array" else body


def torn(kind: str, body: bytes, pieces: int) -> bytes | None:
    return b"\xff\xff\xff" if kind == "Message" else body


def unfolding(kind: str, body: bytes, pieces: int) -> bytes | None:
    """Each array names its one piece five thousand times: 4 GB in all."""
    return json.dumps(json.loads(body) | {"arraychunk_ids": [0] * 5000}).encode() if kind == "Array" else body


def oversized(kind: str, body: bytes, pieces: int) -> bytes | None:
    return body + bytes(2**23) if kind == "ArrayChunk" else body


def misnamed(kind: str, body: bytes, pieces: int) -> bytes | None:
    return json.dumps({PATIENT: "0" * 64}).encode() if kind == "RecordDict" else body


def cut_off(kind: str, body: bytes, pieces: int) -> bytes | None:
    return None if kind == "ArrayChunk" else body


SPOILED: list[tuple[nodes.Spoil, str]] = [
    (garbled, "an unreadable reply (JSONDecodeError)"),
    (torn, "an unreadable reply (DecodeError)"),
    (unfolding, "an oversized reply (unfolded more than "),
    (oversized, "an oversized reply (more than "),
    (misnamed, "an unreadable reply (ValueError)"),
]


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[SuperLink]:
    with (
        pytest.MonkeyPatch.context() as patch,
        SuperLink(Authority(tmp_path / "ca")).running(patch) as running,
    ):
        yield running


@pytest.mark.slow
def test_a_reply_that_no_client_would_send_costs_its_sites_round_alone(
    superlink: SuperLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind a round; in the round after the last, the site's good reply counts again."""
    monkeypatch.setattr(mail, "_BESIDE", 2**22)
    sites = fed.make_sites(tmp_path, NAMES, images=10)
    rounds = len(SPOILED) + 1
    config = fed.settings(
        *(f"federation.rounds={rounds}", "federation.quorum=0.5", "federation.deadline=120"),
        *("federation.sites=[anna,bona]", "federation.start_timeout=60"),
    )
    spoil = {number: change for number, (change, _) in enumerate(SPOILED)}
    with (
        nodes.node(superlink, client.app, sites[0]),
        nodes.node(superlink, client.app, sites[1], spoil),
        nodes.grid(superlink) as grid,
    ):
        fed.approve(config, *sites)
        state = fed.federation(grid, config, tmp_path / "out").run()
    with (tmp_path / "out" / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows if row["site"] == "anna"] == ["folded"] * rounds
    found = [row for row in rows if row["site"] == "bona"]
    assert [row["outcome"] for row in found] == ["refused"] * len(SPOILED) + ["folded"]
    for row, (_, reason) in zip(found, SPOILED, strict=False):
        assert reason in row["reason"]
    assert PATIENT not in (tmp_path / "out" / "sites.csv").read_text()
    assert state.bases.keys() == {"anna", "bona"}


class OtherReplies:
    """A site that answers round 1 with its update of round 0, and round 2 as another version of the code would."""

    def __init__(self) -> None:
        self.first: RecordDict | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client.app(message, context)
        if message.metadata.message_type != "train":
            return reply
        if message.metadata.group_id == "0":
            self.first = reply.content
        elif message.metadata.group_id == "1":
            assert self.first is not None
            return Message(self.first, reply_to=message)
        elif message.metadata.group_id == "2":
            reply.content.config_records[RECORD]["fingerprint"] = "0.0.1/another"
        return reply


def of(rows: list[dict[str, str]], site: str) -> list[str]:
    return [row["outcome"] for row in rows if row["site"] == site]


@pytest.mark.slow
def test_an_old_update_and_one_of_other_code_are_refused_and_a_reply_sent_again_counts_once(
    superlink: SuperLink, tmp_path: Path
) -> None:
    sites = fed.make_sites(tmp_path, NAMES, images=10)
    config = fed.settings(
        *("federation.rounds=4", "federation.quorum=0.5", "federation.deadline=120"),
        *("federation.sites=[anna,bona]", "federation.start_timeout=60"),
    )
    with (
        nodes.node(superlink, client.app, sites[0], again=[0, 1, 2, 3]) as repeated,
        nodes.node(superlink, OtherReplies(), sites[1]),
        nodes.grid(superlink) as grid,
    ):
        fed.approve(config, *sites)
        fed.federation(grid, config, tmp_path / "out").run()
    with (tmp_path / "out" / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert of(rows, "anna") == ["folded"] * 4
    assert of(rows, "bona") == ["folded", "refused", "refused", "folded"]
    _, old, other, _ = (row["reason"] for row in rows if row["site"] == "bona")
    assert old.endswith("another round")
    assert other.endswith("another fingerprint")
    # The SuperLink takes in what is sent again, for a message that it no longer has; nobody asks for it.
    assert repeated == ["taken"] * 10


@pytest.mark.slow
def test_an_upload_that_is_cut_off_is_late_and_holds_nobody_up(superlink: SuperLink, tmp_path: Path) -> None:
    sites = fed.make_sites(tmp_path, NAMES, images=10)
    config = fed.settings(
        *("federation.rounds=2", "federation.quorum=0.5", "federation.deadline=30"),
        *("federation.sites=[anna,bona]", "federation.start_timeout=60"),
    )
    with (
        nodes.node(superlink, client.app, sites[0]),
        nodes.node(superlink, client.app, sites[1], {0: cut_off}),
        nodes.grid(superlink) as grid,
    ):
        fed.approve(config, *sites)
        fed.federation(grid, config, tmp_path / "out").run()
    with (tmp_path / "out" / "sites.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert of(rows, "anna") == ["folded", "folded"]
    assert of(rows, "bona") == ["late", "folded"]
