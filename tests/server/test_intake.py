"""Whatever a site sends over the network costs its own round alone; Flower's own server and Grid are between."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import federation as fed
import nodes
import pytest
from superlinks import Authority, SuperLink

from client import app as client
from server import mail

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
    return body + bytes(2**20) if kind == "ArrayChunk" else body


def misnamed(kind: str, body: bytes, pieces: int) -> bytes | None:
    return json.dumps({PATIENT: "0" * 64}).encode() if kind == "RecordDict" else body


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
    sites = fed.make_sites(tmp_path, NAMES, images=6)
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
